"""Ready LightningModules: a convex head, solved on a public backbone's features."""

import logging
import time
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError, DataError, SetupError
from lightning_unlearn.plugin.data import labels, training_data
from lightning_unlearn.plugin.lightning import (
    LightningModule,
    LightningOptimizer,
    OptimizerLRScheduler,
    isolate_rng,
    pl,
)
from lightning_unlearn.plugin.mixin import UnlearnableMixin, quiet
from lightning_unlearn.plugin.request.first_solve import solve_head
from lightning_unlearn.plugin.request.stage import StageContext, callback_of
from lightning_unlearn.step.head.backbone import PublicBackbone
from lightning_unlearn.step.head.convex_head import ConvexHead
from lightning_unlearn.step.head.inputs import inputs_of, split_batch, split_weights
from lightning_unlearn.step.head.links import LossName, class_weighted

_log = logging.getLogger(f"{pl.__name__}.unlearn")  # shown as Lightning's own are


class _CertifiedModule(UnlearnableMixin, LightningModule):
    """What classifier and regressor share."""

    _metric: ClassVar[str]

    class_weights: Tensor | None

    def __init__(
        self,
        backbone: PublicBackbone,
        n_outputs: int,
        loss: LossName,
        l2: float,
        sample_weights: bool,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, PublicBackbone):
            raise ArgumentError(
                f"expected backbone to be a PublicBackbone, got "
                f"{type(backbone).__name__}: wrap it, PublicBackbone(model, "
                "public_data=...), or take RandomFeatures(shape=...) of rows of numbers"
            )
        validate.positive(l2=l2)
        self.automatic_optimization = False
        self.backbone = backbone
        self.head = ConvexHead(backbone.n_features, n_outputs, loss)
        self.l2, self.sample_weights = float(l2), labels.yes(sample_weights)
        self.register_buffer("class_weights", None)
        self._solved = False

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
            passes, n = solve_head(context)
        self._solved = True
        if not self.trainer.is_global_zero:
            return
        _log.info(
            f"solved {sum(p.numel() for p in self.head.parameters()):,} weights on "
            f"{n:,} samples to |grad F| <= {callback.options.tolerance:g} in "
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


def _l2_for(backbone: PublicBackbone, l2: float | Literal["auto"]) -> float:
    return getattr(backbone, "usual_l2", 1e-3) if l2 == "auto" else l2


class CertifiedClassifier(_CertifiedModule):
    """Classes from the features of a `PublicBackbone`: every deletion is certified.

    ``trainer.fit`` does not train it but solves it: a convex head over all training
    samples, to the ``tolerance`` of the Trainer's `UnlearningCallback`, with its
    float64 solver, when the training starts; it ends after one batch, validation and
    checkpoint included. ``trainer.unlearn`` then gives grade ``certified``. On one
    device the features are read once and kept in memory for the next request.

    Batches are ``(inputs, classes)``; see `inputs_and_targets` for others. It logs
    ``train_loss``, ``val_loss``, ``val_acc``, ``test_loss`` and ``test_acc``.

    Args:
        backbone: Public features: a `PublicBackbone`, or `RandomFeatures`.
        num_classes: K. Of samples the model has never seen too: the number of classes
            is public, and a class all of whose samples are forgotten stays an output.
            1 for yes or no, with "bce".
        loss: "cross_entropy", or "mse" to the one-hot classes: quadratic, so that one
            exact Newton step is the retrained model. "bce": targets are yes or no, (n,)
            or (n, 1) of one label, (n, K) of several that exclude no other, 0 to 1; a
            sample's loss and accuracy are the mean over its labels.
        l2: Coefficient of (l2/2)|w|^2. Noise is proportional to 1 / l2. "auto": what
            suits the backbone, 3e-4 for texts, else 1e-3.
        class_weights: Factors >= 0 of the loss of each class's samples, K of them; of
            "bce" with one label two, of no and yes; with several those of each label's
            yes, where a no counts 1. Public constants: frequencies counted among the
            training samples remember them.
        sample_weights: Whether batches have weights of their samples, see `weights_of`.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh())
        >>> backbone = PublicBackbone(net, public_data=torch.randn(50, 8))
        >>> CertifiedClassifier(backbone, 3)(torch.randn(5, 8)).shape
        torch.Size([5, 3])
    """

    _metric = "acc"

    def __init__(
        self,
        backbone: PublicBackbone,
        num_classes: int,
        loss: Literal["cross_entropy", "mse", "bce"] = "cross_entropy",
        l2: float | Literal["auto"] = "auto",
        class_weights: Sequence[float] | None = None,
        sample_weights: bool = False,
    ) -> None:
        validate.one_of(("cross_entropy", "mse", "bce"), loss=loss)
        validate.count(num_classes=num_classes)
        if num_classes == 1 and loss != "bce":
            raise ArgumentError(
                f"expected num_classes >= 2 for loss={loss!r}, got 1: for yes or no "
                "say num_classes=1, loss='bce'"
            )
        l2 = _l2_for(backbone, l2)  # the number is what hyperparameters keep
        super().__init__(backbone, num_classes, loss, l2, sample_weights)
        if class_weights is not None:
            count = 2 if num_classes == 1 else num_classes
            self.class_weights = labels.class_weights(class_weights, count)
        self.save_hyperparameters(
            "num_classes", "loss", "l2", "class_weights", "sample_weights"
        )

    @override
    def head_targets(self, targets: Tensor) -> Tensor:
        """Classes (n,), or probabilities (n, K); one-hot for squared error.

        For "bce" (n, K).

        Raises:
            DataError: If a class is not from 0 to K - 1, or the shape is another.
        """
        K = self.head.out_features
        if self.head.loss_name == "bce":
            return labels.yes_or_no(targets, K)
        if targets.is_floating_point():
            return targets
        targets = labels.classes(targets, K)
        return (
            F.one_hot(targets, K).float() if self.head.loss_name == "mse" else targets
        )

    @override
    def _scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.head.loss_name == "bce":
            return (outputs > 0) == (targets > 0.5)
        classes = targets.argmax(1) if targets.dim() == 2 else targets
        return outputs.argmax(1) == classes


class CertifiedRegressor(_CertifiedModule):
    """Numbers from the features of a `PublicBackbone`: every deletion is certified.

    Solved and unlearned as `CertifiedClassifier`. The bias is regularised too: centre
    and scale the targets with public numbers (not with their own mean). It logs
    ``train_loss``, ``val_loss``, ``val_mse``, ``test_loss`` and ``test_mse``.

    Args:
        backbone: Public features.
        n_outputs: K; targets are (n, K), or (n,) for one.
        loss: "mse" (quadratic: one exact Newton step), or "poisson" for counts, where
            outputs are log rates and ``val_mse`` is that of the rates.
        l2: Coefficient of (l2/2)|w|^2. Noise is proportional to 1 / l2. "auto": what
            suits the backbone, 3e-4 for texts, else 1e-3.
        sample_weights: Whether batches have weights of their samples, see `weights_of`.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh())
        >>> backbone = PublicBackbone(net, public_data=torch.randn(50, 8))
        >>> CertifiedRegressor(backbone)(torch.randn(5, 8)).shape
        torch.Size([5, 1])
    """

    _metric = "mse"

    def __init__(
        self,
        backbone: PublicBackbone,
        n_outputs: int = 1,
        loss: Literal["mse", "poisson"] = "mse",
        l2: float | Literal["auto"] = "auto",
        sample_weights: bool = False,
    ) -> None:
        validate.one_of(("mse", "poisson"), loss=loss)
        l2 = _l2_for(backbone, l2)
        super().__init__(backbone, n_outputs, loss, l2, sample_weights)
        self.save_hyperparameters("n_outputs", "loss", "l2", "sample_weights")

    @override
    def _scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        rates = outputs.exp() if self.head.loss_name == "poisson" else outputs
        return (rates - targets.reshape(rates.shape).to(rates)).square()
