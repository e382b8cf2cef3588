"""An ensemble of modules on disjoint shards, each with a Trainer of its own."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_unlearn._base import validate
from lightning_unlearn.errors import (
    ArgumentError,
    ForgetSetError,
    SetupError,
    ShardError,
)
from lightning_unlearn.plugin.data import forget_set
from lightning_unlearn.plugin.data.assignment import KEY, check_key, dealt_out
from lightning_unlearn.plugin.data.forget_set import Forget
from lightning_unlearn.plugin.lightning import Trainer
from lightning_unlearn.plugin.request.request import Request
from lightning_unlearn.plugin.request.result import UnlearningResult
from lightning_unlearn.plugin.retrain.fresh_training import MakeTraining
from lightning_unlearn.plugin.run import loading
from lightning_unlearn.plugin.run.coins import own_coins
from lightning_unlearn.plugin.sharded.shard import (
    Shard,
    check_saw_all,
    made_by,
)
from lightning_unlearn.plugin.sharded.sharded_result import ShardedResult, one_of
from lightning_unlearn.plugin.verbs.retraining import retrain


class ShardedClassifier(nn.Module):
    """A classifier of parts that saw disjoint people: a deletion retrains one.

    S modules are trained on S shards, one after the other. A keyed hash of the person
    says which shard a sample is in, so all of a person's are in one. A request retrains
    the shards that hold what is to be forgotten, as ``unlearn(how="retrain")`` does,
    and leaves the others as they are, bit for bit: for one person this takes about 1/S
    of a training. The price is accuracy, for each module sees 1/S of the data.

    It returns probabilities: the mean over the modules of the softmax of their
    logits (n, K).

    Args:
        make_training: ``make_training(data) -> (Trainer, module, DataLoader or
            DataModule)``, each made anew, over the samples in `data`: the function that
            ``UnlearningCallback(retrain=make_training)`` takes. The Trainer it makes
            must have that callback.
        shards: S.
        by: Attribute or column of the dataset that holds the person of each sample,
            such as ``user_id``.
        key: Of the hash, up to 64 bytes: public or secret, but fixed before anybody
            asks to be forgotten.

    Raises:
        ArgumentError: If an argument is outside its range.
    """

    def __init__(
        self, make_training: MakeTraining, *, shards: int, by: str, key: bytes = KEY
    ) -> None:
        super().__init__()
        validate.count(shards=shards)
        check_key(key)
        if not callable(make_training):
            raise ArgumentError(
                "expected make_training to be a function of the data, got "
                f"{type(make_training).__name__}: it makes the Trainer, the module and "
                "its DataLoader or DataModule, and returns the three"
            )
        self.shards, self.by, self._key = int(shards), by, key
        self.modules_of_shards = nn.ModuleList()
        self._make, self._data, self._shards = make_training, None, list[Shard]()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Mean of the probabilities of all modules, (n, K)."""
        self._check_trained()
        found = [net(*args, **kwargs).softmax(-1) for net in self.modules_of_shards]
        return torch.stack(found).mean(0)

    def positions(self, shard: int) -> list[int]:
        """Positions in the training dataset of the samples of a shard."""
        self._check_trained()
        return list(self._shards[shard].positions)

    def trainer(self, shard: int) -> Trainer:
        """The Trainer of a shard: ``save_checkpoint`` keeps it for `load`."""
        self._check_trained()
        return self._shards[shard].trainer

    def fit(self, dataset: Any) -> None:
        """Train every shard, one after the other.

        Args:
            dataset: Has one id for each sample under the name `by`.

        Raises:
            UnlearningError: If the shards cannot be made, or be retrained later.
        """
        parts, made = self._parts(dataset), list[Shard]()
        seeds = torch.randint(2**32, (self.shards,)).tolist()
        for j, positions in enumerate(parts):
            rank_zero_info(f"shard {j} of {self.shards}: {len(positions):,} samples")
            with own_coins(seeds[j]):
                shard = made_by(self._make, dataset, positions, self.shards)
                shard.trainer.fit(shard.module, **shard.source)  # type: ignore[attr-defined]
            check_saw_all(shard, j)
            made.append(shard)
        self._take(dataset, made)

    def load(
        self,
        dataset: Any,
        checkpoints: Sequence[str | Path],
        weights_only: bool | None = None,
    ) -> None:
        """Take shards that were trained in another process.

        Args:
            dataset: The same as then.
            checkpoints: One for each shard, in their order: of its Trainer, or the
                clean one of its last request.
            weights_only: Passed to `torch.load`, False if you trust the files: None
                reads nothing but tensors and plain values here.

        Raises:
            UnlearningError: If one is missing, or of another model.
        """
        if len(checkpoints) != self.shards:
            raise ArgumentError(
                f"expected one checkpoint for each of {self.shards} shards, got "
                f"{len(checkpoints)}: name those of shards that no request touched too"
            )
        parts = self._parts(dataset)
        made = [made_by(self._make, dataset, part, self.shards) for part in parts]
        for shard, path in zip(made, map(Path, checkpoints), strict=True):
            loading.check_there(path)
            with loading.named(path):
                plain = weights_only is not False
                held = torch.load(path, map_location="cpu", weights_only=plain)
                shard.module.load_state_dict(held["state_dict"])
            shard.checkpoint, shard.weights_only = path, weights_only
        self._take(dataset, made)

    def unlearn(
        self,
        forget: Forget,
        *,
        by: str | None = None,
        save_to: str | Path | None = None,
        delete_stale: bool = False,
    ) -> ShardedResult:
        """Retrain the shards that hold what is to be forgotten, and no others.

        Each is a request of its own, so one that fails leaves its shard as it was, and
        the shards before it done. Ask again then: what has forgotten is not retrained a
        second time.

        Args:
            forget: Positions in the training dataset, or what else ``trainer.unlearn``
                takes; with `by` a list or a file of ids.
            by: What `forget` lists in place of positions.
            save_to: New folder for the clean checkpoints of the shards that were
                retrained, ``shard-0.ckpt`` and so on, with their certificates.
            delete_stale: Delete older checkpoints of these shards, see
                ``trainer.unlearn``.

        Returns:
            Which shards were retrained, with the result of each.

        Raises:
            ForgetSetError: If nobody is to be forgotten, or a shard would be empty.
            ShardError: If a shard failed after another one had forgotten: its
                ``result`` says which. What the first one raises is raised as it is.
        """
        self._check_trained()
        began = time.perf_counter()
        requests = {
            j: Request(
                forget=places,
                save_to=None if save_to is None else Path(save_to) / f"shard-{j}.ckpt",
                delete_stale=delete_stale,
                not_covered=(one_of(self.shards),),
            )
            for j, places in self._touched(forget, by).items()
        }
        if save_to is not None:
            Path(save_to).mkdir(parents=True, exist_ok=True)
        for j, request in requests.items():  # before any of them is retrained
            shard = self._shards[j]
            request.check(shard.trainer, shard.callback.options)
        done = dict[int, UnlearningResult]()
        for j, request in requests.items():
            try:
                done[j] = self._forgotten_by(j, request)
            except BaseException as problem:  # whatever a training provokes, Ctrl-C too
                if not done:
                    raise
                waiting = tuple(k for k in requests if k not in done)
                error = self._half_done(done, j, waiting, began)
                if isinstance(problem, Exception):
                    raise error from problem
                rank_zero_warn(str(error))
                raise
        return ShardedResult(
            results=done, n_shards=self.shards, seconds=time.perf_counter() - began
        )

    # -- inside ----------------------------------------------------------------

    def _parts(self, dataset: Any) -> list[list[int]]:
        """Positions of the samples of each shard, before there are any."""
        if self._shards:
            raise SetupError(
                "expected shards that are trained once, got a second training: the "
                "positions of their samples are those of the first dataset; make a new "
                "ShardedClassifier"
            )
        return dealt_out(dataset, self.by, self.shards, self._key)

    def _take(self, dataset: Any, made: list[Shard]) -> None:
        self._data, self._shards = dataset, made
        self.modules_of_shards.extend(shard.module for shard in made)
        self.eval()

    def _check_trained(self) -> None:
        if not self._shards:
            raise SetupError(
                "expected shards that are trained, got none: call fit(dataset), or "
                "load(dataset, checkpoints)"
            )

    def _touched(self, forget: Forget, by: str | None) -> dict[int, list[int]]:
        """Shard -> positions among its own samples that it has to forget."""
        removed = sorted(set().union(*(shard.removed for shard in self._shards)))
        chosen = {*forget_set.resolve(forget, self._data, removed, by)}
        touched = dict[int, list[int]]()
        for j, shard in enumerate(self._shards):
            mine = [i for i, at in enumerate(shard.positions) if at in chosen]
            if mine and len(mine) + len(shard.removed) == len(shard.positions):
                raise ForgetSetError(
                    f"expected at least one sample to retain in every shard, got all "
                    f"{len(mine)} of shard {j}: train a ShardedClassifier anew on what "
                    "is left, with fewer shards"
                )
            if mine:
                touched[j] = mine
        return touched

    def _forgotten_by(self, j: int, request: Request) -> UnlearningResult:
        shard = self._shards[j]
        result = retrain(
            shard.trainer,
            request,
            shard.callback.options.retrain,
            model=shard.module,
            **shard.source,
            ckpt_path=shard.checkpoint,
            weights_only=shard.weights_only,
        )
        shard.checkpoint = None
        shard.module.eval()
        return result

    def _half_done(
        self,
        done: dict[int, UnlearningResult],
        failed: int,
        waiting: tuple[int, ...],
        began: float,
    ) -> ShardError:
        result = ShardedResult(
            results=done,
            n_shards=self.shards,
            failed=failed,
            waiting=waiting,
            seconds=time.perf_counter() - began,
        )
        shards = ", ".join(map(str, done))
        error = ShardError(
            f"expected every shard that is touched to be retrained, got a failure in "
            f"shard {failed} after shards {shards} had forgotten, which stays done: "
            "make the same request again, and only what is left will be retrained"
        )
        error.result = result
        return error
