"""Stand-ins with the interface of Hugging Face's packages, and texts for them.

The packages themselves are used where they are installed (``tests/plugin/hub``).
"""

from collections import OrderedDict, UserDict

import torch
from torch import nn

WORDS, WIDTH = 40, 8


class ModelOutput(OrderedDict):
    """As transformers return it: a mapping with attributes."""

    def __getattr__(self, name):
        return self[name]


class Encoding(UserDict):
    """As tokenizers return it: a mapping that torch's trees do not know."""

    def to(self, device):
        return Encoding({name: t.to(device) for name, t in self.data.items()})


class Layer(nn.Module):
    """Attention over the tokens that count (in front of each, for a decoder)."""

    def __init__(self, causal=False):
        super().__init__()
        self.causal = causal
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x, mask):
        q, k, v = self.mix(x).chunk(3, -1)
        seen = mask[:, None, :].bool()
        if self.causal:
            t = x.shape[1]
            seen = seen & torch.ones(t, t, dtype=torch.bool).tril()
        scores = (q @ k.transpose(1, 2)).masked_fill(~seen, -1e9)
        return x + self.out(scores.softmax(-1) @ v).tanh()


class Encoder(nn.Module):
    """As BERT: keywords in, a ModelOutput out; as ALBERT with `shared`."""

    def __init__(self, depth=5, shared=False, causal=False):
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        count = 1 if shared else depth
        self.layers = nn.ModuleList(Layer(causal) for _ in range(count))
        self.repeats = depth if shared else 1

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        assert not kwargs, f"columns that are no inputs: {sorted(kwargs)}"
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embed(input_ids)
        for layer in self.layers:
            for _ in range(self.repeats):
                x = layer(x, mask)
        return ModelOutput(last_hidden_state=x, pooler_output=x[:, 0].tanh())

    @property
    def dummy_inputs(self):
        return {"input_ids": torch.tensor([[3, 4, 0, 0, 1], [1, 2, 3, 0, 0]])}


class Classifier(nn.Module):
    """As BertForSequenceClassification: logits come first in what it returns."""

    def __init__(self):
        super().__init__()
        self.bert, self.classifier = Encoder(), nn.Linear(WIDTH, 2)

    def forward(self, input_ids, attention_mask=None):
        found = self.bert(input_ids, attention_mask)
        return ModelOutput(logits=self.classifier(found.pooler_output))


class TwoEncoders(nn.Module):
    """As CLIP."""

    def __init__(self):
        super().__init__()
        self.text_model = Encoder()
        self.vision_model = nn.Sequential(Patches(), *(Plain() for _ in range(3)))

    def forward(self, input_ids, pixel_values, attention_mask=None):
        text = self.text_model(input_ids, attention_mask).pooler_output
        return ModelOutput(text=text, image=self.vision_model(pixel_values)[:, 0])


class Patches(nn.Module):
    def forward(self, x):
        return (
            x.flatten(2)
            .transpose(1, 2)
            .repeat(1, 1, WIDTH // x.shape[1] + 1)[..., :WIDTH]
        )


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Layer()

    def forward(self, x):
        return self.layer(x, torch.ones(x.shape[:2]))


class Sentences(nn.Module):
    """As sentence-transformers: one mapping in, the same with more in it out."""

    def __init__(self):
        super().__init__()
        self.auto_model = Encoder()

    def forward(self, input):
        found = self.auto_model(input["input_ids"], input["attention_mask"])
        x, mask = found.last_hidden_state, input["attention_mask"][:, :, None]
        mean = (x * mask).sum(1) / mask.sum(1)
        return {**input, "token_embeddings": x, "sentence_embedding": mean}


def padded(samples, side="right"):
    """As DataCollatorWithPadding: a batch as wide as its longest text."""
    width = max(len(s["input_ids"]) for s in samples)
    ids, mask = torch.zeros(2, len(samples), width, dtype=torch.int64)
    for i, s in enumerate(samples):
        n = len(s["input_ids"])
        at = slice(0, n) if side == "right" else slice(width - n, width)
        ids[i, at] = torch.as_tensor(s["input_ids"])
        mask[i, at] = 1
    batch = Encoding(input_ids=ids, attention_mask=mask)
    for name in samples[0].keys() - {"input_ids", "attention_mask"}:
        label = "labels" if name == "label" else name
        batch[label] = torch.tensor([int(s[name]) for s in samples])
    return batch


def texts(n=120, classes=3, seed=0):
    """Tokenised texts of 3 to 12 words: a class says which words are frequent."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        size = int(torch.randint(3, 13, (1,), generator=generator))
        some = torch.randint(1, WORDS, (size,), generator=generator)
        own = torch.randint(1 + 10 * (i % classes), 11 + 10 * (i % classes), (size,),
                            generator=generator)  # fmt: skip
        ids = torch.where(torch.rand(size, generator=generator) < 0.5, own, some)
        found.append({
            "input_ids": ids.tolist(), "attention_mask": [1] * size,
            "label": i % classes, "user_id": i // 4,
        })  # fmt: skip
    return found
