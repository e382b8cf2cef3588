"""What certified modules share: a convex head, solved on a public backbone."""

import inspect
import logging
import time
import warnings
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError, DataError, SetupError
from lightning_unlearn.plugin.certified.first_solve import solve_head
from lightning_unlearn.plugin.data import labels, training_data
from lightning_unlearn.plugin.files import head_only
from lightning_unlearn.plugin.lightning import (
    LightningModule,
    LightningOptimizer,
    OptimizerLRScheduler,
    isolate_rng,
    pl,
)
from lightning_unlearn.plugin.mixin import UnlearnableMixin, quiet
from lightning_unlearn.plugin.request.stage import StageContext, callback_of
from lightning_unlearn.step.head.backbone import PublicBackbone
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.inputs import inputs_of, split_batch, split_weights
from lightning_unlearn.step.head.links import LossName, class_weighted

_log = logging.getLogger(f"{pl.__name__}.unlearn")  # shown as Lightning's own are


class CertifiedModule(UnlearnableMixin, LightningModule):
    """What classifier and regressor share."""

    _metric: ClassVar[str]
    #: No optimizer moves the head: it is solved where training starts.
    solved_at_start: ClassVar[bool] = True

    class_weights: Tensor | None

    def __init__(
        self,
        backbone: PublicBackbone,
        n_outputs: int,
        loss: LossName,
        l2: float,
        sample_weights: bool,
        save_backbone: bool,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, PublicBackbone):
            raise ArgumentError(
                f"expected backbone to be a PublicBackbone, got "
                f"{type(backbone).__name__}: wrap it, PublicBackbone(model, "
                "public_data=...), or take RandomFeatures(shape=...) of rows of numbers"
            )
        validate.positive(l2=l2)
        if not isinstance(save_backbone, bool):
            raise ArgumentError(
                f"expected save_backbone=True or False, got {save_backbone!r}"
            )
        self.automatic_optimization = False
        self.backbone = backbone
        self.head = ConvexHead(backbone.n_features, n_outputs, loss)
        self.l2, self.sample_weights = float(l2), labels.yes(sample_weights)
        self.save_backbone = save_backbone
        self.register_buffer("class_weights", None)
        self._solved = False

    def _keep_hyperparameters(self, *names: str) -> None:
        """Keep arguments of the constructor that calls this, in checkpoints.

        LightningCLI knows those of the project's own class, and no others.
        """
        frame = inspect.currentframe()
        constructor = None if frame is None else frame.f_back
        try:
            self.save_hyperparameters(*names, frame=constructor)
        except KeyError:
            taken = inspect.signature(type(self).__init__).parameters
            own = [name for name in names if name in taken]
            if own:
                self.save_hyperparameters(*own, frame=constructor)

    def forward(self, inputs: Any) -> Tensor:
        """Outputs of the head, (n, K), for inputs of the backbone."""
        return self.head(self.backbone(inputs))

    def inputs_and_targets(self, batch: Any) -> tuple[Any, Tensor]:
        """The two parts of a batch; override it for batches of another form.

        Args:
            batch: ``(inputs, targets)``, or a mapping whose "labels" are the targets
                and whose other entries are keywords of the model; without weights.

        Raises:
            DataError: If it is neither.
        """
        return split_batch(batch)

    def weights_of(self, batch: Any) -> tuple[Any, Tensor | None]:
        """A batch without the weights of its samples, and these (n,), or None.

        With `sample_weights` they are the third part, or the "sample_weight" of a
        mapping; override it for batches of another form. A weight is the sample's own:
        >= 0, the same every time, and computed from no other private sample.
        """
        return split_weights(batch) if self.sample_weights else (batch, None)

    # -- unlearning ------------------------------------------------------------

    def head_targets(self, targets: Tensor) -> Tensor:
        """Targets as the loss of the head takes them."""
        return targets

    def unlearning_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """The losses of a batch, (n,): those that are solved for, and certified."""
        plain, weights = self.weights_of(batch)
        if self.sample_weights and weights is None:
            raise DataError(
                "expected batches (inputs, targets, weights), or mappings with "
                '"sample_weight", for sample_weights=True, got one without weights'
            )
        inputs, targets = self.inputs_and_targets(plain)
        return self._losses(self.backbone(inputs), self.head_targets(targets), weights)

    def _losses(
        self, features: Tensor, targets: Tensor, weights: Tensor | None
    ) -> Tensor:
        """Losses (n,) of features and the head's targets, all weights in them."""
        if self.class_weights is not None:
            targets, weights = class_weighted(
                self.head.loss_name, targets, self.class_weights, weights
            )
        return self.head.loss(features, targets, weights)

    def unlearning_l2(self) -> float:
        """Coefficient of (l2/2)|w|^2, over the weights of the head and its bias."""
        return self.l2

    # -- training --------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Refuse a backbone that is not as it was made, before validation sees it.

        Also keeps Lightning from warning that what must be in eval mode is.

        Raises:
            ModelError: As `PublicBackbone.check`.
        """
        self.backbone.check()
        self._solved = False
        count = sum(1 for _ in self.backbone.modules())
        warnings.filterwarnings("ignore", rf"Found {count} module\(s\) in eval mode at")

    def on_fit_end(self) -> None:
        """Leave the Trainer ready for another fit; raise if it has skipped this one.

        Raises:
            SetupError: If Lightning did not begin to train, and nothing was solved.
        """
        self.trainer.should_stop = False  # Lightning 2.4 would skip the next fit
        if not self._solved:
            trainer = self.trainer
            raise SetupError(
                f"expected a Trainer that begins to train, got max_epochs="
                f"{trainer.max_epochs} with {trainer.current_epoch} done, max_steps="
                f"{trainer.max_steps}, limit_train_batches="
                f"{trainer.limit_train_batches}: nothing was solved; take a new "
                "Trainer with the same callback, or max_epochs=-1"
            )

    def on_train_start(self) -> None:
        """Solve the head on all training samples, to the callback's tolerance.

        Raises:
            SetupError: If the Trainer has no `UnlearningCallback`, or one that would
                move the solution.
            UnlearningError: As a request: if the data or the model cannot be solved,
                or nothing would be certified.
        """
        callback = callback_of(self.trainer, self)
        if callback.options.max_norm is not None:
            raise SetupError(
                f"expected an UnlearningCallback without max_norm for a "
                f"{type(self).__name__}, got max_norm={callback.options.max_norm}: "
                "its projection would move the solution, and the certificate does not "
                "need it; leave it out"
            )
        begin = time.perf_counter()
        context = StageContext(
            trainer=self.trainer,
            module=self,
            callback=callback,
            loader=training_data.training_loader(self.trainer.train_dataloader),
        )
        with isolate_rng(), quiet(self, restore=True):
            passes, n, tolerance = solve_head(context)
        self._solved = True
        if not self.trainer.is_global_zero:
            return
        _log.info(
            f"solved {sum(p.numel() for p in self.head.parameters()):,} weights on "
            f"{n:,} samples to |grad F| <= {tolerance:.3g} in "
            f"{time.perf_counter() - begin:.2g} s ({passes:.0f} passes)"
        )

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing is left to train: show the loss of a batch, and end the training."""
        losses = self.unlearning_loss(batch, batch_idx)
        self.log("train_loss", losses.detach().mean(), batch_size=len(losses))
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        self.manual_backward(0.0 * losses.mean())  # 16-mixed steps after a backward
        for p in self.head.parameters():
            p.grad = torch.zeros_like(p)  # 0 times infinity is NaN
        optimizer.step()  # Lightning writes no checkpoint of a model without a step
        self.zero_grad(set_to_none=True)
        self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Without `save_backbone`: leave the backbone out, its digest stays."""
        if not self.save_backbone:
            head_only.leave_out(checkpoint, self.backbone)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in a backbone that was left out, if ours is the same.

        Raises:
            ModelError: If it is another one.
        """
        head_only.fill_in(checkpoint, self.backbone)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One that moves nothing, and tells the callback l2."""
        return torch.optim.SGD(self.head.parameters(), lr=0.0, weight_decay=self.l2)

    # -- metrics ---------------------------------------------------------------

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log ``val_loss``, and ``val_acc`` or ``val_mse``.

        Of several loaders Lightning names them ``val_acc/dataloader_idx_1`` and so on.
        """
        self._measure(batch, "val")

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log ``test_loss``, and ``test_acc`` or ``test_mse``, as for validation."""
        self._measure(batch, "test")

    def _measure(self, batch: Any, stage: str) -> None:
        plain, weights = self.weights_of(batch)
        inputs, targets = self.inputs_and_targets(plain)
        features, targets = self.backbone(inputs), self.head_targets(targets)
        losses = self._losses(features, targets, weights)
        n = len(losses)
        self.log(f"{stage}_loss", losses.mean(), batch_size=n, sync_dist=True)
        score = self._scores(self.head(features), targets).float().mean()
        name = f"{stage}_{self._metric}"
        self.log(name, score, prog_bar=True, batch_size=n, sync_dist=True)

    def _scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of each sample, or of each of its outputs; their mean is the metric."""
        raise NotImplementedError

    def predict_step(
        self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0
    ) -> Tensor:
        """Outputs (n, K) of a batch, with or without targets: logits of a classifier.

        "cross_entropy" and "mse": the class is where they are largest. "bce": yes
        where they are above 0, with probability ``sigmoid``.
        """
        plain, _ = self.weights_of(batch)
        try:
            inputs, _ = self.inputs_and_targets(plain)
        except DataError:
            inputs = inputs_of(plain)
        return self(inputs)


def l2_for(backbone: PublicBackbone, l2: float | Literal["auto"]) -> float:
    """The number "auto" stands for with a backbone."""
    return getattr(backbone, "usual_l2", 1e-3) if l2 == "auto" else l2
