"""The row store lives on: rows are read once, and the forgotten ones are gone."""

import json
import os
import subprocess
import sys
from array import array
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    TensorDataset,
    default_collate,
)

from lightning_unlearn import CertifiedClassifier, UnlearningCallback, prepare
from lightning_unlearn.errors import DataError, SetupError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.files import prepared_file, secret_file
from tests.helpers.nets import HeadNet, digits, fitted, loader, same, trainer, weights
from tests.plugin.helpers.publics import backbone, private

ROOT = Path(__file__).parents[3]
READ = array("q")  # a list would be put back after a look


class Counting(HeadNet):
    """Counts the samples that go through its backbone."""

    def training_step(self, batch, batch_idx):
        READ.append(len(batch[0]))
        return super().training_step(batch, batch_idx)


class Plain(Dataset):
    """Samples one by one: no tensors that could be compared at once."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        x, y = self.data[i]
        return x.clone(), int(y)


def samples_read(action):
    del READ[:]
    result = action()
    return sum(READ), result


def elsewhere(path, dataset, forget, save_to=None, **options):
    """A request in what could be another process: all is made anew."""
    options = {"prepared": "rows.store", **options}
    net, own = Counting(), UnlearningCallback(**options)
    return net, own, lambda: trainer(own).unlearn(
        forget, model=net, train_dataloaders=loader(dataset), ckpt_path=path,
        save_to=save_to,
    )  # fmt: skip


def found_in(folder, patterns):
    """Files that hold one of some bytes."""
    names = []
    for path in Path(folder).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            names += [path.name for p in patterns if p in content]
    return names


@pytest.mark.parametrize("kind", [lambda data: data, Plain])
def test_requests_in_fresh_processes_read_the_rows_once(kind, tmp_path):
    dataset = kind(digits(1797))
    net, first, callback, _ = fitted(Counting(), dataset)
    first.save_checkpoint("0.ckpt")
    prepare(first)  # in memory
    rows, passes = callback.bound_state.state.rows.features.numpy(), []
    for number, forget in enumerate(([3, 700], [4], [1500, 5, 6]), start=1):
        net, own, ask = elsewhere(
            f"{number - 1}.ckpt", dataset, forget, f"{number}.ckpt"
        )
        read, result = samples_read(ask)
        assert result.certificate.grade is Grade.CERTIFIED
        assert (read >= 1797) == (number == 1), read
        passes.append(result.solution.matvecs)
        kept = prepared_file.read(tmp_path / "rows.store")
        assert kept.positions == own.retained_indices
        assert kept.state.start is not None
        # Nothing holds a forgotten row: not the store, nor anything beside it.
        assert not found_in(tmp_path, [rows[i].tobytes() for i in forget])
        assert found_in(tmp_path, [rows[8].tobytes()]) == ["rows.store"]
    assert max(passes[1:]) < passes[0]
    assert oct(os.stat("rows.store").st_mode & 0o777) == "0o600"


def test_the_look_at_a_store_leaves_out_the_ends(tmp_path, monkeypatch):
    dataset, seen, real = digits(640), [], prepared_file.check_rows
    _, first, _, _ = fitted(Counting(), dataset, prepared="rows.store")
    first.save_checkpoint("0.ckpt")
    prepare(first)
    block = prepared_file.read(tmp_path / "rows.store").state.block

    def look(loss, head, batches, rows):
        seen.extend(batches.indices)
        real(loss, head, batches, rows)

    monkeypatch.setattr(prepared_file, "check_rows", look)
    _, _, ask = elsewhere("0.ckpt", dataset, [3])
    ask()
    blocks, last = {position // block for position in seen}, 639 // block
    assert len(blocks) == 3
    assert 0 < min(blocks) < max(blocks) < last  # the last may hold the longest texts


def test_the_next_request_ends_at_the_retrained_head(tmp_path):
    options = {"noise_std": 0.0, "tolerance": 1e-8}
    dataset = digits(600)
    _, first, _, _ = fitted(Counting(), dataset, **options)
    first.save_checkpoint("0.ckpt")
    net, _, ask = elsewhere("0.ckpt", dataset, [0, 5], "1.ckpt", **options)
    ask()
    stored, _, ask = elsewhere("1.ckpt", dataset, [77], **options)
    ask()
    cold, _, ask = elsewhere("1.ckpt", dataset, [77], **{**options, "prepared": None})
    ask()
    torch.testing.assert_close(
        stored.head.weight, cold.head.weight, rtol=1e-4, atol=1e-5
    )


def test_new_samples_are_added_and_the_old_ones_are_not_read(tmp_path):
    every = digits(1797)
    old = TensorDataset(*(t[:1000] for t in every.tensors))
    net, first, callback, _ = fitted(Counting(), old, prepared="rows.store")
    prepare(first)
    both = ConcatDataset([old, TensorDataset(*(t[1000:1200] for t in every.tensors))])
    first.fit_loop.max_epochs = 3
    first.fit(net, loader(both))
    read, result = samples_read(lambda: first.unlearn([1, 1100]))
    assert result.certificate.grade is Grade.CERTIFIED
    assert result.n_retain == 1198
    kept = prepared_file.read(tmp_path / "rows.store")
    assert len(kept.positions) == 1198
    with torch.no_grad():
        rows = net.backbone(every.tensors[0][kept.positions])
    torch.testing.assert_close(kept.state.rows.features, rows)
    # New blocks, that of sample 1 and the one cut short, and those that are compared.
    assert read < 1198


def test_a_certified_module_is_fitted_again_from_the_store(tmp_path):
    def fit():
        net = CertifiedClassifier(backbone(), 5)
        own = UnlearningCallback(prepared="rows.store")
        run = trainer(own, limit_val_batches=0)
        run.fit(net, loader(private()), loader(private()))
        return net, run, own

    net, run, own = fit()
    assert len(prepared_file.read(tmp_path / "rows.store").positions) == 600
    before = own.bound_state.state
    again, run, own = fit()
    assert torch.equal(own.bound_state.state.rows.features, before.rows.features)
    assert before.passes > own.bound_state.state.passes == 0  # it was read, not solved
    assert torch.equal(again.head.weight, net.head.weight)
    assert run.unlearn([3]).certificate.grade is Grade.CERTIFIED


def test_a_store_of_other_data_is_written_anew_by_a_fit(tmp_path):
    other = private()
    other.tensors[0][5] += 1
    for data in (private(), other):
        run = trainer(UnlearningCallback(prepared="rows.store"), limit_val_batches=0)
        net = CertifiedClassifier(backbone(), 5)
        run.fit(net, loader(data), loader(data))
        assert run.unlearn([3]).certificate.grade is Grade.CERTIFIED


def test_in_memory_too_the_second_request_reads_what_changed_only():
    _, own, callback, _ = fitted(Counting(), digits(1797))
    read, first = samples_read(lambda: own.unlearn([1]))
    assert read >= 1796
    read, second = samples_read(lambda: own.unlearn([2]))
    assert read < 1797
    assert second.solution.matvecs < first.solution.matvecs
    assert callback.bound_state.state.start is not None


def test_samples_that_change_unasked_are_read_again_and_it_is_said():
    _, own, callback, dataset = fitted(Counting(), digits(1797))
    own.unlearn([1])
    dataset.tensors[0][1234] += 1
    with pytest.warns(UserWarning, match="samples are others than at the request"):
        read, _ = samples_read(lambda: own.unlearn([2]))
    assert read >= 1795


def test_a_store_of_changed_samples_is_refused(tmp_path):
    net, own, callback, dataset = fitted(Counting(), prepared="rows.store")
    own.unlearn([1])
    dataset.tensors[0][123] += 1
    before, store = weights(net), Path("rows.store").read_bytes()
    callback.attached.bound_state = None  # as in another process
    with pytest.raises(DataError, match="the samples that were prepared.*delete the"):
        own.unlearn([2])
    assert same(weights(net), before)
    assert Path("rows.store").read_bytes() == store
    Path("rows.store").unlink()
    assert own.unlearn([2]).n_retain == 598


def test_a_store_too_large_for_memory_stays_on_the_disk(tmp_path, monkeypatch):
    _, own, callback, _ = fitted(Counting(), prepared="rows.store")
    own.unlearn([1])
    callback.attached.bound_state = None
    monkeypatch.setattr(secret_file.large_arrays, "fits", lambda needed, device: False)
    assert own.unlearn([2]).certificate.grade is Grade.CERTIFIED
    assert 2 not in prepared_file.read(tmp_path / "rows.store").positions


def test_a_row_that_is_not_finite_is_found(tmp_path):
    _, own, callback, _ = fitted(Counting(), prepared="rows.store")
    own.unlearn([1])
    kept = callback.bound_state
    kept.state.rows.features[3, 3] = float("nan")
    prepared_file.write(Path("other.store"), kept)
    with pytest.raises(DataError, match="expected prepared state.*not finite"):
        prepared_file.read(Path("other.store"))


def test_a_disk_that_is_full_leaves_model_and_store(tmp_path, monkeypatch):
    net, own, callback, _ = fitted(Counting(), prepared="rows.store")
    own.unlearn([1])
    before, store = weights(net), Path("rows.store").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(secret_file, "_write", full)
    with pytest.raises(SetupError, match="prepared=.*No space left.*free some"):
        own.unlearn([2], save_to="clean.ckpt")
    assert same(weights(net), before)
    assert callback.record.removed == [1]
    assert Path("rows.store").read_bytes() == store
    assert not Path("clean.ckpt").exists()


@pytest.mark.slow
def test_a_kill_leaves_a_usable_store_or_none(tmp_path):
    """Before each of a request's batches and operations on files (kill_job.py)."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.plugin.helpers.kill_job", tmp_path, "store"],
        cwd=ROOT, timeout=240, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    cases = json.loads(ended.stdout.splitlines()[-1])
    assert len(cases) >= 20
    for case in cases:
        made = case["clean"] is not None
        # As before, or without the forgotten samples: never with them once it is made.
        assert case["store"] in (
            [[118, False]] if made else [[118, False], [120, True]]
        )
        assert case["store_after"] == ([117, False] if made else [118, False]), case
        assert not case["hidden"], case
    assert {case["store"][0] for case in cases} == {118, 120}


