"""Text from files on its way to a terminal: no control characters, and of bounded length."""

from __future__ import annotations

import re

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
LINE = 2_000
"""Characters of a line that are shown."""
LINES = 200
"""Problems that are shown; the JSON has all."""


def printable(text: str, limit: int = LINE) -> str:
    r"""One line of at most ``limit`` characters, in which control characters are escaped.

    A name in a hostile file may clear the screen, forge a line, or go on for ever.

    Example:
        >>> print(printable("w\n\x1b[2Jb"), printable("n" * 9, 4))
        w\n\x1b[2Jb nnnn … (5 more characters)
    """
    shown = CONTROL.sub(lambda found: repr(found[0])[1:-1], text[:limit])
    more = len(text) - limit
    return f"{shown} … ({more} more characters)" if more > 0 else shown
