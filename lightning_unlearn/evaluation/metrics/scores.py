r"""What an attacker sees of one sample: numbers from its logits, in float64.

With z the logits, y the true class and p = softmax(z). All are computed from
``logsumexp`` over the other classes, so that a confident model (1 - p below 1e-16)
still gives finite numbers of full precision; only `confidence` itself rounds to 1.
"""

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_unlearn._base import validate
from lightning_unlearn.evaluation.metrics import arguments


def _both(logits: object, targets: object) -> tuple[Tensor, Tensor]:
    z = arguments.logits("logits", logits)
    return z, arguments.classes("targets", targets, len(z), z.shape[1])


def _at(z: Tensor, index: Tensor) -> Tensor:
    return z.gather(1, index[:, None])[:, 0]


def _others(z: Tensor, index: Tensor) -> Tensor:
    """Logsumexp over all classes but one: (n,)."""
    return z.scatter(1, index[:, None], -torch.inf).logsumexp(1)


def _log_p(z: Tensor, index: Tensor) -> Tensor:
    """Log p of one class, precise where p is almost 1: (n,)."""
    phi = _at(z, index) - _others(z, index)
    return -torch.logaddexp(torch.zeros_like(phi), -phi)


def _all_log_p(z: Tensor, top: Tensor) -> Tensor:
    return z.log_softmax(1).scatter(1, top[:, None], _log_p(z, top)[:, None])


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of each sample, ``-log p_y``.

    Yeom et al. 2018 (arXiv 1709.01604): members have lower loss.

    Args:
        logits: Floating, (n, classes), at least two classes.
        targets: Integer class indices, (n,).

    Returns:
        float64, (n,), >= 0.

    Raises:
        ArgumentError: If shapes or dtypes differ from these, or a logit is NaN or
            infinite.

    Example:
        >>> loss(torch.zeros(1, 4), torch.tensor([2]))  # log 4
        tensor([1.3863], dtype=torch.float64)
    """
    z, y = _both(logits, targets)
    return -_log_p(z, y)


def confidence(logits: Tensor, targets: Tensor) -> Tensor:
    """Probability of the true class, ``p_y``.

    Salem et al. 2019 (arXiv 1806.01246), of the true class as in Song & Mittal 2021:
    members have higher confidence.

    Args:
        logits: Floating, (n, classes), at least two classes.
        targets: Integer class indices, (n,).

    Returns:
        float64, (n,), in [0, 1].

    Raises:
        ArgumentError: As in `loss`.
    """
    return (-loss(logits, targets)).exp()


def entropy(logits: Tensor, targets: Tensor | None = None) -> Tensor:
    """Entropy of the prediction in nats, ``-sum_i p_i log p_i``.

    Salem et al. 2019 (arXiv 1806.01246): members have lower entropy.

    Args:
        logits: Floating, (n, classes), at least two classes.
        targets: Not used; taken so that all scores are called alike.

    Returns:
        float64, (n,), in [0, log(classes)].

    Raises:
        ArgumentError: As in `loss`.
    """
    if targets is None:
        z = arguments.logits("logits", logits)
    else:
        z, _ = _both(logits, targets)
    log_p = _all_log_p(z, z.argmax(1))
    return -(log_p.exp() * log_p).sum(1)


def modified_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Entropy that knows the true class.

    ``-(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i)``, Song & Mittal 2021 (arXiv
    2003.10595v2), equation 8: 0 for a confident right prediction, large for a
    confident wrong one; members have lower values.

    Args:
        logits: Floating, (n, classes), at least two classes.
        targets: Integer class indices, (n,).

    Returns:
        float64, (n,), >= 0.

    Raises:
        ArgumentError: As in `loss`.
    """
    z, y = _both(logits, targets)
    top = z.argmax(1)
    log_p = _all_log_p(z, top)
    # p <= 1/2 everywhere but at the top, where 1 - p is the sum of the others.
    log_not = torch.log1p(-log_p.exp().clamp(max=0.5))
    exact = _others(z, top) - z.logsumexp(1)
    log_not = log_not.scatter(1, top[:, None], exact[:, None])
    own = -_at(log_not, y).exp() * _at(log_p, y)
    wrong = -(log_p.exp() * log_not).scatter(1, y[:, None], 0.0).sum(1)
    return own + wrong


def logit_scaled_confidence(logits: Tensor, targets: Tensor) -> Tensor:
    """The score of LiRA, ``phi = log(p_y / (1 - p_y))``, also called the margin.

    Carlini et al. 2022 (arXiv 2112.03570), section VI-A:
    ``z_y - logsumexp_{j != y} z_j``, near to normal over models. It is what U-LiRA,
    the forgetting quality F and KLOM are made of.

    Args:
        logits: Floating, (n, classes), at least two classes.
        targets: Integer class indices, (n,).

    Returns:
        float64, (n,), any sign; members have higher values.

    Raises:
        ArgumentError: As in `loss`.

    Example:
        >>> logit_scaled_confidence(torch.tensor([[900.0, 0.0]]), torch.tensor([0]))
        tensor([900.], dtype=torch.float64)
    """
    z, y = _both(logits, targets)
    return _at(z, y) - _others(z, y)


_SCORES: MappingProxyType[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = (
    MappingProxyType(
        {
            "loss": (-1, loss),
            "confidence": (1, confidence),
            "entropy": (-1, entropy),
            "modified_entropy": (-1, modified_entropy),
            "lira": (1, logit_scaled_confidence),
        }
    )
)


def membership_score(name: str, logits: Tensor, targets: Tensor) -> Tensor:
    """One of the scores, signed so that a higher value speaks for membership.

    Args:
        name: "loss", "confidence", "entropy", "modified_entropy" or "lira".
        logits: Floating, (n, classes), at least two classes.
        targets: Integer class indices, (n,).

    Returns:
        float64, (n,): what `MembershipInference.update` takes.

    Raises:
        ArgumentError: If the name is unknown, or as in `loss`.
    """
    validate.one_of(tuple(_SCORES), name=name)
    sign, score = _SCORES[name]
    return sign * score(logits, targets)
