"""What can be told of a function, so that another one is not taken for it."""

import hashlib
from types import CodeType
from typing import Any


def named(function: object) -> str:
    """Name, code and plain arguments of a function: what can be told of it."""
    given = getattr(function, "args", ()), getattr(function, "keywords", {})
    plain = [x for x in (*given[0], *sorted(given[1].items())) if _is_plain(x)]
    function = getattr(function, "func", function)  # of a partial
    named = getattr(function, "__qualname__", type(function).__qualname__)
    code = _code(getattr(function, "__code__", None))
    closed = [_content(cell) for cell in getattr(function, "__closure__", None) or ()]
    defaults = (
        getattr(function, "__defaults__", ()),
        *sorted((getattr(function, "__kwdefaults__", None) or {}).items()),
    )
    known = [x for x in (*closed, *defaults) if _is_plain(x)]
    text = f"{plain} {known} {code}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{getattr(function, '__module__', '')}.{named} {digest}"


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return None


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _code(code: Any) -> str:
    if not isinstance(code, CodeType):
        return ""
    inner = [_code(c) for c in code.co_consts if isinstance(c, CodeType)]
    plain = [c for c in code.co_consts if _is_plain(c)]
    return f"{code.co_code.hex()} {code.co_names} {plain} {inner}"
