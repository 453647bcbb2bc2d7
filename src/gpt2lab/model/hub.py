"""Models by name: a directory here, or what the Hugging Face hub has under that name.

The hub is whatever ``HF_ENDPOINT`` says, https://huggingface.co by default; what was fetched stays in its cache
(``HF_HOME``) and is not fetched again. Needs the extra ``hub``.
"""

from __future__ import annotations

import re
from pathlib import Path

from gpt2lab.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
)


def find_model(source: Path | str) -> Path:
    """Return a directory as it is given, or the copy of a model that is fetched from the hub by its name.

    Raises:
        InputError: There is no such directory and no such model, or the hub cannot be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    name = Path(source).as_posix()
    if not _NAME.fullmatch(name):
        raise InputError(f"{source} does not exist; give a directory, or a name on the hub such as gpt2 or user/model")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f'{name} is no directory; to fetch it from the hub, install huggingface_hub: pip install "gpt2lab[hub]"'
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # its own errors, its HTTP client's, the disk's: each says why there is no copy
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{name} is no directory, and the hub did not give it: {reason}") from error
