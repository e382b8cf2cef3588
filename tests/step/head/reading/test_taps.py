"""Which modules are read, and how an activation becomes one row a sample."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_unlearn.errors import ArgumentError, ModelError
from lightning_unlearn.step.head.reading import taps
from lightning_unlearn.step.head.reading.pooling import pooled


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()


def blocks(n=6):
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(*map(Block, [4] * n)))


class Words(nn.Module):
    """As in transformers: keywords in, a mapping out, an attention mask."""

    def __init__(self, depth=6):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
            for _ in range(depth)
        )

    def forward(self, input_ids, attention_mask):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=attention_mask == 0)
        return {"last_hidden_state": x}


IMAGES = torch.randn(5, 3, 8, 8)


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (blocks(), IMAGES, ["1.2", "1.3", "1.4", "1.5"]),
        (blocks(2), IMAGES, ["1.0", "1.1"]),
        # One block repeats nowhere: layers, each up to the next one with weights.
        (
            nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.LayerNorm(3)),
            torch.randn(5, 4),
            ["1", "3"],
        ),
        (nn.Sequential(Block(3), nn.Flatten()), IMAGES, ["1"]),
    ],
)
def test_auto_takes_the_last_blocks_or_layers(model, inputs, expected):
    assert taps.find(model, inputs) == expected


def test_auto_takes_the_last_layers_of_a_transformer():
    words = {
        "input_ids": torch.randint(20, (3, 7)),
        "attention_mask": torch.ones(3, 7, dtype=torch.long),
    }
    model = Words().eval()
    names = taps.find(model, words)
    assert names == [""]  # of texts the last hidden state
    last = taps.activations(model, names, words)[-1]
    torch.testing.assert_close(last, model(**words)["last_hidden_state"])


def test_a_model_without_activations_is_refused():
    class Nothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return x

    with pytest.raises(ModelError, match="that return activations"):
        taps.find(Nothing(), torch.randn(2, 2))


def test_activations_are_those_of_the_modules_and_no_hook_stays():
    model = blocks()
    first, second = taps.activations(model, ["1.4", "1.0"], IMAGES)
    x = model[0](IMAGES)
    torch.testing.assert_close(second, model[1][0](x))
    torch.testing.assert_close(first, model[1][:5](x))
    assert not any(m._forward_hooks for m in model.modules())


def test_of_a_module_that_is_called_twice_the_last_call_counts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x).relu())

    model, x = Twice(), torch.randn(3, 4)
    torch.testing.assert_close(taps.activations(model, ["layer"], x)[0], model(x))


def test_hooks_are_taken_off_when_the_model_fails():
    model = blocks()
    with pytest.raises(RuntimeError, match="expected input"):
        taps.activations(model, ["1.0"], torch.randn(2, 7, 8, 8))
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ("1.0", "expected taps"),
        ([], "expected taps"),
        (None, "expected taps"),
        (["1.9"], r"got '1.9': choose among 0, 1, 1.0"),
        (["1.0", "1.0"], "each tap once"),
    ],
)
def test_bad_names_are_refused(names, match):
    with pytest.raises(ArgumentError, match=match):
        taps.check_names(blocks(), names)


def test_a_tap_that_is_not_called_is_refused():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    model.forward = model["used"].forward
    with pytest.raises(ModelError, match="the tap 'other'.*not called"):
        taps.activations(model, ["other"], torch.randn(2, 2))


def test_maps_are_averaged_over_a_grid_that_fits():
    x = torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(pooled(x, (2, 3)), F.avg_pool2d(x, (3, 2)).flatten(1))
    assert pooled(x, (9, 9)).shape == (3, 4 * 36)
    torch.testing.assert_close(pooled(x, (1, 1)), x.mean((2, 3)))


def test_tokens_give_their_mean_and_the_first():
    x = torch.randn(3, 5, 4)
    torch.testing.assert_close(pooled(x, (1, 1)), torch.cat([x.mean(1), x[:, 0]], 1))


def test_padding_counts_in_no_mean():
    x, mask = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    rows = pooled(x, (1, 1), ("mean",), {"attention_mask": mask})
    torch.testing.assert_close(rows[0, :4], x[0, :3].mean(0))
    torch.testing.assert_close(rows[1, :4], x[1].mean(0))


def test_vectors_stay_and_are_single_precision():
    x = torch.randn(3, 4, dtype=torch.float64)
    rows = pooled(x, (2, 2))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, x.float())


def test_other_shapes_are_refused():
    with pytest.raises(ModelError, match=r"got \(2, 3, 4, 5, 6\)"):
        pooled(torch.randn(2, 3, 4, 5, 6), (2, 2))
