"""A request to a private training: the weights stay, and the certificate says why."""

from dataclasses import dataclass
from typing import Any

from lightning_unlearn.certificate.words.theorems import Claim, private_claim
from lightning_unlearn.errors import StrategyError
from lightning_unlearn.guarantee.accounting.private_training import Mechanism, Privacy
from lightning_unlearn.plugin.plan.plan import Plan, Prepared
from lightning_unlearn.solvers.base import Solution, Status
from lightning_unlearn.step.head.prepared_head import PreparedHead
from lightning_unlearn.step.step import Step


@dataclass(frozen=True, kw_only=True)
class PrivatePlan(Plan):
    """See `Plan`; every weight that the training moved is in scope.

    Args:
        clip: Largest norm of one sample's gradient.
        training: Its steps.
        privacy: Of all that will be forgotten so far.
        group: How many these are: samples, or people.
        people: Whether whole people were drawn, and are counted.
    """

    clip: float
    training: Mechanism
    privacy: Privacy
    group: int
    people: bool

    def claim(self) -> Claim:
        """See `Plan`."""
        return private_claim(
            {
                "clip": self.clip,
                "noise_multiplier": self.training.noise_multiplier,
                "sampling_rate": self.training.sampling_rate,
                "steps": float(self.training.steps),
                "forgotten": float(self.group),
                "most_found": self.privacy.most_found,
            },
            self.people,
        )

    def step(self, indices: list[int], proxy_samples: int | None = None) -> Step:
        """See `Plan`: the weights as they are."""
        del indices, proxy_samples
        here = self.scope.flatten()
        stays = Solution(
            x=here * 0, residual=0.0, status=Status.CONVERGED, steps=0, matvecs=0.0
        )
        return Step(weights=here, solution=stays, claim=self.claim())

    def step_from(self, state: Any) -> tuple[Step, PreparedHead | None]:
        """See `Plan`; nothing is prepared of a model that stays."""
        raise self._nothing_to_prepare()

    def prepare(self) -> Prepared:
        """See `Plan`."""
        raise self._nothing_to_prepare()

    @staticmethod
    def _nothing_to_prepare() -> StrategyError:
        return StrategyError(
            "expected a Newton step to prepare for, got a private training: a request "
            "changes no weight of it"
        )
