"""Where the options of ``gpt2lab train`` start from."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from gpt2lab.errors import InputError
from gpt2lab.files import read_json
from gpt2lab.runs import Run
from gpt2lab.training.config import LENGTHS, TrainConfig, from_dict, saved_config


def training_defaults(argv: list[str]) -> tuple[TrainConfig, list[str]]:
    """Return the configuration that the flags of ``gpt2lab train`` start from, and the flags without ``--config``.

    Flags may be spelt with ``_`` as well.

    It is that of the run which is resumed, of a file given by ``--config``, of the run whose weights are the first, or
    of the preset.

    Raises:
        InputError: Two of them are given, or the file does not hold one.
    """
    argv = [re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), word) for word in argv]
    file, preset, out = (_value_of(argv, flag) for flag in ("--config", "--preset", "--out"))
    resume, init = _value_of(argv, "--resume"), _value_of(argv, "--init")
    if "--config" in argv and (file is None or file.startswith("--")):
        raise InputError("--config needs a file, such as RUN/config.json")
    if file is not None and (preset is not None or resume is not None):
        other = "--preset" if preset is not None else "--resume"
        raise InputError(f"--config and {other} both say where options start from; give one of them")
    if init is not None and preset is not None:
        raise InputError("--init and --preset both say what the model is; give one of them")
    if resume is not None and out is not None:
        start = saved_config(Run.open(Path(out)))
    elif file is not None:
        start = dataclasses.replace(from_dict(read_json(Path(file)), where=file), out=None, resume=None)
    else:
        start = TrainConfig(preset=preset or "nano", init=None if init is None else Path(init))
    if any(_value_of(argv, f"--{name.replace('_', '-')}") is not None for name in LENGTHS):
        start = dataclasses.replace(start, steps=None, epochs=None, max_tokens=None)
    return start, _without(argv, "--config")


def _value_of(argv: list[str], flag: str) -> str | None:
    for index, word in enumerate(argv):
        if word == flag and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _without(argv: list[str], flag: str) -> list[str]:
    if flag in argv:
        index = argv.index(flag)
        return argv[:index] + argv[index + 2 :]
    return [word for word in argv if not word.startswith(f"{flag}=")]