class Ordered(Plain):
    """Samples in an order that files on a disk may have."""

    def __init__(self, data):
        super().__init__(data)
        self.order = list(range(len(data)))

    def __getitem__(self, i):
        return super().__getitem__(self.order[i])

    def rename(self):
        """A sample goes some places up: none that is compared stands between."""
        self.order.insert(200, self.order.pop(180))


def test_a_forgotten_sample_that_stands_elsewhere_now_is_noticed(tmp_path):
    dataset = Ordered(digits(1797))
    net, own, _, _ = fitted(Counting(), dataset, prepared="rows.store")
    own.unlearn([1], save_to="1.ckpt")
    dataset.rename()  # 191 was 192, which is of the next block
    with torch.no_grad():
        row = net.backbone(dataset[191][0][None])
    _, _, ask = elsewhere("1.ckpt", dataset, [191], "2.ckpt")
    with pytest.raises(DataError, match="the samples that were prepared, got others"):
        ask()
    assert not Path("2.ckpt").exists()
    Path("rows.store").unlink()
    _, _, ask = elsewhere("1.ckpt", dataset, [191], "2.ckpt")
    assert ask().certificate.grade is Grade.CERTIFIED
    rows = prepared_file.read(tmp_path / "rows.store").state.rows.features
    assert not bool(((rows - row).abs().amax(1) < 1e-5).any())


