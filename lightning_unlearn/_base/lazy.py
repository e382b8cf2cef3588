"""Names of a package that are imported when they are first used."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(
    package: str,
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    The names are those its ``if TYPE_CHECKING:`` imports: written once, they serve
    checkers and editors as they stand, and the program when it asks for them.

    Args:
        package: Its ``__name__``.
    """
    spec: Any = sys.modules[package].__spec__
    homes = {
        alias.name: node.module or ""
        for block in ast.parse(spec.loader.get_source(package)).body
        if isinstance(block, ast.If)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        inside = f"{package}.{name}"
        if name.startswith("_") or importlib.util.find_spec(inside) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(inside)

    return get, lambda: sorted(homes), sorted(homes)
