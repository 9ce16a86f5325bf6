"""gdu-compile: extend a network so that plain gradient descent reproduces given weights.

The public API: ``compile``, ``train``, ``verify``, ``apply``, ``extract``,
``inspect``, ``to_torch``, ``export_torch``; the passes are in ``gdu_compile.passes``.  Importing
this does not import torch: training does.
"""

from gdu_compile.compiler import Compiled, compile
from gdu_compile.errors import GduError, InputError, UnsupportedError
from gdu_compile.inspection import inspect
from gdu_compile.report import Report
from gdu_compile.version import __version__
from gdu_compile.workflows import apply, export_torch, extract, to_torch, train, verify

__all__ = [
    "Compiled", "GduError", "InputError", "Report", "UnsupportedError", "__version__", "apply",
    "compile", "export_torch", "extract", "inspect", "to_torch", "train", "verify",
]  # fmt: skip
