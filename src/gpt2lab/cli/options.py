"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import arg

Checkpoint = Annotated[str, arg(metavar="best|last|STEP")]
