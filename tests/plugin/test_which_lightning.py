"""Which package is taken: by the variable, by what is loaded, by what is installed."""

import sys
from types import ModuleType

import pytest

from lightning_unlearn.errors import SetupError
from lightning_unlearn.plugin import which_lightning
from lightning_unlearn.plugin.which_lightning import (
    PACKAGES,
    VARIABLE,
    check_version,
    choose,
    installed,
    module_in,
)

OLD, NEW = "pytorch_lightning", "lightning"


@pytest.fixture
def world(monkeypatch):
    """A process with this loaded, this installed and this in the variable."""

    def make(loaded=(), there=(NEW, OLD), variable=None):
        for package, root in PACKAGES.items():
            monkeypatch.delitem(sys.modules, root, raising=False)
            if package in loaded:
                monkeypatch.setitem(sys.modules, root, ModuleType(root))
        monkeypatch.setattr(which_lightning, "installed", set(there).__contains__)
        monkeypatch.delenv(VARIABLE, raising=False)
        if variable is not None:
            monkeypatch.setenv(VARIABLE, variable)

    return make


@pytest.mark.parametrize(
    ("loaded", "there", "variable", "expected"),
    [
        ((), (NEW, OLD), None, NEW),
        ((), (OLD,), None, OLD),
        ((), (NEW,), None, NEW),
        ((OLD,), (NEW, OLD), None, OLD),
        ((NEW,), (NEW, OLD), None, NEW),
        ((NEW,), (NEW, OLD), OLD, OLD),
        ((OLD,), (NEW, OLD), NEW, NEW),
        ((NEW, OLD), (NEW, OLD), OLD, OLD),
        ((NEW, OLD), (NEW, OLD), NEW, NEW),
        ((), (NEW, OLD), OLD, OLD),
        ((OLD,), (NEW, OLD), "", OLD),  # set to nothing is not set
    ],
)
def test_the_variable_then_what_is_loaded_then_what_is_installed(
    loaded, there, variable, expected, world
):
    world(loaded, there, variable)
    assert choose() == expected


def test_both_loaded_is_said_and_how_to_decide(world):
    world((OLD, NEW))
    with pytest.warns(UserWarning, match=rf"uses lightning: set .* {VARIABLE}=light"):
        assert choose() == NEW


@pytest.mark.parametrize("name", ["torch", "pytorch-lightning", "lightning.pytorch"])
def test_a_wrong_variable_is_refused_by_name(name, world):
    world((NEW,), variable=name)
    message = f"expected lightning or pytorch_lightning in .*{VARIABLE}, got '{name}'"
    with pytest.raises(SetupError, match=message):
        choose()


def test_what_is_not_there_is_refused_by_name(world):
    world((), (NEW,), OLD)
    with pytest.raises(SetupError, match="pytorch_lightning, which is not installed"):
        choose()
    world((), ())
    with pytest.raises(SetupError, match="got neither: pip install lightning"):
        choose()


def test_a_folder_of_that_name_is_not_the_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in [m for m in sys.modules if m.split(".")[0] in PACKAGES]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        assert not installed(package)
    (tmp_path / NEW / "__init__.py").write_text("")
    assert not installed(NEW)
    (tmp_path / NEW / "pytorch").mkdir()
    (tmp_path / NEW / "pytorch/__init__.py").write_text("")
    (tmp_path / OLD / "__init__.py").write_text("")
    assert installed(NEW)
    assert installed(OLD)


@pytest.mark.parametrize(("version", "good"), [("2.3.9", False), ("1.9", False),
                                               ("2.4.0", True), ("2.10.1rc1", True),
                                               ("3.0", True)])  # fmt: skip
def test_an_old_version_is_refused_by_name(version, good, monkeypatch):
    module = ModuleType(OLD)
    vars(module)["__version__"] = version
    monkeypatch.setitem(sys.modules, OLD, module)
    if good:
        check_version(OLD)
    else:
        message = f"expected pytorch_lightning >= 2.4, got {version}"
        with pytest.raises(SetupError, match=message):
            check_version(OLD)


@pytest.mark.parametrize(
    ("module", "old"),
    [
        ("lightning.pytorch", "pytorch_lightning"),
        ("lightning.pytorch.callbacks", "pytorch_lightning.callbacks"),
        ("lightning.fabric.utilities.types", "lightning_fabric.utilities.types"),
    ],
)
def test_a_module_has_a_name_in_each(module, old):
    assert module_in(NEW, module) == module
    assert module_in(OLD, module) == old


def test_another_module_has_none():
    with pytest.raises(ValueError, match="got lightning.pytorchvision"):
        module_in(OLD, "lightning.pytorchvision")
