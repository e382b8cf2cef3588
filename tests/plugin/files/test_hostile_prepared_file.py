import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_unlearn import prepare
from lightning_unlearn.errors import DataError
from lightning_unlearn.plugin.files import prepared_file
from tests.helpers.nets import (
    fitted,
    same,
    weights,
)

FORGET = [0, 5, 77]


@pytest.fixture
def kept(tmp_path):
    _, fit_trainer, callback, _ = fitted(prepared=tmp_path / "secret.pt")
    prepare(fit_trainer)
    return callback.bound_state, tmp_path / "secret.pt"


def test_the_file_round_trips(kept):
    state, path = kept
    again = prepared_file.read(path)
    assert (again.made_from, again.salt, again.data) == (
        state.made_from, state.salt, state.data,
    )  # fmt: skip
    assert again.positions == state.positions
    assert torch.equal(again.state.factor.inverse, state.state.factor.inverse)
    assert torch.equal(again.state.rows.features, state.state.rows.features)
    prepared_file.write(path, state)  # its own kind may be replaced
    assert [p.name for p in path.parent.iterdir() if "secret" in p.name] == [path.name]


def test_another_file_is_neither_read_nor_replaced_nor_deleted(kept, tmp_path):
    state, path = kept
    for name in ("notes.txt", "other.ckpt"):
        other = tmp_path / name
        torch.save({"a": 1}, other) if name.endswith("ckpt") else other.write_text("hi")
        content = other.read_bytes()
        with pytest.raises(DataError, match="for prepared=, got .*something else"):
            prepared_file.write(other, state)
        net, fit_trainer, callback, _ = fitted(prepared=other)
        before = weights(net)
        with pytest.raises(DataError, match="expected prepared state in"):
            fit_trainer.unlearn(FORGET)
        assert same(before, weights(net))
        assert other.read_bytes() == content


def opened(path):
    """Head and tensors of a file."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return dict(file.metadata()), {name: file.get_tensor(name) for name in names}


def forged(path, head, tensors):
    """A file with another head or other tensors, its digest made anew."""
    digest = prepared_file.tensors_digest(sorted(tensors.items()))
    other = path.with_name("changed.pt")
    save_file(tensors, other, {"digest": digest, **head})
    return other


def test_a_damaged_tensor_is_found(kept):
    _, path = kept
    for change in (
        lambda head, tensors: tensors["start"].add_(1),  # the digest is of before
        lambda head, tensors: tensors.pop("factor"),
        lambda head, tensors: head.update(format="lightning_unlearn prepared state, 1"),
        lambda head, tensors: head.pop("salt"),
        lambda head, tensors: head.update(more="3"),
        lambda head, tensors: head.update(environment="[1]"),
        lambda head, tensors: head.update(environment='{"threads": 1}'),
        lambda head, tensors: head.pop("digest"),
    ):
        head, tensors = opened(path)
        tensors = {name: t.clone() for name, t in tensors.items()}
        change(head, tensors)
        other = path.with_name("changed.pt")
        save_file(tensors, other, head)
        with pytest.raises(DataError, match="expected prepared state in"):
            prepared_file.read(other)
    keys = {"format", "made_from", "salt", "data", "environment", "digest"}
    assert set(opened(path)[0]) == keys


def test_shapes_that_do_not_fit_are_found(kept):
    _, path = kept
    for name, wrong in {
        "positions": torch.arange(600).flip(0),
        "start": torch.zeros(330),
        "gradient": torch.zeros(7, dtype=torch.float64),
        "factor": torch.zeros(3, 3),
        "features": torch.zeros(5, 32),
    }.items():
        head, tensors = opened(path)
        head.pop("digest")
        with pytest.raises(
            DataError, match="expected prepared state in.*it(s| does not have) "
        ):
            prepared_file.read(forged(path, head, {**tensors, name: wrong}))
    head, tensors = opened(path)
    tensors.pop("positions")
    with pytest.raises(DataError, match="expected prepared state in.*positions"):
        prepared_file.read(
            forged(path, {k: head[k] for k in head if k != "digest"}, tensors)
        )


@pytest.mark.parametrize("name", ["features", "targets", "start", "factor"])
def test_a_number_in_place_of_a_tensor_is_named(kept, name):
    _, path = kept
    head, tensors = opened(path)
    head.pop("digest")
    wrong = {**tensors, name: torch.tensor(1.0, dtype=tensors[name].dtype)}
    with pytest.raises(DataError, match="expected prepared state in"):
        prepared_file.read(forged(path, head, wrong))


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
        prepared_file.read(other)
    except DataError:
        pass
    else:  # padding between the records of the archive, or its own bookkeeping
        assert len(content) == path.stat().st_size
