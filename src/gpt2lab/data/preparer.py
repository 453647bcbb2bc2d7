"""The process that prepares rounds ahead: ``python -m gpt2lab.data.preparer FOLDER FIRST MAX_DISK``; see `ahead`."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from gpt2lab.data.streaming import SegmentStore
from gpt2lab.errors import InputError


def main(folder: str, first: str, max_disk: str) -> int:
    """Prepare the rounds of ``folder`` from ``first`` on until the input ends; of 0 bytes there is no bound."""
    if sys.platform != "win32":
        os.nice(10)  # training comes first
    try:
        rounds = SegmentStore.reopen(Path(folder), int(max_disk) or None)
        rounds.tidy(int(first))
        threading.Thread(target=_listen, args=(rounds,), daemon=True).start()
        rounds.prepare_ahead()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _listen(rounds: SegmentStore) -> None:
    """Do what training says, line by line, and end when it does."""
    for line in sys.stdin:
        rounds.keep_from(int(line))
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
