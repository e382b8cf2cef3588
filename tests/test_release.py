"""What `python -m build` makes holds all it should, and works without the clone."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def done(*command, **options):
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, **options
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The wheel and the sdist, made from a copy of the clone."""
    folder = tmp_path_factory.mktemp("release")
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", "site"
    )
    shutil.copytree(ROOT, folder / "clone", ignore=ignored)
    made = folder / "dist"
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir", str(made))
    done(*build, str(folder / "clone"))
    (wheel,), (sdist,) = made.glob("*.whl"), made.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The environment of a process that has the wheel, and no clone."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps")
    done(*pip, "--target", str(folder), str(dist[0]))
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}, folder


def files_of(folder, *endings):
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.suffix in endings or path.name == "py.typed"
    }


def test_the_wheel_holds_the_package_and_nothing_else(dist):
    names = set(zipfile.ZipFile(dist[0]).namelist())
    own = {name for name in names if ".dist-info/" not in name}
    assert own == files_of("lightning_unlearn", ".py", ".jinja", ".css")
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_can_be_tested_and_read(dist):
    with tarfile.open(dist[1]) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    for folder, ending in (("tests", ".py"), ("docs", ".md"), ("examples", ".py")):
        assert files_of(folder, ending) <= names
    assert files_of("tests/snapshots", ".txt") <= names
    assert {"SECURITY.md", "CITATION.cff", "README.md", "mkdocs.yml"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_installed_package_works(installed, tmp_path):
    environment, folder = installed
    code = (
        "import lightning_unlearn, runpy, sys; from pathlib import Path;"
        f"assert Path(lightning_unlearn.__file__).is_relative_to({str(folder)!r});"
        f"runpy.run_path({str(ROOT / 'examples/quickstart.py')!r})['main']()"
    )
    said = done(sys.executable, "-c", code, cwd=tmp_path, env=environment)
    assert "CERTIFIED: indistinguishable" in said
    assert (tmp_path / "report.html").exists()
    script = folder / "bin" / "lightning-unlearn"
    assert "verify" in done(sys.executable, str(script), "--help", env=environment)


def test_quick_tests_of_the_sdist_pass_on_the_wheel(dist, installed, tmp_path):
    with tarfile.open(dist[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    shutil.rmtree(root / "lightning_unlearn")
    quick = ("tests/guarantee", "tests/test_front_door.py")
    said = done(
        *(sys.executable, "-m", "pytest", "-q", "-m", "not slow", *quick),
        cwd=root,
        env=installed[0],
    )
    assert " passed" in said


def test_one_version_is_named():
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = (
        line.split('"')[1] for line in project.splitlines() if "version = " in line[:10]
    )
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "docs/CHANGELOG.md").read_text()
