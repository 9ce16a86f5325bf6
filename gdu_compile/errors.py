"""The errors of gdu-compile: one hierarchy, each with an exit code.

Every message names the culprit (file, tensor, node), the fact, and the way
out.  An error may carry several ``problems``: all that is wrong with one input
is said at once.
"""

from __future__ import annotations

from collections.abc import Sequence


class GduError(Exception):
    """Base of all errors that gdu-compile raises on purpose.

    Attributes:
        message: one line: what could not be done.
        problems: the single complaints behind it, one line each; may be empty.
        kind: short name of the class of error, as in the JSON of ``--json``.
        exit_code: what the command returns.

    Example:
        >>> str(InputError("cannot use w.npz", ["no tensor 'a'", "no tensor 'b'"]))
        "cannot use w.npz\\n  - no tensor 'a'\\n  - no tensor 'b'"
    """

    kind = "error"
    exit_code = 3

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n  - ".join((self.message, *self.problems))


class InputError(GduError):
    """Something that was given (file, name, value, option) cannot be used."""

    kind = "input"
    exit_code = 2


class UnsupportedError(GduError):
    """The input is legal, but this version cannot handle it."""

    kind = "unsupported"
    exit_code = 2


class NodeError(InputError):
    """A node of the model cannot be run on the values that it gets.

    The cause is kept: whether the file or an operator of ours is wrong, the traceback shows.
    """


class TimeLimitError(GduError):
    """A forward call takes longer than ``--run-limit`` allows.

    No InputError: who tries other inputs, or does without a run, shall not try on.
    """

    kind = "time limit"
    exit_code = 2


class ContractError(GduError):
    """A stage left something behind that it promised not to: our fault."""

    kind = "internal"
    exit_code = 3
