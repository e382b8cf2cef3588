"""The house of docs/architecture.md: a room imports only what stands beside it here."""

import ast
import pkgutil
import re
from pathlib import Path

import pytest

import lightning_unlearn

ROOT = Path(lightning_unlearn.__file__).parent

# room -> (rooms it may import, third-party packages). A room is a folder or a named
# file; the longest name that fits is the room of a file. ``step/*`` is all below step.
TORCH = {"torch", "jaxtyping"}
LIGHTNING = {
    *("torch", "torchmetrics", "numpy", "filelock", "typing_extensions", "safetensors"),
    "lightning_utilities",
}
BASE = ("errors", "_base")
RECORD = ("certificate", "certificate/fields", "certificate/words")
BELOW_STEP = (*BASE, "guarantee", "guarantee/accounting", *RECORD, "weights", "solvers")
BELOW_PLUGIN = (*BELOW_STEP, "certificate/*", "step/*", "evaluation/*")
METRICS = {"torch", "torchmetrics", "scipy"}
ROOMS = {
    "errors": ((), set()),
    "_base": (("errors",), set()),
    "guarantee": ((*BASE, "guarantee/accounting"), {"scipy"}),
    "guarantee/accounting": (BASE, {"scipy", "numpy", "dp_accounting"}),
    "weights": (BASE, TORCH),
    "certificate/fields": ((*BASE, "guarantee"), set()),
    "certificate/words": ((*BASE, "guarantee", "certificate/fields"), set()),
    "certificate": (
        (*BASE, "guarantee", "weights/digests", *RECORD[1:]),
        {"cryptography"},
    ),
    "certificate/file_lock": (BASE, {"filelock"}),
    "certificate/exclusions": (
        (*BASE, "certificate/receipts", "certificate/file_lock"),
        set(),
    ),
    "certificate/exclusion_commands": (
        (*BASE, "certificate/exclusions", "certificate/receipts"),
        set(),
    ),
    "certificate/inbox": (
        (*BASE, "certificate/receipts", "certificate/file_lock"),
        set(),
    ),
    "certificate/model_state": (
        (*BASE, "guarantee", *RECORD, "weights/digests"),
        {"torch", "safetensors"},
    ),
    "certificate/report": ((*BASE, "guarantee", *RECORD), {"jinja2"}),
    "certificate/console": (
        (
            *(*BASE, *RECORD, "certificate/report", "certificate/model_state"),
            *("certificate/exclusion_commands", "certificate/inbox/due_command"),
            "weights/digests",
        ),
        set(),
    ),
    "solvers": ((*BASE, "weights"), TORCH),
    "step": (BELOW_STEP, TORCH),
    "step/head": ((*BELOW_STEP, "step"), {*TORCH, "typing_extensions"}),
    "step/network": ((*BELOW_STEP, "step"), TORCH),
    "evaluation/metrics": (BASE, METRICS),
    "evaluation/attacks": ((*BASE, "evaluation/metrics"), METRICS),
    "evaluation/audits": (
        (
            *(*BASE, "guarantee", "guarantee/accounting", *RECORD, "step/noise"),
            *("evaluation/metrics", "evaluation/attacks"),
        ),
        {"torch", "scipy", "tqdm"},
    ),
    "evaluation/baselines": (
        (*BASE, "guarantee", "step/noise", "evaluation/metrics", "evaluation/attacks"),
        {"torch", "scipy", "matplotlib"},
    ),
}
PLUGIN = (
    *("which_lightning", "lightning"),
    *("plain_state", "data", "mixin", "options", "training", "run", "excluded", "plan"),
    *("covered", "private"),
    *("files", "stages", "attachment"),
    *("callback", "retrain", "request", "certified", "verbs", "sharded"),
)
for _i, _room in enumerate(PLUGIN):
    _below = (f"plugin/{name}" for name in PLUGIN[:_i])
    ROOMS[f"plugin/{_room}"] = ((*BELOW_PLUGIN, *_below), LIGHTNING)
ROOMS["plugin/which_lightning"] = (BASE, set())
ROOMS["plugin/lightning"] = ((*BASE, "plugin/which_lightning"), {"lightning"})
ROOMS["cli"] = ((*BELOW_PLUGIN, "plugin/*"), LIGHTNING)
STANDARD = {
    "abc", "argparse", "ast", "atexit", "collections", "concurrent", "contextlib",
    "copy", "csv", "dataclasses", "datetime", "enum", "functools", "glob", "hashlib",
    "hmac", "html", "importlib", "inspect", "itertools", "json", "logging", "math",
    "multiprocessing", "numbers", "operator", "os", "pathlib", "pickle", "platform",
    "random", "re", "reprlib", "secrets", "shlex", "shutil", "sys", "tempfile",
    "textwrap", "time", "traceback", "types", "typing", "unicodedata", "uuid",
    "warnings", "weakref", "zipfile",
}  # fmt: skip
HERE = "lightning_unlearn.plugin.lightning"
#: Files that hand on the names of a package and define nothing.
FACES = {
    *("__init__", "certificate/__init__", "evaluation/__init__", "guarantee/__init__"),
    "plugin/__init__",
}


