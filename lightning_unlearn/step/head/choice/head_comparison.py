"""What `compare_heads` gives: a row for each head, and which one to take."""

import textwrap
from dataclasses import dataclass

from lightning_unlearn._base.notebook import box, listed, table
from lightning_unlearn._base.text import number, printable

_WIDTH = 78
_COLUMNS = "weights", "no noise", "certified", "logit noise", "solve"
_TOO_LOUD = 0.1  # of logit noise: from here on it costs accuracy
_OUTSIDE = (
    "Chosen on private data, a backbone, loss or l2 remembers them a little: that is "
    "outside the certificate. Choose on public data, or by yourself, to close that gap."
)


@dataclass(frozen=True, kw_only=True)
class HeadChoice:
    """One way to make a certified head, and how accurate it is.

    Args:
        backbone: Name of the backbone.
        loss: Loss of the head.
        l2: Coefficient of (l2/2)|w|^2.
        n_parameters: Weights of the head.
        score: Mean over the validation samples without noise: accuracy, or minus the
            squared error for targets that are numbers. NaN if it cannot be solved.
        score_with_noise: The same, over several draws of a request's noise.
        standard_error: Standard error of that, over the validation samples.
        noise_std: Standard deviation on each weight of the head.
        logit_noise: ``noise_std`` times the largest norm of a feature row and 1.
        seconds: Time of the solve.
        problem: Why it cannot be solved to the tolerance; "" if it can.
    """

    backbone: str
    loss: str
    l2: float
    n_parameters: int
    score: float
    score_with_noise: float
    standard_error: float
    noise_std: float
    logit_noise: float
    seconds: float
    problem: str = ""

    def row(self) -> str:
        """Its line of the table, from l2 on."""
        _, _, l2, weights, *rest = self.cells()
        head = f"{l2:<6}  {weights:>7}  "
        if self.problem:
            return f"{head}{rest[0]}"
        score, noisy, logit, seconds = rest
        loud = "" if logit.endswith("!") else " "
        return f"{head}{score:>8}  {noisy:>9}  {logit + loud:>11}  {seconds}"

    def cells(self) -> list[str]:
        """Its cells of the table."""
        first = [self.backbone, self.loss, f"{self.l2:.2g}", f"{self.n_parameters:,}"]
        if self.problem:
            return [*first, f"not solved: {self.problem}", "", "", ""]
        loud = "!" if self.logit_noise > _TOO_LOUD else ""
        return [
            *first,
            f"{self.score:.4f}",
            f"{self.score_with_noise:.4f}",
            f"{self.logit_noise:.2g}{loud}",
            f"{self.seconds:.2g} s",
        ]


@dataclass(frozen=True, kw_only=True)
class HeadComparison:
    """What `compare_heads` found; printing it shows the table.

    Args:
        choices: All that were tried.
        recommended: The one with the least logit noise among those whose score with
            noise is within a standard error (of the difference) of the best.
        metric: "accuracy" or "minus squared error".
        epsilon: Of a request, or of all announced releases.
        delta: Likewise.
        releases: How many are announced, or None.
    """

    choices: tuple[HeadChoice, ...]
    recommended: HeadChoice
    metric: str
    epsilon: float
    delta: float
    releases: int | None

    def _repr_html_(self) -> str:
        head = ("", "backbone", "loss", "l2", *_COLUMNS)
        rows = [
            ["*" if choice is self.recommended else "", *choice.cells()]
            for choice in self.choices
        ]
        texts = [*self._remarks(), _OUTSIDE]
        return box(self._title(), table(rows, head, ends=3), listed(texts))

    def __str__(self) -> str:
        names = [printable(c.backbone) for c in self.choices]
        width = max(8, *map(len, names))
        losses = len({c.loss for c in self.choices}) > 1
        lines = [
            *textwrap.wrap(self._title(), _WIDTH),
            "",
            f"    {'backbone':<{width}}  " + (f"{'loss':<13}  " if losses else "")
            + f"{'l2':<6}  " + "  ".join(_COLUMNS),
        ]  # fmt: skip
        for choice, name in zip(self.choices, names, strict=True):
            head = f"  {'*' if choice is self.recommended else ' '} {name:<{width}}  "
            head += f"{choice.loss:<13}  " if losses else ""
            lines.append(head + choice.row())
        remarks = [textwrap.wrap(text, _WIDTH) for text in self._remarks()]
        remarks.append(textwrap.wrap(_OUTSIDE, _WIDTH))
        return "\n".join([*lines, "", *(line for lines in remarks for line in lines)])

    def _title(self) -> str:
        each = f"all {self.releases} releases" if self.releases else "each release"
        return (
            f"HEADS by {self.metric} on the validation data, certified at epsilon "
            f"= {number(self.epsilon)}, delta = {number(self.delta)} for {each}"
        )

    def _remarks(self) -> list[str]:
        best = self.recommended
        remarks = [
            f"* recommended: {printable(best.backbone)}, loss {best.loss}, l2 = "
            f"{best.l2:g} ({best.score_with_noise:.4f} +- {best.standard_error:.4f}): "
            "the least noise among what cannot be told from the best."
        ]
        lost = best.score - best.score_with_noise
        if lost > 2 * best.standard_error:
            remarks.append(
                f"! the noise costs even this one {lost:.3g}, more than its error: no "
                "head here is worth certifying so; lower the tolerance, which the "
                "noise is proportional to, before any request."
            )
        if any(c.logit_noise > _TOO_LOUD for c in self.choices):
            remarks.append(
                f"! the noise moves logits by more than {_TOO_LOUD:g}, which costs "
                "accuracy: lower the tolerance or raise l2."
            )
        if best.logit_noise > 1:
            remarks.append(
                "! and a request would be refused, unless accept_noise=True is said."
            )
        return remarks
