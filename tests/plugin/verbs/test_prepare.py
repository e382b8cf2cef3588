import dataclasses
import os
import pickle
from array import array
from pathlib import Path

import pytest
import torch

from lightning_unlearn import UnlearningCallback, preflight, prepare
from lightning_unlearn.errors import DataError, ModelError
from lightning_unlearn.guarantee.claims import Grade
from lightning_unlearn.plugin.files import prepared_file
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.weights.passes import passes
from lightning_unlearn.weights.scope import Scope
from tests.helpers.lightning import pl
from tests.helpers.nets import (
    MLP,
    HeadNet,
    digits,
    fitted,
    loader,
    same,
    trainer,
    weights,
)

FORGET = [0, 5, 77]


NOT_USED = "what was prepared is of another model.*prepare again"


def cold_and_prepared(make, **options):
    """Results of the same request on the same trained model, without and with."""
    net, fit_trainer, _, dataset = fitted(make(), **options)
    fit_trainer.save_checkpoint("trained.ckpt")
    results = []
    for prepared in (False, True):
        net = make()
        fresh = trainer(UnlearningCallback(**options))
        sources = {
            "model": net,
            "train_dataloaders": loader(dataset),
            "ckpt_path": "trained.ckpt",
        }
        if prepared:
            prepare(fresh, **sources)
            sources = {}
        results.append((fresh.unlearn(FORGET, **sources), weights(net)))
    return results


def test_a_prepared_head_gets_the_same_certificate():
    (cold, w_cold), (fast, w_fast) = cold_and_prepared(HeadNet)
    for name in ("grade", "epsilon", "sensitivity", "noise_std", "constants", "bound"):
        assert getattr(cold.certificate, name) == getattr(fast.certificate, name)
    assert fast.certificate.grade is Grade.CERTIFIED
    assert fast.solution.matvecs < cold.solution.matvecs / 2
    assert fast.solution.method == "Newton by a stored factor"


def test_without_noise_it_is_within_the_sensitivity():
    options = {"noise_std": 0.0, "tolerance": 1e-7}
    (cold, w_cold), (fast, w_fast) = cold_and_prepared(HeadNet, **options)
    distance = sum(float((w_cold[k] - w_fast[k]).norm()) ** 2 for k in w_cold) ** 0.5
    rounding = 1e-5  # one cast to float32
    assert distance <= cold.certificate.sensitivity + rounding


def test_a_prepared_network_takes_the_same_step_in_fewer_passes():
    options = {"noise_std": 0.0, "damping": 0.5}
    (cold, w_cold), (fast, w_fast) = cold_and_prepared(MLP, **options)
    assert cold.solution.matvecs - fast.solution.matvecs > 0.9
    for name in w_cold:
        torch.testing.assert_close(w_cold[name], w_fast[name], rtol=1e-3, atol=1e-4)
    options = {"max_norm": 5.0, "accept_noise": True}
    (cold, _), (fast, _) = cold_and_prepared(MLP, **options)
    assert cold.certificate.sensitivity == fast.certificate.sensitivity
    assert fast.certificate.grade is Grade.VACUOUS


def test_after_a_request_only_retained_features_stay():
    net, fit_trainer, callback, dataset = fitted()
    prepare(fit_trainer)
    kept, before = callback.bound_state, callback.bound_state.state
    result = fit_trainer.unlearn(FORGET)
    assert any("what is kept" in t for t in result.certificate.not_covered)
    after = callback.bound_state.state
    assert after.factor is None  # it was of all samples
    assert not set(FORGET) & set(after.positions.tolist())
    assert len(after.positions) == 597
    for row in before.rows.features[FORGET]:
        assert not bool((after.rows.features == row).all(1).any())
    assert (
        callback.bound_state.data != kept.data
    )  # a fingerprint of the rest, newly salted
    assert callback.bound_state.salt != kept.salt
    second = fit_trainer.unlearn([1, 2])
    assert second.certificate.grade is Grade.CERTIFIED
    assert len(callback.bound_state.positions) == 595


def test_features_are_read_once():
    calls = array("q")  # a list would be put back after a look

    class Counting(HeadNet):
        def training_step(self, batch, batch_idx):
            calls.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    _, fit_trainer, callback, _ = fitted(Counting(), digits(1797))

    def samples_read(action):
        del calls[:]
        action()
        return sum(calls)

    assert samples_read(lambda: prepare(fit_trainer)) >= 1797
    # Three blocks of 64 are compared, one is read in other companies, and those of the
    # forgotten samples are read again; up to 512 are compared with what they were.
    assert samples_read(lambda: fit_trainer.unlearn(FORGET)) < 512 + 700
    result = fit_trainer.unlearn([9, 10])  # from the rows that were kept
    assert result.n_retain == 1792
    state = callback.bound_state.state
    assert state.start is not None
    assert state.positions.tolist() == callback.retained_indices
    assert samples_read(lambda: prepare(fit_trainer)) < 1792  # some are compared
    kept = callback.bound_state
    assert prepare(fit_trainer).passes == 0  # all is there
    assert callback.bound_state is kept
    assert samples_read(lambda: prepare(fit_trainer, afresh=True)) >= 1792
    again = callback.bound_state.state.start  # to the tolerance
    torch.testing.assert_close(again, state.start, rtol=0, atol=1e-4)
    assert fit_trainer.unlearn([11]).certificate.grade is Grade.CERTIFIED