def test_in_memory_too_a_forgotten_sample_that_stands_elsewhere_is_noticed():
    dataset = Ordered(digits(1797))
    net, own, callback, _ = fitted(Counting(), dataset)
    own.unlearn([1])
    dataset.rename()
    with pytest.warns(UserWarning, match="samples are others than at the request"):
        own.unlearn([191])
    with torch.no_grad():
        row = net.backbone(dataset[191][0][None])
    rows = callback.bound_state.state.rows.features
    assert not bool(((rows - row).abs().amax(1) < 1e-6).any())


def test_a_store_that_is_deleted_is_gone_from_memory_too():
    _, own, _, dataset = fitted(Counting(), prepared="rows.store")
    own.unlearn([1])
    dataset.tensors[0][123] += 1
    with pytest.raises(DataError, match="delete the file"):
        own.unlearn([2])
    Path("rows.store").unlink()
    assert own.unlearn([2]).certificate.n_retain == 598
    assert Path("rows.store").exists()


class Same(Plain):
    """Gives what another dataset gives."""

    def __getitem__(self, i):
        return self.data[i]


@pytest.mark.parametrize("relabel", [False, True])
def test_plain_tensors_are_all_compared_in_a_class_of_their_own(relabel, tmp_path):
    dataset = digits(1797)
    _, first, _, _ = fitted(Counting(), dataset, prepared="rows.store")
    first.unlearn([1], save_to="1.ckpt")
    if relabel:
        dataset.tensors[1][700] = (dataset.tensors[1][700] + 1) % 10
    given = loader(Same(dataset))
    own = trainer(UnlearningCallback(prepared="rows.store"))

    def ask():
        return own.unlearn(
            [1100], model=Counting(), train_dataloaders=given, ckpt_path="1.ckpt"
        )

    if relabel:
        with pytest.raises(DataError, match="the samples that were prepared"):
            ask()
    else:
        read, result = samples_read(ask)
        assert result.certificate.grade is Grade.CERTIFIED
        assert read < 1797


