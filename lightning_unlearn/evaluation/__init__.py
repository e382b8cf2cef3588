"""Does it forget? Metrics of an unlearned model against the retrained one.

Each is usable by itself, with any model: they see logits, margins or weights, never a
Trainer. The reference is always a model retrained without the forgotten samples.
"""

from typing import TYPE_CHECKING

from lightning_unlearn._base.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_unlearn.evaluation.attacks.membership import (
        MembershipInference as MembershipInference,
    )
    from lightning_unlearn.evaluation.attacks.membership import (
        MembershipResult as MembershipResult,
    )
    from lightning_unlearn.evaluation.attacks.roc import Attack as Attack
    from lightning_unlearn.evaluation.attacks.roc import Interval as Interval
    from lightning_unlearn.evaluation.attacks.roc import RateAt as RateAt
    from lightning_unlearn.evaluation.attacks.roc import (
        clopper_pearson as clopper_pearson,
    )
    from lightning_unlearn.evaluation.attacks.ulira import ULiRA as ULiRA
    from lightning_unlearn.evaluation.attacks.ulira import ULiRAResult as ULiRAResult
    from lightning_unlearn.evaluation.audits.added_noise import NoiseSize as NoiseSize
    from lightning_unlearn.evaluation.audits.added_noise import noise_size as noise_size
    from lightning_unlearn.evaluation.audits.audit import AuditReport as AuditReport
    from lightning_unlearn.evaluation.audits.audit import audit as audit
    from lightning_unlearn.evaluation.audits.experiment import Experiment as Experiment
    from lightning_unlearn.evaluation.audits.experiment import Outcome as Outcome
    from lightning_unlearn.evaluation.audits.finding import Audit as Audit
    from lightning_unlearn.evaluation.audits.lower_bounds import (
        epsilon_lower_bound as epsilon_lower_bound,
    )
    from lightning_unlearn.evaluation.audits.lower_bounds import (
        mu_lower_bound as mu_lower_bound,
    )
    from lightning_unlearn.evaluation.audits.one_run import (
        one_run_audit as one_run_audit,
    )
    from lightning_unlearn.evaluation.audits.two_sample import (
        two_sample_audit as two_sample_audit,
    )
    from lightning_unlearn.evaluation.audits.white_box import WhiteBox as WhiteBox
    from lightning_unlearn.evaluation.audits.white_box import (
        white_box_mu as white_box_mu,
    )
    from lightning_unlearn.evaluation.baselines.compare import compare as compare
    from lightning_unlearn.evaluation.baselines.comparison_table import (
        Comparison as Comparison,
    )
    from lightning_unlearn.evaluation.baselines.comparison_table import Row as Row
    from lightning_unlearn.evaluation.baselines.noisy_accountant import (
        noisy_fine_tuning_epsilon as noisy_fine_tuning_epsilon,
    )
    from lightning_unlearn.evaluation.baselines.noisy_accountant import (
        noisy_fine_tuning_noise_std as noisy_fine_tuning_noise_std,
    )
    from lightning_unlearn.evaluation.baselines.noisy_accountant import (
        noisy_fine_tuning_sensitivity as noisy_fine_tuning_sensitivity,
    )
    from lightning_unlearn.evaluation.baselines.noisy_accountant import (
        rdp_epsilon as rdp_epsilon,
    )
    from lightning_unlearn.evaluation.baselines.noisy_fine_tuning import (
        noisy_fine_tune as noisy_fine_tune,
    )
    from lightning_unlearn.evaluation.baselines.paper_bounds import (
        gaussian_sigma_classic as gaussian_sigma_classic,
    )
    from lightning_unlearn.evaluation.baselines.simple import Baseline as Baseline
    from lightning_unlearn.evaluation.baselines.simple import fine_tune as fine_tune
    from lightning_unlearn.evaluation.baselines.simple import (
        gradient_ascent as gradient_ascent,
    )
    from lightning_unlearn.evaluation.baselines.simple import (
        neg_grad_plus as neg_grad_plus,
    )
    from lightning_unlearn.evaluation.baselines.simple import retrain as retrain
    from lightning_unlearn.evaluation.metrics.accuracy_gaps import (
        AccuracyGaps as AccuracyGaps,
    )
    from lightning_unlearn.evaluation.metrics.distances import (
        OutputDivergence as OutputDivergence,
    )
    from lightning_unlearn.evaluation.metrics.distances import (
        WeightDistance as WeightDistance,
    )
    from lightning_unlearn.evaluation.metrics.distances import (
        weight_distance as weight_distance,
    )
    from lightning_unlearn.evaluation.metrics.forgetting_quality import (
        ForgettingQuality as ForgettingQuality,
    )
    from lightning_unlearn.evaluation.metrics.forgetting_quality import (
        challenge_score as challenge_score,
    )
    from lightning_unlearn.evaluation.metrics.forgetting_quality import (
        example_epsilons as example_epsilons,
    )
    from lightning_unlearn.evaluation.metrics.klom import Klom as Klom
    from lightning_unlearn.evaluation.metrics.klom import klom as klom
    from lightning_unlearn.evaluation.metrics.relearning import Relearning as Relearning
    from lightning_unlearn.evaluation.metrics.relearning import (
        RelearnTime as RelearnTime,
    )
    from lightning_unlearn.evaluation.metrics.relearning import (
        relearn_time as relearn_time,
    )
    from lightning_unlearn.evaluation.metrics.scores import confidence as confidence
    from lightning_unlearn.evaluation.metrics.scores import entropy as entropy
    from lightning_unlearn.evaluation.metrics.scores import (
        logit_scaled_confidence as logit_scaled_confidence,
    )
    from lightning_unlearn.evaluation.metrics.scores import loss as loss
    from lightning_unlearn.evaluation.metrics.scores import (
        membership_score as membership_score,
    )
    from lightning_unlearn.evaluation.metrics.scores import (
        modified_entropy as modified_entropy,
    )

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
