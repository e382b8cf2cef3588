"""Models of texts: how they are called, where they are read, what counts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_unlearn import PublicBackbone
from lightning_unlearn.errors import ArgumentError, DataError, ModelError
from lightning_unlearn.step.head.reading import taps
from tests.helpers.texts import (
    WIDTH,
    Classifier,
    Encoder,
    Sentences,
    TwoEncoders,
    padded,
    texts,
)

SOME = texts(8)


def test_by_default_the_last_layer_gives_mean_and_max_of_the_tokens_that_count():
    model = Encoder()
    made = PublicBackbone(model)  # nothing public is needed
    assert (made.taps, made.standardize) == ([""], "none")
    rows = made(padded(SOME))
    for row, sample in zip(rows, SOME, strict=True):
        x = model(torch.tensor([sample["input_ids"]])).last_hidden_state[0]
        parts = [F.normalize(part, dim=0) for part in (x.mean(0), x.amax(0))]
        expected = 8 * torch.cat(parts) / 2**0.5
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tokens", ["mean", "max", "cls", "last"])
def test_rows_do_not_depend_on_padding(side, tokens):
    model = Encoder(causal=True)
    made = PublicBackbone(model, tokens=[tokens], unit_norm=False, scale=1.0)
    rows = made(padded(SOME, side))
    how = {
        "mean": lambda x: x.mean(0), "max": lambda x: x.amax(0),
        "cls": lambda x: x[0], "last": lambda x: x[-1],
    }[tokens]  # fmt: skip
    for row, sample in zip(rows, SOME, strict=True):
        x = model(torch.tensor([sample["input_ids"]])).last_hidden_state[0]
        torch.testing.assert_close(row, how(x), rtol=1e-4, atol=1e-5)


def test_a_text_of_padding_alone_gives_finite_rows():
    made = PublicBackbone(Encoder())
    none = {"input_ids": torch.ones(2, 3, dtype=torch.int64)}
    none["attention_mask"] = torch.zeros_like(none["input_ids"])
    assert torch.isfinite(made(none)).all()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Encoder(), [""]),
        (Encoder(shared=True), [""]),
        (Classifier(), ["bert"]),
        (Sentences(), ["auto_model"]),
    ],
)
def test_texts_are_read_at_their_last_layer(model, expected):
    made = PublicBackbone(model, public_data=DataLoader(SOME, 4, collate_fn=padded))
    assert made.taps == expected
    assert made(padded(SOME)).shape == (8, 2 * WIDTH)


def test_a_layer_that_is_called_again_and_again_is_read_once_at_its_end():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer = nn.Linear(4, WIDTH), nn.Sequential(
                nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)
            )  # fmt: skip

        def forward(self, x):
            x = self.first(x)
            for _ in range(6):
                x = self.layer(x)
            return x

    assert taps.find(Again(), torch.randn(3, 4)) == ["first", "layer"]


def test_two_encoders_are_refused_by_name_and_one_of_them_is_read():
    batch = {**padded(SOME), "pixel_values": torch.randn(8, 3, 4, 4)}
    model = TwoEncoders()
    samples = [{k: v[i] for k, v in batch.items()} for i in range(8)]
    with pytest.raises(ModelError, match="one encoder.*text_model, vision_model"):
        PublicBackbone(model, public_data=samples)
    named = ["text_model", "vision_model.3"]
    assert PublicBackbone(model, named, public_data=samples)(batch).shape == (8, 32)
    images = torch.randn(9, 3, 4, 4)
    made = PublicBackbone(model.vision_model, public_data=images)
    assert made.taps == ["1", "2", "3"]
    assert made.standardize == "public"


def test_the_model_s_own_output_can_be_read():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    x = torch.randn(9, 4)
    made = PublicBackbone(
        model, [""], standardize="none", unit_norm=False, scale=1.0, public_data=x
    )
    torch.testing.assert_close(made(x), model(x))
    assert "read at its end" in made.description
    own = ["", "0"]
    assert PublicBackbone(model, own, public_data=x).n_features == 6


def test_a_sentence_transformer_s_own_embedding_can_be_read():
    model, batch = Sentences(), padded(SOME)
    made = PublicBackbone(
        model, [""], unit_norm=False, scale=1.0,
        public_data=DataLoader(SOME, 4, collate_fn=padded),
    )  # fmt: skip
    expected = model({k: batch[k] for k in ("input_ids", "attention_mask")})
    torch.testing.assert_close(made(batch), expected["sentence_embedding"])


def test_columns_that_are_no_inputs_are_left_out():
    batch = padded(SOME)
    assert "user_id" in batch
    made = PublicBackbone(Encoder())
    other = {k: v for k, v in batch.items() if k != "user_id"}
    assert torch.equal(made(batch), made(other))


class Adapted(nn.Module):
    """As a PeftModel: any keywords, and the model inside says which."""

    def __init__(self):
        super().__init__()
        self.base_model = Encoder()

    def get_base_model(self):
        return self.base_model

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


def test_of_a_model_with_adapters_the_model_inside_says_what_it_takes():
    made = PublicBackbone(Adapted(), public_data=DataLoader(SOME, 4, collate_fn=padded))
    assert made.taps == [""]
    assert made(padded(SOME)).shape == (8, 2 * WIDTH)


def test_texts_that_are_not_padded_are_refused_with_what_to_do():
    with pytest.raises(DataError, match="DataCollatorWithPadding"):
        PublicBackbone(Encoder(), public_data=[SOME[0], SOME[0]])


def test_texts_of_different_lengths_are_refused_with_what_to_do():
    samples = [{k: torch.as_tensor(v) for k, v in s.items()} for s in SOME]
    told = r"got list \(RuntimeError: .*that pads them, DataCollatorWithPadding"
    with pytest.raises(DataError, match=told):
        PublicBackbone(Encoder(), public_data=samples)


def test_a_model_that_wants_other_inputs_is_told_so():
    class Other(nn.Module):
        def forward(self, decoder_input_ids, input_ids=None):
            raise ValueError("no decoder_input_ids")

    with pytest.raises(ModelError, match=r"\(Other\) that can be called.*input_ids"):
        PublicBackbone(Other(), public_data=DataLoader(SOME, 4, collate_fn=padded))


@pytest.mark.parametrize("tokens", ["median", [], ["mean", "mean"], 3])
def test_bad_tokens_are_refused(tokens):
    with pytest.raises(ArgumentError, match="expected .*tokens="):
        PublicBackbone(Encoder(), tokens=tokens)
