"""Names of a package that are imported when they are first used."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(
    package: str, module_of: Callable[[str], str] = str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package or a module.

    The names are those its ``if TYPE_CHECKING:`` imports: written once, they serve
    checkers and editors as they stand, and the program when it asks for them.

    Args:
        package: Its ``__name__``.
        module_of: What stands for a module that is written there.
    """
    spec: Any = sys.modules[package].__spec__
    homes: dict[str, tuple[str, str | None]] = {}  # name -> module, attribute
    for block in ast.parse(spec.loader.get_source(package)).body:
        for node in ast.walk(block) if isinstance(block, ast.If) else ():
            if isinstance(node, ast.ImportFrom):
                homes |= {a.name: (node.module or "", a.name) for a in node.names}
            elif isinstance(node, ast.Import):
                homes |= {a.asname or a.name: (a.name, None) for a in node.names}

    def get(name: str) -> Any:
        if name in homes:
            module, attribute = homes[name]
            found = importlib.import_module(module_of(module))
            return found if attribute is None else getattr(found, attribute)
        inside = f"{package}.{name}"
        has_parts = spec.submodule_search_locations is not None
        private = name.startswith("_") or not has_parts
        if private or importlib.util.find_spec(inside) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(inside)

    return get, lambda: sorted(homes), sorted(homes)
