"""What may leave this service for those who watch over it: names by name, values by form (G11)."""

import re
from collections.abc import Mapping
from typing import Any

Allowed = Any
"""What may leave: a mapping of names, a list with the form of every item, a pattern, a set of values, or a type."""


def form(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
HEX_ID = form(r"[0-9a-f]{32}")
WORD = form(r"[a-z][a-z0-9_]{0,63}")
NAME = form(r"[A-Za-z_<][\w.<>]{0,199}")
"""As Python has them, `<lambda>` included."""
RELEASE = form(r"[\w.@+-]{1,100}")
ROUTE = form(r"(/(v\d|[a-z.-]+|\{[A-Za-z]+\}))+")
"""A pattern with its parameters unfilled; an id has a digit or a capital letter."""


def only(allowed: Allowed, value: Any) -> Any:  # noqa: ANN401 - an event is JSON
    """The part of the value that is allowed; None if there is none."""
    if isinstance(allowed, Mapping):
        names = [name for name in allowed if name in value] if isinstance(value, Mapping) else []
        found = {name: only(allowed[name], value[name]) for name in names}
        return {name: item for name, item in found.items() if item is not None} or None
    if isinstance(allowed, list):
        return [only(allowed[0], item) or {} for item in value] if isinstance(value, list) else None
    if isinstance(allowed, re.Pattern):
        is_allowed = isinstance(value, str) and allowed.fullmatch(value) is not None
    elif isinstance(allowed, type):
        is_allowed = isinstance(value, allowed)
    else:
        is_allowed = isinstance(value, str) and value in allowed
    return value if is_allowed else None
