"""A light front door: a certificate is read without torch, the plugin comes in time."""

import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "certificate/golden"
NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "lightning", "pytorch_lightning"):
            raise ImportError(f"{name} must not be imported here")
sys.meta_path.insert(0, Refuse())
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def console(*arguments):
    return run(
        NO_TORCH + "from lightning_unlearn.certificate.console import main\n"
        f"status = main({[str(a) for a in arguments]!r})\n"
        "assert status == 0, status"
    )


@pytest.fixture
def files(tmp_path):
    """A golden certificate that nobody minds being written beside."""
    path = tmp_path / "c.certificate.json"
    path.write_text((GOLDEN / "schema1.certified.json").read_text())
    return path


def test_a_certificate_is_verified_shown_and_reported_without_torch(files):
    assert console("verify", files).splitlines()[-1].startswith("VERIFIED: digest, ")
    assert console("show", files).startswith("CERTIFIED: ")
    assert "report written to" in console("report", files)
    assert files.with_name("c.report.html").exists()


def test_a_table_is_held_to_an_exclusion_list_without_torch(tmp_path):
    path, key, data = (tmp_path / name for name in ("l.jsonl", "org.key", "d.csv"))
    console("exclusions", "new", path, "--key-file", key)
    data.write_text("user_id\nu1\n")
    files = ("--list", path, "--key-file", key)
    out = console("exclusions", "check", data, "--column", "user_id", *files)
    assert out.startswith("none of 1 rows")


def test_what_is_due_is_listed_without_torch(tmp_path):
    path = tmp_path / "inbox.csv"
    path.write_text("request,person,due\nT-1,u1,2999-01-01\n")
    assert console("ledger", "due", path).endswith("1 pending, 0 overdue\n")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing(option):
    out = run(
        NO_TORCH + "sys.modules['scipy'] = None\n"
        "from lightning_unlearn.certificate.console import main\n"
        f"try: main([{option!r}])\nexcept SystemExit as end: assert end.code == 0"
    )
    assert "lightning-unlearn" in out


def test_guarantee_and_certificate_load_whole_without_torch():
    run(
        NO_TORCH + "import importlib, pkgutil\n"
        "import lightning_unlearn.certificate, lightning_unlearn.guarantee\n"
        "for package in (lightning_unlearn.certificate, lightning_unlearn.guarantee):\n"
        "    prefix = package.__name__ + '.'\n"
        "    for found in pkgutil.walk_packages(package.__path__, prefix):\n"
        "        module = importlib.import_module(found.name)\n"
        "    for name in getattr(package, '__all__', []): getattr(package, name)\n"
    )


def test_the_trainer_can_unlearn_as_soon_as_the_callback_is_there():
    run(
        "import lightning_unlearn, sys\n"
        "assert 'torch' not in sys.modules\n"
        "from lightning_unlearn import UnlearningCallback\n"
        "from lightning.pytorch import Trainer\n"
        "assert Trainer.unlearn is lightning_unlearn.unlearn\n"
        "assert Trainer.preflight is lightning_unlearn.preflight\n"
    )


def test_an_unknown_name_is_an_attribute_error():
    import lightning_unlearn

    with pytest.raises(AttributeError, match="no_such_name"):
        lightning_unlearn.no_such_name  # noqa: B018
    assert "UnlearningCallback" in dir(lightning_unlearn)


@pytest.mark.parametrize("name", ["errors", "evaluation", "plugin", "certificate"])
def test_a_room_is_an_attribute_of_the_package(name):
    code = "import lightning_unlearn\n"
    run(code + f"assert lightning_unlearn.{name}.__name__.endswith({name!r})")
