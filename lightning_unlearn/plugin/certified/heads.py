"""Ready LightningModules: classes or numbers, from a public backbone's features."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_unlearn._base import validate
from lightning_unlearn.errors import ArgumentError
from lightning_unlearn.plugin.certified.certified_module import CertifiedModule, l2_for
from lightning_unlearn.plugin.data import labels
from lightning_unlearn.step.head.backbone import PublicBackbone


class CertifiedClassifier(CertifiedModule):
    """Classes from the features of a `PublicBackbone`: every deletion is certified.

    ``trainer.fit`` does not train it step by step: it solves for the best head, a
    convex one over all training samples, to the ``tolerance`` of the Trainer's
    `UnlearningCallback`, with its float64 solver, when the training starts. The fit
    ends after one batch, validation and checkpoint included. ``trainer.unlearn`` then
    gives grade ``certified``. On one device the features are read once and kept in
    memory for the next request.

    Batches are ``(inputs, classes)``; see `inputs_and_targets` for others. It logs
    ``train_loss``, ``val_loss``, ``val_acc``, ``test_loss`` and ``test_acc``.

    Args:
        backbone: Public features: a `PublicBackbone`, or `RandomFeatures`.
        num_classes: K. It is public, and also counts classes of samples never seen:
            a class all of whose samples are forgotten stays an output. 1 for yes or no,
            with "bce".
        loss: "cross_entropy", or "mse" to the one-hot classes: quadratic, so that one
            exact Newton step is the retrained model. "bce": targets are yes or no, (n,)
            or (n, 1) of one label, (n, K) of several that exclude no other, 0 to 1; a
            sample's loss and accuracy are the mean over its labels.
        l2: Coefficient of (l2/2)|w|^2. Noise is proportional to 1 / l2. "auto": what
            suits the backbone, 3e-4 for texts, else 1e-3.
        class_weights: Factors >= 0 of the loss of each class's samples, K of them; for
            "bce" with one label two numbers, for no and for yes; with several those of
            each label's yes, where a no counts 1. Public constants: frequencies counted
            among the training samples remember them.
        sample_weights: Whether batches have weights of their samples, see `weights_of`.
        save_backbone: Whether checkpoints hold the backbone. Without it they hold its
            digest: whoever loads one makes the same backbone, which is compared.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> import torch
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
        save_backbone: bool = True,
    ) -> None:
        validate.one_of(("cross_entropy", "mse", "bce"), loss=loss)
        validate.count(num_classes=num_classes)
        if num_classes == 1 and loss != "bce":
            raise ArgumentError(
                f"expected num_classes >= 2 for loss={loss!r}, got 1: for yes or no "
                "say num_classes=1, loss='bce'"
            )
        l2 = l2_for(backbone, l2)  # the number is what hyperparameters keep
        super().__init__(backbone, num_classes, loss, l2, sample_weights, save_backbone)
        if class_weights is not None:
            count = 2 if num_classes == 1 else num_classes
            self.class_weights = labels.class_weights(class_weights, count)
        self._keep_hyperparameters(
            *("num_classes", "loss", "l2", "class_weights"),
            *("sample_weights", "save_backbone"),
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


class CertifiedRegressor(CertifiedModule):
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
        save_backbone: Whether checkpoints hold the backbone. Without it they hold its
            digest: whoever loads one makes the same backbone, which is compared.

    Raises:
        ArgumentError: If an argument is outside its range.

    Example:
        >>> import torch
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
        save_backbone: bool = True,
    ) -> None:
        validate.one_of(("mse", "poisson"), loss=loss)
        l2 = l2_for(backbone, l2)
        super().__init__(backbone, n_outputs, loss, l2, sample_weights, save_backbone)
        self._keep_hyperparameters(
            "n_outputs", "loss", "l2", "sample_weights", "save_backbone"
        )

    @override
    def _scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        rates = outputs.exp() if self.head.loss_name == "poisson" else outputs
        return (rates - targets.reshape(rates.shape).to(rates)).square()
