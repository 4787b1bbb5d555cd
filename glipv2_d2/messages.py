"""Values of users in messages."""

from __future__ import annotations

import reprlib

MAX_QUOTED = 80
"""Characters of a quoted value."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = MAX_QUOTED


def quote(value: object) -> str:
    """The ``repr`` of a value, shortened to 80 characters before all of it is formatted.

    >>> quote("cat"), quote(["cat", "dog"])
    ("'cat'", "['cat', 'dog']")
    >>> len(quote("cat" * 1_000_000))
    80
    """
    quoted = _SHORT.repr(value)
    return quoted if len(quoted) <= MAX_QUOTED else quoted[: MAX_QUOTED - 3] + "..."
