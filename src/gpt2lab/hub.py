"""Models and files by name: a local directory, or a repository of the Hugging Face Hub.

The Hub is at ``HF_ENDPOINT``, by default https://huggingface.co. Downloads stay in its cache (``HF_HOME``) and are not
repeated. Needs the extra ``hub``.

A name is looked up on the Hub only if it cannot be a mistyped path: one of `PUBLISHED`, ``OWNER/NAME`` if there is no
directory OWNER, or anything after ``hub:``.

huggingface_hub downloads what is kept: weights, vocabularies, the files of a benchmark. Corpora are downloaded by
`gpt2lab.data.download`, since huggingface_hub has no bound on disk space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gpt2lab.errors import InputError, did_you_mean

PREFIX = "hub:"
PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
"""Models whose name on the Hub has no owner."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def find_model(source: Path | str, files: Sequence[str]) -> Path:
    """Return a local directory as it is, or the local copy of a model of the Hub.

    Args:
        source: The directory, or a name such as ``gpt2``, ``OWNER/NAME`` or ``hub:OWNER/NAME``.
        files: Names or patterns of the files to download, if the model has them.

    Raises:
        InputError: There is no such directory or model, or the Hub is unreachable.
    """
    if Path(source).is_dir():
        return Path(source)
    name = _name_of(source)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise InputError(
            f'"{name}" is not a local directory; to download it from the Hub: pip install "gpt2lab[hub]"'
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except RepositoryNotFoundError:
        raise InputError(f'"{name}" is not a local directory, and the Hub has no such public model') from None
    except LocalEntryNotFoundError:
        raise InputError(
            f'"{name}" is not a local directory, is not in the cache, and the Hub is unreachable'
        ) from None
    except Exception as error:  # its own errors, its HTTP client's, the disk's: each says why there is no copy
        reason = " ".join(str(error).split())
        raise InputError(
            f'"{name}" is not a local directory, and the download from the Hub failed: {reason}'
        ) from error


def _name_of(source: Path | str) -> str:
    """Return the name that ``source`` has on the Hub. Raises InputError where it must be a path, or is neither."""
    given = source if isinstance(source, str) else source.as_posix()
    name = given.removeprefix(PREFIX)
    owner, slash, _ = name.partition("/")
    is_meant = given != name or name in PUBLISHED or (slash and not Path(owner).exists())
    if is_meant and _NAME.fullmatch(name):
        return name
    path = Path(given)
    beside = [str(path.with_name(one.name)) for one in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(given, [*PUBLISHED, *beside])
    raise InputError(f"{given} does not exist{hint}; give a directory, or a name on the Hub: gpt2 or hub:OWNER/NAME")


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