def place_of(module):
    """``lightning_unlearn.a.b`` -> ``a/b``; a package is its ``__init__``."""
    inside = ROOT.joinpath(*module.split(".")[1:])
    name = inside / "__init__" if inside.is_dir() else inside
    return name.relative_to(ROOT).as_posix()


def room_of(place):
    fits = [r for r in ROOMS if place == r or place.startswith(f"{r}/")]
    return max(fits, key=len)


def imports(path):
    """Every module that a file imports, type-only ones included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            for alias in node.names:
                inside = ROOT.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inside.is_dir() or inside.with_suffix(".py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def is_allowed(place, room, allowed):
    """Whether a file is in a room, or is a file, that may be imported."""
    other = room_of(place)
    below = [name.removesuffix("*") for name in allowed if name.endswith("*")]
    return (
        other in (room, *allowed) or place in allowed or place.startswith(tuple(below))
    )


def violations(path, place):
    room = room_of(place)
    allowed, third_party = ROOMS[room]
    for name in imports(path):
        top = name.split(".")[0]
        if top == "lightning_unlearn":
            if not is_allowed(place_of(name), room, allowed):
                yield f"{place} (in {room}) imports {name}"
        elif top not in third_party | STANDARD:
            yield f"{place} may not import {name}"


FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path
    for path in sorted(ROOT.rglob("*.py"))
}


@pytest.mark.parametrize("place", [p for p in FILES if p not in FACES])
def test_a_room_imports_only_what_stands_beside_it(place):
    assert not list(violations(FILES[place], place))


def test_a_violation_is_seen(tmp_path):
    bad = tmp_path / "bounds.py"
    bad.write_text(
        "import torch\nfrom lightning_unlearn.step import noise\n"
        "from lightning_unlearn.weights.scope import Vector\n"
    )
    assert len(list(violations(bad, "guarantee/bounds"))) == 3
    assert len(list(violations(bad, "certificate/ledger"))) == 3
    assert not list(violations(bad, "step/release"))


def test_there_is_no_circle():
    arrows = {
        place: {
            place_of(n) for n in imports(path) if n.startswith("lightning_unlearn.")
        }
        for place, path in FILES.items()
    }
    while arrows:  # take away what imports nothing that is left
        ground = {p for p, to in arrows.items() if not to & (arrows.keys() - {p})}
        assert ground, f"these import each other in a circle: {sorted(arrows)}"
        arrows = {p: to for p, to in arrows.items() if p not in ground}


def test_folders_can_be_taken_in_at_a_glance():
    assert len([p for p in ROOT.iterdir() if p.name != "__pycache__"]) <= 12
    for folder in {path.parent for path in FILES.values()}:
        assert len(list(folder.glob("[!_]*.py"))) <= 12, folder


def test_no_two_files_have_one_name():
    names = [p.name for p in FILES.values() if p.name not in ("__init__.py", "base.py")]
    assert sorted(names) == sorted(set(names))


def test_solvers_do_not_know_the_data():
    for path in (ROOT / "solvers").glob("*.py"):
        assert "lightning_unlearn.weights.objective" not in set(imports(path))


def test_private_lightning_names_stay_in_compat():
    private = ("trainer._", "strategy._", "_connector.")
    for path in (ROOT / "plugin").rglob("*.py"):
        if path.name != "compat.py":
            text = path.read_text()
            assert not [name for name in private if name in text], path
            assert not list(private_names(ast.parse(text))), path


def private_names(tree):
    """Those that a file takes from the one that lists Lightning's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == HERE:
            yield from (a.name for a in node.names if a.name.startswith("_"))


def test_one_place_says_which_lightning_it_is():
    """By its imports (ROOMS), and in strings that name a module of it."""
    named = re.compile(r"""["'](lightning\.(pytorch|fabric)|pytorch_lightning)\b""")
    naming = {place for place, path in FILES.items() if named.search(path.read_text())}
    assert naming == {"plugin/which_lightning"}


def test_no_file_is_long():
    long = [p for p in FILES.values() if len(p.read_text().splitlines()) > 400]
    assert not long


def test_a_reviewer_of_the_guarantee_reads_what_the_page_says():
    guarantee = sum(
        len(p.read_text().splitlines()) for p in ROOT.glob("guarantee/*.py")
    )
    rest = (
        *("certificate/words/theorems", "step/noise", "step/release"),
        "guarantee/accounting/private_training",
        "guarantee/accounting/served_head",
        "guarantee/accounting/drawn_step",
        "certificate/words/served_words",
        "certificate/words/backbone_words",
    )
    total = guarantee + sum(len(FILES[p].read_text().splitlines()) for p in rest)
    assert guarantee < 1200
    page = (ROOT.parent / "docs/architecture.md").read_text()
    assert f"about {round(total, -2):,} lines" in page


def test_what_the_theory_page_names_is_there():
    page = (ROOT.parent / "docs/theory.md").read_text()
    named = re.findall(r"`((?:guarantee|step|evaluation)\.[\w.]+)`", page)
    assert len(named) > 15
    for name in named:
        assert pkgutil.resolve_name(f"lightning_unlearn.{name}"), name