def test_changed_samples_are_read_again_though_rows_of_the_others_are_known():
    _, fit_trainer, callback, dataset = fitted()
    prepare(fit_trainer)
    before = callback.bound_state.state.rows.features
    dataset.tensors[0][200] += 1
    done = prepare(fit_trainer)
    after = callback.bound_state.state.rows.features
    assert done.passes > 0
    assert (before != after).any(1).nonzero().flatten().tolist() == [200]


def test_what_is_of_another_model_is_not_used():
    net, fit_trainer, callback, dataset = fitted(MLP(), noise_std=0.0)
    prepare(fit_trainer)
    with torch.no_grad():
        net.net[0].weight[0, 0] += 1e-3
    with pytest.warns(UserWarning, match=NOT_USED):
        fit_trainer.unlearn(FORGET)
    net, fit_trainer, callback, dataset = fitted(prepared="secret.pt")
    prepare(fit_trainer)
    fit_trainer.save_checkpoint("trained.ckpt")
    other = trainer(UnlearningCallback(prepared="secret.pt", l2=2e-3))
    with pytest.warns(UserWarning, match=NOT_USED):
        other.unlearn(
            FORGET,
            model=HeadNet(),
            train_dataloaders=loader(dataset),
            ckpt_path="trained.ckpt",
        )
    kept = prepared_file.read(Path("secret.pt"))  # that of this model, in its place
    assert not set(FORGET) & set(kept.positions)


def test_other_blocks_are_another_preparation():
    _, fit_trainer, _, dataset = fitted(prepared="secret.pt")
    fit_trainer.save_checkpoint("trained.ckpt")
    prepare(fit_trainer)
    other = trainer(UnlearningCallback(prepared="secret.pt", batch_size=50))
    with pytest.warns(UserWarning, match=NOT_USED):
        other.unlearn(
            FORGET,
            model=HeadNet(),
            train_dataloaders=loader(dataset),
            ckpt_path="trained.ckpt",
        )


def test_a_changed_backbone_is_another_model():
    net, fit_trainer, callback, _ = fitted()
    prepare(fit_trainer)
    with torch.no_grad():
        net.backbone[0].bias[0] += 1e-3
    with pytest.warns(UserWarning, match=NOT_USED):
        result = fit_trainer.unlearn(FORGET)
    assert result.certificate.grade is Grade.NONE


def test_other_samples_are_refused_and_nothing_changes():
    net, fit_trainer, callback, dataset = fitted()
    prepare(fit_trainer)
    kept, before = callback.bound_state, weights(net)
    dataset.tensors[0][FORGET[1]] += 0.1  # not one of the fingerprint's
    with pytest.raises(DataError, match="the samples that were prepared.*prepare"):
        fit_trainer.unlearn(FORGET)
    assert callback.bound_state is kept
    assert same(before, weights(net))


def test_training_on_drops_it():
    net, fit_trainer, callback, dataset = fitted(max_epochs=1)
    prepare(fit_trainer)
    fit_trainer.fit_loop.max_epochs = 2
    fit_trainer.fit(net, loader(dataset))
    assert callback.bound_state is None


def test_it_is_in_no_checkpoint_and_travels_nowhere():
    _, fit_trainer, callback, _ = fitted()
    fit_trainer.save_checkpoint("before.ckpt")
    prepare(fit_trainer)
    fit_trainer.save_checkpoint("after.ckpt")
    states = [
        torch.load(name, weights_only=True)["callbacks"][callback.state_key]
        for name in ("before.ckpt", "after.ckpt")
    ]
    assert states[0] == states[1]
    assert pickle.loads(pickle.dumps(callback)).bound_state is None


def test_a_failed_request_leaves_it(monkeypatch):
    net, fit_trainer, callback, _ = fitted(prepared="secret.pt")
    prepare(fit_trainer)
    kept, before = callback.bound_state, weights(net)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(PreparedHead, "step", interrupted)
    with pytest.raises(SystemExit):
        fit_trainer.unlearn(FORGET)
    assert callback.bound_state is kept
    assert os.path.exists("secret.pt")
    assert same(before, weights(net))


def test_an_interrupt_after_the_commit_leaves_nothing(monkeypatch, tmp_path):
    net, fit_trainer, callback, _ = fitted(prepared="secret.pt")
    prepare(fit_trainer)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "lightning_unlearn.plugin.request.trainer_state.forget_scores", interrupted
    )
    with pytest.raises(SystemExit):
        fit_trainer.unlearn(FORGET)
    assert callback.record.removed == FORGET  # it was done
    assert callback.bound_state.state.factor is None
    assert not set(FORGET) & set(prepared_file.read(tmp_path / "secret.pt").positions)


