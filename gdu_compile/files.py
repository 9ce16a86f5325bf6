"""Input files: whether a path that was given can be read at all."""

from __future__ import annotations

import os
from pathlib import Path

from gdu_compile.errors import InputError


def check_input(path: Path) -> None:
    """Raise InputError unless ``path`` is a file with something in it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: its name is no UTF-8, which ONNX requires; rename it") from error
    # os.path, because Path.is_file raises where a name is too long for the file system.
    if os.path.isdir(path):  # noqa: PTH112
        raise InputError(f"{path}: is a folder; name a file in it")
    if not os.path.exists(path):  # noqa: PTH110
        raise InputError(f"{path}: no such file")
    if not os.path.isfile(path):  # noqa: PTH113
        raise InputError(f"{path}: is no regular file; copy what it gives into one")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: may not be read; change its permissions")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty; write or download it again")