def test_plain_tensors_that_change_are_noticed_when_others_are_added(tmp_path):
    every = digits(1200)
    old, new = (TensorDataset(*(t[a:b].clone() for t in every.tensors))
                for a, b in ((0, 1000), (1000, 1200)))  # fmt: skip
    net, first, _, _ = fitted(Counting(), old, prepared="rows.store")
    prepare(first)
    old.tensors[1][300] = (old.tensors[1][300] + 1) % 10
    first.fit_loop.max_epochs = 3
    first.fit(net, loader(ConcatDataset([old, new])))
    with pytest.raises(DataError, match="the samples that were prepared"):
        first.unlearn([1100])
    prepare(first)
    assert first.unlearn([1100]).certificate.grade is Grade.CERTIFIED
    old.tensors[1][900] = (old.tensors[1][900] + 1) % 10  # they are bound anew
    with pytest.raises(DataError, match="the samples that were prepared"):
        first.unlearn([1101])


class Cut(Counting):
    """Halves what is large: where that begins is a setting."""

    def __init__(self, limit=27):
        super().__init__()
        self.save_hyperparameters()
        self.steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1  # another process begins with 0 again
        return super().training_step(cut(batch, self.hparams.limit), batch_idx)


def cut(batch, limit):
    x, y = batch
    return torch.where(x.sum(1, keepdim=True) > limit, x / 2, x), y


def collated(samples, limit):
    return cut(default_collate(samples), limit)


@pytest.mark.parametrize("where", ["module", "collate"])
@pytest.mark.parametrize("moved", [False, True])
def test_settings_that_move_few_samples_are_noticed(where, moved, tmp_path):
    dataset, own = digits(1797), UnlearningCallback(prepared="rows.store")

    def made(limit):
        net = Cut(limit) if where == "module" else Counting()
        given = loader(dataset)
        if where == "collate":
            given.collate_fn = partial(collated, limit=limit)
        return net, given

    (net, given), first = made(27), trainer(own)
    first.fit(net, given)
    first.unlearn([1], save_to="1.ckpt")
    (net, given), own = (
        made(26 if moved else 27),
        UnlearningCallback(prepared="rows.store"),
    )

    def ask():
        return trainer(own).unlearn(
            [191], model=net, train_dataloaders=given, ckpt_path="1.ckpt"
        )

    if moved:
        with pytest.warns(UserWarning, match="another model.*it is not used"):
            read, result = samples_read(ask)
    else:
        read, result = samples_read(ask)
    assert result.certificate.grade is Grade.CERTIFIED
    assert (read >= 1795) == moved
    positions = own.bound_state.positions
    x, _ = cut(dataset[positions], 26 if moved else 27)
    with torch.no_grad():
        rows = net.backbone(x)
    torch.testing.assert_close(own.bound_state.state.rows.features, rows)