def test_prepared_again_after_other_weights_were_loaded():
    # Rows of samples forgotten since are gone; they may be asked for once more.
    net, fit_trainer, callback, dataset = fitted()
    fit_trainer.save_checkpoint("old.ckpt")
    prepare(fit_trainer)
    fit_trainer.unlearn([5, 599])
    with pytest.warns(UserWarning, match="from before 2 samples were unlearned"):
        result = fit_trainer.unlearn([5, 599], ckpt_path="old.ckpt")
    assert result.n_retain == 598
    assert result.certificate.grade is Grade.CERTIFIED


def test_a_network_prepared_on_the_rest_needs_no_gradient():
    net, fit_trainer, callback, dataset = fitted(MLP(), noise_std=0.0)
    rest = trainer(UnlearningCallback(noise_std=0.0, l2=1e-4))
    sources = {"model": net, "train_dataloaders": loader(dataset)}
    prepare(rest, **sources)
    kept = rest.callbacks[0].bound_state
    state = dataclasses.replace(kept.state, positions=torch.arange(3, 600))
    with passes(net, Scope(net, net.parameters()), torch.float32):
        assert state.known(None, 0).passes == 0
    assert torch.equal(state.known(None, 0).gradient, kept.state.gradient)


class PerBatch(HeadNet):
    """Rows depend on the largest value of their batch: so on other samples."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.head.loss(self.backbone(x / x.abs().amax()), y).mean()


def test_no_retained_row_remembers_a_forgotten_sample():
    # Their block's largest value: everything else of the block moves with it.
    data = digits(600)
    data.tensors[0][300] *= 4
    net, fit_trainer, callback, dataset = fitted(PerBatch(), data, max_epochs=1)
    prepare(fit_trainer)
    with_it = callback.bound_state.state.rows.features.clone()
    fit_trainer.unlearn([300])
    kept = callback.bound_state.state
    # What a world that never saw the sample reads: the same blocks without it.
    positions = [i for i in range(600) if i != 300]
    blocks = {}
    for i in positions:
        blocks.setdefault(i // 64, []).append(i)
    with torch.no_grad():
        clean = [
            net.backbone(X / X.abs().amax())
            for X in (data.tensors[0][part] for part in blocks.values())
        ]
    assert torch.equal(kept.rows.features, torch.cat(clean))
    assert not torch.equal(with_it[positions], torch.cat(clean))  # it did remember


def test_a_change_anywhere_is_found_and_prepared_again():
    net, fit_trainer, callback, dataset = fitted(prepared="secret.pt")
    prepare(fit_trainer)
    dataset.tensors[0][123] = 0  # neither forgotten nor in a compared block
    with pytest.raises(DataError, match="the samples that were prepared.*prepare"):
        fit_trainer.unlearn(FORGET)
    callback.attached.bound_state = None  # as in another process
    with pytest.raises(DataError, match="the samples that were prepared.*prepare"):
        fit_trainer.unlearn(FORGET)
    prepare(fit_trainer)
    clean = net.backbone(torch.zeros(1, 64)).detach()
    assert torch.allclose(callback.bound_state.state.rows.features[123], clean[0])
    fit_trainer.unlearn(FORGET)


def test_preflight_uses_it_and_leaves_it():
    _, fit_trainer, callback, _ = fitted()
    prepare(fit_trainer)
    kept = callback.bound_state
    look = preflight(fit_trainer, FORGET)
    assert callback.bound_state is kept
    assert 0 < look.seconds < 5


def test_it_says_what_it_cost(caplog):
    _, fit_trainer, _, _ = fitted()
    with caplog.at_level("INFO", logger=pl.__name__):
        done = prepare(fit_trainer)
    assert str(done) in caplog.text
    assert done.seconds > 0
    assert done.nbytes > 600 * 32 * 4 + 330 * 330 * 4
    for part in ("600 samples", "factor", "as secret as the samples", "passes"):
        assert part in str(done)
    _, fit_trainer, _, _ = fitted(MLP(), noise_std=0.0)
    assert "the gradient" in str(prepare(fit_trainer))


def test_samples_without_a_fingerprint_bind_no_network():
    class Odd(torch.utils.data.Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, i):
            return {"x": torch.full((64,), i / 64), "id": object()}

    class Net(MLP):
        def training_step(self, batch, batch_idx):
            x = batch["x"]
            return super().training_step((x, torch.zeros(len(x)).long()), batch_idx)

    def collate(samples):
        return {"x": torch.stack([s["x"] for s in samples])}

    callback = UnlearningCallback(noise_std=0.0)
    fit_trainer = trainer(callback, 1)
    data = torch.utils.data.DataLoader(Odd(), 16, collate_fn=collate)
    fit_trainer.fit(Net(), data)
    with pytest.raises(ModelError, match="could not be bound.*without prepare"):
        prepare(fit_trainer)
    assert callback.bound_state is None
