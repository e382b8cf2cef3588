"""Certified machine unlearning inside the PyTorch Lightning Trainer.

Importing this package adds ``unlearn`` to `lightning.pytorch.Trainer`.
"""

from lightning_unlearn.backbone import PublicBackbone as PublicBackbone
from lightning_unlearn.certificate import Certificate as Certificate
from lightning_unlearn.certificate.guarantees import NewtonStep as NewtonStep
from lightning_unlearn.certificate.guarantees import NormBall as NormBall
from lightning_unlearn.certificate.guarantees import StronglyConvex as StronglyConvex
from lightning_unlearn.choice import HeadChoice as HeadChoice
from lightning_unlearn.choice import HeadComparison as HeadComparison
from lightning_unlearn.choice import compare_heads as compare_heads
from lightning_unlearn.heads import ConvexHead as ConvexHead
from lightning_unlearn.plugin.callback import UnlearningCallback as UnlearningCallback
from lightning_unlearn.plugin.certified import (
    CertifiedClassifier as CertifiedClassifier,
)
from lightning_unlearn.plugin.certified import CertifiedRegressor as CertifiedRegressor
from lightning_unlearn.plugin.experiment import TrainerExperiment as TrainerExperiment
from lightning_unlearn.plugin.mixin import UnlearnableMixin as UnlearnableMixin
from lightning_unlearn.plugin.preflight import Preflight as Preflight
from lightning_unlearn.plugin.preflight import preflight as preflight
from lightning_unlearn.plugin.prepare import Preparation as Preparation
from lightning_unlearn.plugin.prepare import prepare as prepare
from lightning_unlearn.plugin.result import UnlearningResult as UnlearningResult
from lightning_unlearn.plugin.trainer import Trainer as Trainer
from lightning_unlearn.plugin.trainer import attach as _attach
from lightning_unlearn.plugin.trainer import unlearn as unlearn
from lightning_unlearn.solvers import CG as CG
from lightning_unlearn.solvers import Dense as Dense
from lightning_unlearn.solvers import FlexibleCG as FlexibleCG
from lightning_unlearn.solvers import LiSSA as LiSSA
from lightning_unlearn.solvers import NystromCG as NystromCG
from lightning_unlearn.solvers import Solution as Solution

_attach()
