"""The floors of docs/architecture.md: a part imports only what stands above it."""

import ast
from pathlib import Path

import pytest

import lightning_unlearn

ROOT = Path(lightning_unlearn.__file__).parent

# part -> (floor, third-party packages it may import)
FLOORS = {
    "errors": (0, set()),
    "_validate": (0, set()),
    "_records": (0, set()),
    "_files": (0, set()),
    "_text": (0, set()),
    "ledger": (1, set()),
    "certificate": (1, {"scipy", "cryptography"}),
    "verification": (1, set()),
    "report": (1, {"jinja2"}),
    "precision": (2, {"torch"}),
    "scope": (2, {"torch", "jaxtyping"}),
    "empirical": (2, {"torch", "jaxtyping"}),
    "processes": (2, {"torch"}),
    "sharded": (2, {"torch"}),
    "objective": (2, {"torch", "jaxtyping"}),
    "heads": (2, {"torch", "jaxtyping"}),
    "factor": (2, {"torch", "jaxtyping"}),
    "features": (2, {"torch"}),
    "storage": (2, {"torch"}),
    "reading": (2, {"torch"}),
    "taps": (2, {"torch"}),
    "backbone": (2, {"torch", "typing_extensions"}),
    "convex": (2, {"torch", "jaxtyping"}),
    "curvature": (2, {"torch", "jaxtyping"}),
    "solvers": (2, {"torch", "jaxtyping"}),
    "noise": (2, {"torch", "jaxtyping"}),
    "newton": (3, {"torch", "jaxtyping"}),
    "damped": (3, set()),
    "evaluation": (
        3,
        {"torch", "torchmetrics", "scipy", "tqdm", "matplotlib"},
    ),
    "choice": (3, {"torch"}),
    "minimise": (3, {"torch", "jaxtyping"}),
    "prepared": (3, {"torch"}),
    "release": (3, {"torch", "jaxtyping"}),
    "plugin": (
        4,
        {"torch", "lightning", "lightning_utilities", "torchmetrics", "numpy",
         "typing_extensions", "filelock"},
    ),
    "console": (5, {"torch"}),
    "cli": (5, {"lightning", "lightning_utilities", "typing_extensions"}),
    "__init__": (5, set()),
}  # fmt: skip
STANDARD = {
    "abc", "argparse", "ast", "atexit", "collections", "concurrent", "contextlib",
    "copy", "csv", "dataclasses", "datetime", "enum", "functools", "hashlib", "hmac",
    "importlib", "inspect", "itertools", "json", "logging", "math", "multiprocessing",
    "numbers", "os", "pathlib", "pickle", "re", "secrets", "shlex", "shutil", "sys",
    "tempfile", "textwrap", "time", "traceback", "types", "typing", "unicodedata",
    "uuid", "warnings", "weakref",
}  # fmt: skip


def part_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            if node.module == "lightning_unlearn":
                yield from (f"lightning_unlearn.{a.name}" for a in node.names)
            else:
                yield node.module


def violations(path, source_part):
    floor, third_party = FLOORS[source_part]
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "lightning_unlearn":
            other = rest[0]
            if other != source_part and FLOORS[other][0] > floor:
                yield f"{path.name} (floor {floor}) imports {name}"
        elif top not in third_party | STANDARD:
            yield f"{path.name} may not import {name}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=str)
def test_imports_go_down_the_floors(path):
    assert not list(violations(path, part_of(path)))


def test_a_violation_is_seen(tmp_path):
    bad = tmp_path / "bounds.py"
    bad.write_text("import torch\nfrom lightning_unlearn import newton\n")
    assert len(list(violations(bad, "certificate"))) == 2


def test_solvers_do_not_know_the_data():
    for path in (ROOT / "solvers").glob("*.py"):
        assert "lightning_unlearn.objective" not in set(imports(path))


def test_private_lightning_names_stay_in_compat():
    private = ("trainer._", "strategy._", "_connector.", "trainer.call import")
    for path in (ROOT / "plugin").glob("*.py"):
        if path.name != "_compat.py":
            text = path.read_text()
            assert not [name for name in private if name in text], path


def test_no_file_is_long():
    long = [p for p in ROOT.rglob("*.py") if len(p.read_text().splitlines()) > 400]
    assert not long
