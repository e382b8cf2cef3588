"""A frozen public model whose activations at several depths are a head's features."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_unlearn._base import validate
from lightning_unlearn.errors import (
    DataError,
    ModelError,
    UnlearningError,
)
from lightning_unlearn.step.head.inputs import (
    Samples,
    batches,
    cast,
    first_batch,
    to_device,
)
from lightning_unlearn.step.head.reading import keywords, taps
from lightning_unlearn.step.head.reading.backbone_options import (
    PLAIN,
    check_eval,
    check_options,
    checked_tokens,
)
from lightning_unlearn.step.head.reading.pooling import pooled
from lightning_unlearn.step.known_samples import Sketches, Watch, Where, sample_names
from lightning_unlearn.weights.digests import as_tensor, from_tensor, tensors_digest
from lightning_unlearn.weights.opaque import tensors_in

_LEAST_STD = 0.01  # of the typical one: a feature dead on public data must not blow up


class PublicBackbone(nn.Module):
    """Features of a frozen public model: (n, d) float32, from several depths.

    A convex head on them is certified as tightly as one on the last features alone,
    and loses far less accuracy against training the whole network
    (docs/public-backbone.md).

    It is frozen for good: parameters need no gradient, every part stays in eval mode
    whatever the Trainer does, and each request checks by digest that nothing moved.
    All it computes must be public. Statistics for standardisation therefore come from
    `public_data`; those of the training samples would remember the ones to be
    forgotten, and so would a PCA or a selection of features made from them.

    Args:
        model: Any module that was NOT trained on the private data. It is frozen in
            place.
        taps: Names of modules whose outputs are read, as in ``named_modules()``; "" is
            what the model itself returns. "auto" takes the last four blocks (layers, if
            there are no blocks), and the last layer for texts. Texts are mappings
            with ``input_ids``, as tokenizers make them.
        pool: Grid that maps (n, c, h, w) are averaged over; vectors (n, c) stay as they
            are.
        standardize: "public": subtract the mean and divide by the standard deviation
            that each feature has on `public_data`. "none": leave them. "auto": "none"
            for texts, else "public".
        unit_norm: Divide each row by its own norm; for texts that are not standardised,
            first each part of the row (the mean, the largest values).
        tokens: What is taken of tokens (n, t, c), only of those an ``attention_mask``
            marks if there is one: "mean", "max" (of each feature), "cls" (the first),
            "last". "auto": mean and max for texts, mean and cls for others.
        public_data: Inputs that are no training samples: a tensor (n, ...), a Dataset
            (of `datasets` too) or a DataLoader. Of its batches ``(inputs, ...)`` only
            the inputs count, tensors or mappings of keywords. If nothing is
            standardised, one input will do, for shapes; a `transformers` model of texts
            brings it along.
        scale: Public factor of every row; with `unit_norm` the norm of a row. Noise
            moves a logit by ``noise_std`` times that; l2 acts like ``l2 / scale**2``.
        batch_size: Samples that `features` and the statistics read at once.

    Attributes:
        taps: The names that are read.
        n_features: d.
        n_public: How many public samples the statistics come from.
        digest: SHA-256 of weights, buffers, statistics and options, as made.

    Raises:
        ArgumentError: If an argument is outside its range, or asks for statistics of
            private data.
        DataError: If there is no public input, or only one to take statistics from.
        ModelError: If a tap gives no activation, or one that is not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        >>> PublicBackbone(net, public_data=torch.randn(50, 8)).n_features
        20
    """

    mean: Tensor
    std: Tensor
    known: Tensor
    private_steps: dict[str, float] | None = None  # or it was trained privately ...
    n_trained: int | None = None  # ... on so many samples

    def __init__(
        self,
        model: nn.Module,
        taps: Sequence[str] | Literal["auto"] = "auto",
        pool: tuple[int, int] = (2, 2),
        standardize: Literal["auto", "public", "none"] = "auto",
        unit_norm: bool = True,
        *,
        tokens: Sequence[str] | Literal["auto"] = "auto",
        public_data: Samples | None = None,
        scale: float = 8.0,
        batch_size: int = 256,
    ) -> None:
        super().__init__()
        check_options(model, pool, standardize, unit_norm)
        if public_data is None and standardize != "public":
            public_data = keywords.example_of(model)
        validate.positive(scale=scale)
        validate.count(batch_size=batch_size)
        self.model = model.requires_grad_(False).eval()
        self._kind = type(model).__name__  # now: FSDP makes it another class
        self.pool = int(pool[0]), int(pool[1])
        self.unit_norm = unit_norm
        self.scale, self.batch_size = float(scale), int(batch_size)
        self.n_public = 0
        self._watch = Watch()
        device = next(chain(model.parameters(), model.buffers()), torch.zeros(0)).device
        first = to_device(first_batch(public_data, self.batch_size), device)
        first = keywords.known_keywords(model, first)
        self.of_texts = keywords.is_text(first)
        usual = "none" if self.of_texts else "public"
        self.standardize = usual if standardize == "auto" else standardize
        self.tokens = checked_tokens(tokens, self.of_texts)
        self.taps, self.n_features = self._tried(taps, first)
        empty = torch.zeros(0, dtype=torch.int64)
        self.register_buffer("known", empty)  # first bytes of their digests
        self.register_buffer("mean", torch.zeros(self.n_features, device=device))
        self.register_buffer("std", torch.ones(self.n_features, device=device))
        if self.standardize == "public":
            self._take_statistics(batches(public_data, self.batch_size))
        self._made: dict[str, str] = self._digests()
        self.eval()

    @property
    def digest(self) -> str:
        """SHA-256 of weights, buffers, statistics and options, as it was made."""
        return hashlib.sha256(json.dumps(self._made).encode()).hexdigest()

    @property
    def description(self) -> str:
        """What a certificate says of it."""
        return (
            f"{self._kind} read at {', '.join(n or 'its end' for n in self.taps)}: "
            "its weights, "
            "the choice of these depths, and "
            + (
                f"means and deviations of {self.n_public:,} public samples"
                if self.standardize == "public"
                else "features that are not standardised"
            )
        )

    def row_norm(self, bias: bool = True) -> float | None:
        """Largest norm of a row and the 1 of a bias; None if it depends on the input.

        With ``unit_norm`` it follows from `scale`, before any sample is read.
        """
        return math.hypot(self.scale, bias) if self.unit_norm else None

    @property
    def usual_l2(self) -> float:
        """What the certified modules take for l2 if nothing is said."""
        return 3e-4 if self.of_texts else 1e-3

    @torch.no_grad()
    def forward(self, inputs: Any) -> Tensor:
        """Features (n, d), float32, of a tensor (n, ...) or a mapping of keywords.

        Of a mapping the model is given what it takes.

        Raises:
            ModelError: If a part of the model is in train mode.
            GuaranteeError: If a training sample is one of the public samples.
        """
        check_eval(self.model)
        inputs = keywords.known_keywords(self.model, inputs)
        blank = self._watch.meet(inputs, self.known)
        raw = self._raw(inputs)
        self._watch.look_at(raw, blank)
        rows = (raw - self.mean) / self.std
        if self.unit_norm:
            rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return self.scale * rows

    def features(self, data: Samples) -> Tensor:
        """Features (n, d) of all samples, read in batches, on the CPU.

        Args:
            data: As ``public_data``, in order; a DataLoader must not shuffle if rows
                are to be matched with anything.
        """
        device, rows = self.mean.device, []
        for batch in batches(data, self.batch_size):
            rows.append(self(to_device(batch, device)).cpu())
        return torch.cat(rows) if rows else torch.zeros(0, self.n_features)

    def check(self) -> None:
        """Raise unless everything is as it was made.

        Raises:
            ModelError: If a weight, buffer, statistic or option differs, a part is in
                train mode, or a weight can be trained; it is named.
        """
        check_eval(self.model)
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                raise ModelError(
                    "expected a PublicBackbone whose weights are frozen, got "
                    f"requires_grad=True for {name}: it would be trained on private "
                    "data; put what is to be trained outside the backbone"
                )
        now = self._digests()
        names = sorted({*self._made, *now})
        moved = [k for k in names if self._made.get(k) != now.get(k)]
        if moved:
            raise ModelError(
                "expected a PublicBackbone as it was made, got others in "
                f"{', '.join(moved[:5])} ({len(moved)} in all): changed after that, it "
                "is not public; make it anew from the public model and options (a "
                "Trainer's precision such as 'bf16-true' converts it: take a mixed one)"
            )

    @contextmanager
    def reading_private(self, where: Where | None = None) -> Iterator[None]:
        """Inside the block inputs are private: those of `public_data` are refused.

        Args:
            where: Gives the positions of the samples that are read now, to name them;
                near copies are then noted in `alike`.
        """
        with self._watch.reading(where):
            yield

    def refuse_while(
        self, private: Callable[[], bool] | None, find: Where | None = None
    ) -> None:
        """Whenever `private()` says so, inputs of `public_data` are refused too.

        Args:
            private: Says it; None if nobody watches any more.
            find: Looks for the positions of what was refused, where batches are drawn.
        """
        self._watch.begin(private, find)

    @property
    def alike(self) -> dict[int, str]:
        """Training samples that were met and are like public ones, by position.

        "near": their features are nearly the same. "blank": all their numbers are one,
        as of a public sample.
        """
        return self._watch.alike

    @override
    def train(self, mode: bool = True) -> "PublicBackbone":
        """Stay in eval mode, whatever is asked for."""
        return super().train(False)

    @override
    def requires_grad_(self, requires_grad: bool = True) -> "PublicBackbone":
        """Stay frozen, whatever is asked for."""
        return super().requires_grad_(False)

    @override
    def get_extra_state(self) -> Tensor:
        return as_tensor({"made": self._made, "n_public": self.n_public})

    @override
    def set_extra_state(self, state: Any) -> None:
        state = from_tensor(state)
        made: Any = state.get("made") if isinstance(state, Mapping) else None
        texts = isinstance(made, Mapping) and all(
            isinstance(x, str) for pair in made.items() for x in pair
        )
        if not texts or not isinstance(state.get("n_public"), int):
            raise ModelError(
                "expected the state of a PublicBackbone as this version writes it, got "
                f"{state!r:.60}: the checkpoint was altered, or is of another version"
            )
        self._made, self.n_public = dict(made), state["n_public"]

    @override
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        known = state_dict.get(f"{prefix}known")
        if isinstance(known, Tensor):  # as many as there were when it was saved
            if not torch.equal(known, self.known.to(known.device)):
                self._watch.sketches = None  # they are of other samples
            self.known = torch.zeros_like(known, device=self.known.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # -- inside ----------------------------------------------------------------

    @property
    def _even(self) -> bool:
        return self.of_texts and self.unit_norm and self.standardize == "none"

    @torch.no_grad()
    def _tried(self, names: object, example: Any) -> tuple[list[str], int]:
        """The taps, and how many features they give."""
        auto = names == "auto"
        found = [] if auto else taps.check_names(self.model, names)
        try:
            if auto:
                found = taps.find(self.model, self._prepared(example))
            self.taps = found
            return found, self._raw(example).shape[1]
        except (UnlearningError, MemoryError):
            raise
        except Exception as problem:  # whatever a model raises that wants other inputs
            raise ModelError(
                f"expected a model ({self._kind}) that can be called with one batch of "
                f"public_data={keywords.described(example)}, got "
                f"{type(problem).__name__}: {problem!s:.200}; give it inputs of its own"
            ) from problem

    def _prepared(self, inputs: Any) -> Any:
        """Floating-point inputs in the dtype of the model."""
        floats = (
            t.dtype
            for t in chain(self.model.parameters(), self.model.buffers())
            if t.is_floating_point()
        )
        dtype = next(floats, torch.float32)
        return cast(inputs, dtype)

    @torch.no_grad()
    def _raw(self, inputs: Any) -> Tensor:
        """Pooled activations side by side (n, d), float32, whatever autocast says."""
        inputs = self._prepared(inputs)
        kinds = {leaf.device.type for leaf in tensors_in(inputs)}
        kind = next(iter(kinds)) if kinds else "cpu"
        with torch.autocast(kind, enabled=False):
            found = taps.activations(self.model, self.taps, inputs)
            rows = [
                pooled(x, self.pool, self.tokens, inputs, self._even) for x in found
            ]
            return torch.cat(rows, dim=1)

    def _take_statistics(self, batches: Iterable[Any]) -> None:
        n, total = 0, torch.zeros(2, self.n_features, dtype=torch.float64)
        known, sketches = [], Sketches()
        for batch in batches:
            batch = keywords.known_keywords(self.model, batch)
            raw = self._raw(to_device(batch, self.mean.device)).cpu()
            sketches.add(raw)
            rows = raw.double()
            total += torch.stack([rows.sum(0), rows.square().sum(0)])
            n += len(rows)
            known += sample_names(batch)
        if n < 2:
            raise DataError(
                f"expected at least 2 public samples to standardise with, got {n}: "
                'give more in public_data=, or standardize="none"'
            )
        mean, square = total / n
        std = (square - mean.square()).clamp_min(0).sqrt()
        if not bool(torch.isfinite(std).all()):
            raise ModelError(
                "expected finite features of public_data, got NaN or infinite ones: "
                "look for NaN in it, or a diverged model"
            )
        least = _LEAST_STD * float(std.square().mean().sqrt())
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(least or 1.0))
        self.known, self.n_public = torch.tensor(sorted(set(known))), n
        self._watch.sketches = sketches.closed()

    def _digests(self) -> dict[str, str]:
        """SHA-256 of each part that rows depend on, by name."""
        tensors = [
            *self.model.named_parameters(),
            *self.model.named_buffers(),
            ("mean", self.mean),
            ("std", self.std),
        ]
        found = {name: tensors_digest([(name, t)]) for name, t in tensors}
        options = [self.taps, self.pool, self.standardize, self.unit_norm, self.scale]
        if self.tokens != PLAIN or self._even:  # or as before there were these
            options += [self.tokens, self._even]
        text = json.dumps([self._kind, *options])
        found["options"] = hashlib.sha256(text.encode()).hexdigest()
        return found
