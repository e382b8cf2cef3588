import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_unlearn import (
    prepare,
)
from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin import store
from tests.plugin.nets import (
    fitted,
    same,
    weights,
)

FORGET = [0, 5, 77]


@pytest.fixture
def kept(tmp_path):
    _, fit_trainer, callback, _ = fitted(prepared=tmp_path / "secret.pt")
    prepare(fit_trainer)
    return callback.kept, tmp_path / "secret.pt"


def test_the_file_round_trips(kept):
    state, path = kept
    again = store.read(path)
    assert (again.made_from, again.salt, again.data) == (
        state.made_from, state.salt, state.data,
    )  # fmt: skip
    assert again.positions == state.positions
    assert torch.equal(again.state.factor.inverse, state.state.factor.inverse)
    assert torch.equal(again.state.rows.features, state.state.rows.features)
    store.write(path, state)  # its own kind may be replaced
    assert [p.name for p in path.parent.iterdir() if "secret" in p.name] == [path.name]


def test_another_file_is_neither_read_nor_replaced_nor_deleted(kept, tmp_path):
    state, path = kept
    for name in ("notes.txt", "other.ckpt"):
        other = tmp_path / name
        torch.save({"a": 1}, other) if name.endswith("ckpt") else other.write_text("hi")
        content = other.read_bytes()
        with pytest.raises(DataError, match="expected prepared state in.*prepared="):
            store.write(other, state)
        net, fit_trainer, callback, _ = fitted(prepared=other)
        before = weights(net)
        with pytest.raises(DataError, match="expected prepared state in"):
            fit_trainer.unlearn(FORGET)
        assert same(before, weights(net))
        assert other.read_bytes() == content


def test_a_damaged_tensor_is_found(kept):
    _, path = kept
    plain = torch.load(path, weights_only=True)
    for change in (
        lambda p: p["tensors"]["start"].add_(1),
        lambda p: p["tensors"].pop("factor"),
        lambda p: p.update(format="lightning_unlearn prepared state, 2"),
        lambda p: p.pop("salt"),
        lambda p: p.update(salt=3),
        lambda p: p.update(tensors={"positions": [1]}),
    ):
        changed = torch.load(path, weights_only=True)
        change(changed)
        other = path.with_name("changed.pt")
        torch.save(changed, other)
        with pytest.raises(DataError, match="expected prepared state in"):
            store.read(other)
    assert set(plain) == {"format", "made_from", "salt", "data", "digest", "tensors"}


def test_shapes_that_do_not_fit_are_found(kept):
    _, path = kept
    for name, wrong in {
        "positions": torch.arange(600).flip(0),
        "start": torch.zeros(330),
        "gradient": torch.zeros(7, dtype=torch.float64),
        "factor": torch.zeros(3, 3),
        "features": torch.zeros(5, 32),
    }.items():
        plain = torch.load(path, weights_only=True)
        plain["tensors"][name] = wrong
        plain["digest"] = store.tensors_digest(sorted(plain["tensors"].items()))
        other = path.with_name("changed.pt")
        torch.save(plain, other)
        with pytest.raises(
            DataError, match="expected prepared state in.*it(s| does not have) "
        ):
            store.read(other)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_damage_gives_another_error(kept, data):
    _, path = kept
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    other = path.with_name("damaged.pt")
    other.write_bytes(bytes(content))
    try:
        store.read(other)
    except DataError:
        pass
    else:  # padding between the records of the archive, or its own bookkeeping
        assert len(content) == path.stat().st_size
