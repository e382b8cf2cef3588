"""Certified machine unlearning inside the PyTorch Lightning Trainer.

Names are imported when they are first used, so that certificates can be read without
torch. Importing any part of the plugin, such as `UnlearningCallback`, adds ``unlearn``
and ``preflight`` to Lightning's Trainer, be it `lightning.pytorch` or
`pytorch_lightning` (see `plugin.which_lightning`).
"""

from typing import TYPE_CHECKING

from lightning_unlearn._base.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_unlearn.certificate.certificate import Certificate as Certificate
    from lightning_unlearn.guarantee.kinds import (
        NewtonStep as NewtonStep,
        NormBall as NormBall,
        PrivateTraining as PrivateTraining,
        StronglyConvex as StronglyConvex,
    )
    from lightning_unlearn.plugin.callback import (
        UnlearningCallback as UnlearningCallback,
    )
    from lightning_unlearn.plugin.certified.heads import (
        CertifiedClassifier as CertifiedClassifier,
        CertifiedRegressor as CertifiedRegressor,
    )
    from lightning_unlearn.plugin.certified.privately_trained import (
        PrivatelyTrained as PrivatelyTrained,
    )
    from lightning_unlearn.plugin.data.assignment import stages_of as stages_of
    from lightning_unlearn.plugin.excluded import excluded as excluded
    from lightning_unlearn.plugin.mixin import UnlearnableMixin as UnlearnableMixin
    from lightning_unlearn.plugin.request.result import (
        UnlearningResult as UnlearningResult,
    )
    from lightning_unlearn.plugin.sharded.sharded_classifier import (
        ShardedClassifier as ShardedClassifier,
    )
    from lightning_unlearn.plugin.sharded.sharded_result import (
        ShardedResult as ShardedResult,
    )
    from lightning_unlearn.plugin.verbs.preflight import (
        Preflight as Preflight,
        preflight as preflight,
    )
    from lightning_unlearn.plugin.verbs.prepare import (
        Preparation as Preparation,
        prepare as prepare,
    )
    from lightning_unlearn.plugin.verbs.trainer_experiment import (
        TrainerExperiment as TrainerExperiment,
    )
    from lightning_unlearn.plugin.verbs.unlearn import (
        Trainer as Trainer,
        unlearn as unlearn,
    )
    from lightning_unlearn.solvers.base import Solution as Solution
    from lightning_unlearn.solvers.cg import CG as CG
    from lightning_unlearn.solvers.dense import Dense as Dense
    from lightning_unlearn.solvers.flexible import FlexibleCG as FlexibleCG
    from lightning_unlearn.solvers.lissa import LiSSA as LiSSA
    from lightning_unlearn.solvers.nystrom import NystromCG as NystromCG
    from lightning_unlearn.step.head.backbone import PublicBackbone as PublicBackbone
    from lightning_unlearn.step.head.choice.head_choice import (
        compare_heads as compare_heads,
    )
    from lightning_unlearn.step.head.choice.head_comparison import (
        HeadChoice as HeadChoice,
        HeadComparison as HeadComparison,
    )
    from lightning_unlearn.step.head.convex_head import ConvexHead as ConvexHead
    from lightning_unlearn.step.head.seeded.random_features import (
        RandomFeatures as RandomFeatures,
    )
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
