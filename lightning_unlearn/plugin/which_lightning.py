"""Which Lightning a process uses: `lightning` or `pytorch_lightning`.

The two hold the same code as two sets of classes, and a Trainer of one refuses a model
or a callback of the other. So ours are made of one of them, chosen once, when the first
part of the plugin is imported.
"""

import importlib
import os
import re
import sys
import warnings
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec

from lightning_unlearn.errors import SetupError

VARIABLE = "LIGHTNING_UNLEARN_LIGHTNING"
#: Package -> the module that holds its Trainer. The first is taken where nothing says.
PACKAGES = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
_FABRIC = {"lightning": "lightning.fabric", "pytorch_lightning": "lightning_fabric"}
_OLDEST = (2, 4)


def choose() -> str:
    """The package to use: what the variable says, else what is loaded or installed.

    Raises:
        SetupError: If the variable names none, or there is none.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted and wanted not in PACKAGES:
        raise SetupError(
            f"expected {' or '.join(PACKAGES)} in the environment variable {VARIABLE}, "
            f"got {wanted!r}: name one of the two, or unset it"
        )
    if wanted and not installed(wanted):
        raise SetupError(
            f"expected the package that the environment variable {VARIABLE} names, got "
            f"{wanted}, which is not installed: pip install {wanted}, or unset it"
        )
    loaded = [name for name, root in PACKAGES.items() if sys.modules.get(root)]
    found = [wanted] if wanted else loaded or [*filter(installed, PACKAGES)]
    if not found:
        raise SetupError(
            "expected lightning or pytorch_lightning, got neither: pip install "
            "lightning"
        )
    if found == list(PACKAGES) and loaded:
        warnings.warn(
            f"lightning and pytorch_lightning are both loaded; lightning_unlearn uses "
            f"{found[0]}: set the environment variable {VARIABLE}={found[0]} to keep "
            f"it so, or {VARIABLE}={found[1]}",
            stacklevel=2,
        )
    return found[0]


def installed(package: str) -> bool:
    """Whether it can be imported; nothing is."""
    top, *inside = PACKAGES[package].split(".")
    with suppress(ImportError):
        spec = find_spec(top)
        if spec is not None and inside:  # a folder of that name is none
            folders = spec.submodule_search_locations
            spec = PathFinder.find_spec(PACKAGES[package], folders)
        return spec is not None and spec.origin is not None
    return False


def check_version(package: str) -> None:
    """Import a package, and raise `SetupError` if it is too old."""
    version = importlib.import_module(PACKAGES[package]).__version__
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and tuple(map(int, numbers.groups())) < _OLDEST:
        raise SetupError(
            f"expected {package} >= {'.'.join(map(str, _OLDEST))}, got {version}: pip "
            f"install --upgrade {package}"
        )


def module_in(package: str, module: str) -> str:
    """`lightning.pytorch.x` or `lightning.fabric.x` as it is called in a package."""
    for homes in (PACKAGES, _FABRIC):
        root = homes["lightning"]
        if f"{module}.".startswith(f"{root}."):
            return homes[package] + module.removeprefix(root)
    raise ValueError(f"expected a module of lightning.pytorch or .fabric, got {module}")


def package_of(thing: object) -> str | None:
    """The package an object's class, or a class, is made of."""
    kind = thing if isinstance(thing, type) else type(thing)
    for cls in kind.__mro__:
        for package, root in PACKAGES.items():
            if f"{cls.__module__}.".startswith(f"{root}."):
                return package
    return None


def refuse_mixed(thing: object, package: str, used: str) -> None:
    """Raise `SetupError` if something is made of another package than `package`.

    Args:
        thing: An object or a class.
        package: That of what it is used with.
        used: The one ours are made of.
    """
    found = package_of(thing)
    if found in (None, package):
        return
    name = (thing if isinstance(thing, type) else type(thing)).__qualname__
    (other,) = PACKAGES.keys() - {used}
    how = f"set the environment variable {VARIABLE}={other}"
    if not os.environ.get(VARIABLE):
        how = f"import {other}, and not {used}, before lightning_unlearn, or {how}"
    raise SetupError(
        f"expected module, callbacks and Trainer of one package, got {name} of {found} "
        f"with {package}: import one of the two everywhere. lightning_unlearn uses "
        f"{used}; for {other}, {how}"
    )
