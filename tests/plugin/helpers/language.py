"""A small GPT on characters, whole and with low-rank adapters."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from tests.helpers.lightning import L

CONTEXT, WIDTH = 12, 16
TEXT = (
    "the right to be forgotten asks that what was learnt from a person goes when the "
    "person goes. a model is a long memory with short sentences; "
) * 3
LETTERS = sorted(set(TEXT))


def text(n=61):
    """Windows of characters (n, CONTEXT + 1), as positions in `LETTERS`."""
    codes = torch.tensor([LETTERS.index(c) for c in TEXT])
    return TensorDataset(codes.unfold(0, CONTEXT + 1, 3)[:n].contiguous())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x):
        heads = [
            t.unflatten(-1, (2, WIDTH // 2)).transpose(1, 2)
            for t in self.qkv(self.before(x)).chunk(3, dim=-1)
        ]
        seen = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(-2))
        return x + self.wide(self.after(x))


class GPT(L.LightningModule):
    """Attention, LayerNorm, dropout, tied embeddings."""

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(len(LETTERS), WIDTH)
        self.place = nn.Parameter(torch.randn(CONTEXT, WIDTH) / math.sqrt(WIDTH))
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(LETTERS), bias=False)
        self.head.weight = self.token.weight

    def forward(self, x):
        hidden = self.drop(self.token(x) + self.place)
        return self.head(self.norm(self.blocks(hidden)))

    def training_step(self, batch, batch_idx):
        (rows,) = batch
        logits = self(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        wanted = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(wanted, lr=1e-2)


class Adapter(nn.Module):
    """A frozen layer and a trained low-rank one beside it (Hu et al. 2021)."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / 4)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T


class LoRA(GPT):
    """The same GPT, frozen but for adapters of its attention."""

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
        for block in self.blocks:
            block.qkv = Adapter(block.qkv)
