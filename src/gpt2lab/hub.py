"""Models and data by name: a directory here, or what the Hugging Face Hub has under that name.

The Hub is whatever ``HF_ENDPOINT`` says, https://huggingface.co by default; what was fetched stays in its cache
(``HF_HOME``) and is not fetched again. Needs the extra ``hub``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gpt2lab.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def find_model(source: Path | str, files: Sequence[str]) -> Path:
    """Return a directory as it is given, or the copy of a model that is fetched from the Hub by its name.

    Args:
        source: The directory, or a name such as ``gpt2`` or ``OWNER/NAME``.
        files: What to fetch, where the model has it: names or patterns.

    Raises:
        InputError: There is no such directory and no such model, or the Hub cannot be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    name = source if isinstance(source, str) else source.as_posix()
    if not _NAME.fullmatch(name):
        raise InputError(f"{source} does not exist; give a directory, or a name on the Hub such as gpt2 or user/model")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise InputError(
            f'{name} is no directory; to fetch it from the Hub, install huggingface_hub: pip install "gpt2lab[hub]"'
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except RepositoryNotFoundError:
        raise InputError(f"{name} is no directory, and the Hub has no such model, or only for members") from None
    except LocalEntryNotFoundError:
        raise InputError(
            f"{name} is no directory, and the Hub cannot be reached, nor is it in the Hub's cache; try again"
        ) from None
    except Exception as error:  # its own errors, its HTTP client's, the disk's: each says why there is no copy
        reason = " ".join(str(error).split())
        raise InputError(f"{name} is no directory, and the Hub did not give it: {reason}; try again") from error


def fetch_data(name: str, file: str, revision: str) -> Path:
    """Return a file of a dataset on the Hub, fetched once and kept in its cache.

    Raises:
        InputError: huggingface_hub is not installed, or the Hub did not give it.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise InputError(f'to fetch {name} from the Hub, install huggingface_hub: pip install "gpt2lab[hub]"') from None
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset", revision=revision))
    except Exception as error:  # its own errors, its HTTP client's, the disk's: each says why there is no copy
        reason = " ".join(str(error).split())
        raise InputError(f"the Hub did not give {name}: {reason}; try again, or give a file that is here") from error
