"""Texts in batches as long as their longest: rows must be a text's own."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from lightning_unlearn import PublicBackbone, UnlearningCallback
from lightning_unlearn.errors import GuaranteeError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import HeadNet, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")


class Words(nn.Module):
    """Tokens in, tokens out; 0 is the pad."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Embedding(30, 16), nn.Linear(16, 16)

    def forward(self, input_ids, attention_mask=None):
        return torch.tanh(self.layer(self.embed(input_ids)))


def texts(lengths, seed=0):
    """Token ids and classes: a list of dictionaries, as a tokenizer leaves them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        y = int(torch.randint(10, (), generator=generator))
        ids = torch.randint(1, 30, (length,), generator=generator)
        ids[0] = y + 1
        found.append({"input_ids": ids, "labels": y})
    return found


def collate(masked, left=False):
    """A padding collator."""

    def padded(samples):
        ids = [s["input_ids"].flip(0) if left else s["input_ids"] for s in samples]
        batch = {"input_ids": pad_sequence(ids, batch_first=True)}
        if left:
            batch["input_ids"] = batch["input_ids"].flip(1)
        if masked:
            lengths = torch.tensor([len(i) for i in ids])[:, None]
            mask = torch.arange(batch["input_ids"].shape[1]) < lengths
            batch["attention_mask"] = (mask.flip(1) if left else mask).long()
        batch["labels"] = torch.tensor([s["labels"] for s in samples])
        return batch

    return padded


class Reads(HeadNet):
    """Mean and first token of a public network, as PublicBackbone takes them."""

    def __init__(self, public, masked):
        super().__init__()
        torch.manual_seed(0)
        ready = DataLoader(public, 8, collate_fn=collate(masked))
        self.backbone = PublicBackbone(
            Words(),
            ["layer"],
            public_data=ready,
            tokens=("mean", "cls"),
            standardize="public",
        )

    def training_step(self, batch, batch_idx):
        keywords = {k: v for k, v in batch.items() if k != "labels"}
        return self.head.loss(self.backbone(keywords), batch["labels"]).mean()


def unlearn(data, masked, public=None, **options):
    fit_trainer = trainer(UnlearningCallback(), max_epochs=1)
    net = Reads(public or texts([6] * 40, seed=9), masked)
    fit_trainer.fit(
        net, DataLoader(data, 32, shuffle=True, collate_fn=collate(masked, **options))
    )
    return fit_trainer.unlearn([3]).certificate


def short_but_for(places, n=400, length=60):
    lengths = [5] * n
    for place in places:
        lengths[place] = length
    return lengths


VARIED = torch.randint(3, 12, (200,), generator=torch.Generator().manual_seed(0))
LENGTHS = {
    "varied": VARIED.tolist(),
    "one long text": short_but_for([333]),
    "one long text of one batch": short_but_for([17], n=30),
    "a long text in each batch": short_but_for(range(11, 400, 32)),
    "sorted": sorted(VARIED.tolist()),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", LENGTHS)
def test_padding_without_a_mask_is_refused_by_name(kind, seed):
    data = texts(LENGTHS[kind], seed)
    with pytest.raises(GuaranteeError, match="padded to another length.*_mask"):
        unlearn(data, masked=False)


@pytest.mark.parametrize("kind", LENGTHS)
def test_with_a_mask_it_is_certified(kind):
    assert unlearn(texts(LENGTHS[kind]), masked=True).grade is Grade.CERTIFIED


def test_texts_of_one_length_need_no_mask():
    assert unlearn(texts([7] * 200), masked=False).grade is Grade.CERTIFIED


@pytest.mark.parametrize("length", [6, 40])
def test_a_forgotten_text_among_public_ones_is_found_however_it_is_padded(length):
    data = texts(VARIED.tolist())
    public = [*texts([5] * 30, seed=9), data[3], *texts([length], seed=8)]
    with pytest.raises(GuaranteeError, match=r"position 3 of the training data\)"):
        unlearn(data, masked=True, public=public)


def test_of_left_padded_texts_the_first_token_that_counts_is_read():
    """The first one is a pad: another one in a longer batch."""
    data = texts(LENGTHS["varied"])
    assert unlearn(data, masked=True, left=True).grade is Grade.CERTIFIED
