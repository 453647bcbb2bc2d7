"""``python -m gpt2lab``, which is how torchrun starts it: ``torchrun ... -m gpt2lab train ...``."""

from __future__ import annotations

import sys

from gpt2lab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
