"""Does it forget? Metrics of an unlearned model against the retrained one.

Each is usable by itself, with any model: they see logits, margins or weights, never a
Trainer. The reference is always a model retrained without the forgotten samples.
"""

from typing import TYPE_CHECKING

from lightning_unlearn._base.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_unlearn.evaluation.attacks.membership import (
        MembershipInference as MembershipInference,
        MembershipResult as MembershipResult,
    )
    from lightning_unlearn.evaluation.attacks.roc import (
        Attack as Attack,
        Interval as Interval,
        RateAt as RateAt,
        clopper_pearson as clopper_pearson,
    )
    from lightning_unlearn.evaluation.attacks.ulira import (
        ULiRA as ULiRA,
        ULiRAResult as ULiRAResult,
    )
    from lightning_unlearn.evaluation.audits.added_noise import (
        NoiseSize as NoiseSize,
        noise_size as noise_size,
    )
    from lightning_unlearn.evaluation.audits.audit import (
        AuditReport as AuditReport,
        audit as audit,
    )
    from lightning_unlearn.evaluation.audits.experiment import (
        Experiment as Experiment,
        Outcome as Outcome,
    )
    from lightning_unlearn.evaluation.audits.finding import Audit as Audit
    from lightning_unlearn.evaluation.audits.lower_bounds import (
        epsilon_lower_bound as epsilon_lower_bound,
        mu_lower_bound as mu_lower_bound,
    )
    from lightning_unlearn.evaluation.audits.one_run import (
        one_run_audit as one_run_audit,
    )
    from lightning_unlearn.evaluation.audits.two_sample import (
        two_sample_audit as two_sample_audit,
    )
    from lightning_unlearn.evaluation.audits.white_box import (
        WhiteBox as WhiteBox,
        white_box_mu as white_box_mu,
    )
    from lightning_unlearn.evaluation.baselines.compare import compare as compare
    from lightning_unlearn.evaluation.baselines.comparison_table import (
        Comparison as Comparison,
        Row as Row,
    )
    from lightning_unlearn.evaluation.baselines.noisy_accountant import (
        noisy_fine_tuning_epsilon as noisy_fine_tuning_epsilon,
        noisy_fine_tuning_noise_std as noisy_fine_tuning_noise_std,
        noisy_fine_tuning_sensitivity as noisy_fine_tuning_sensitivity,
        rdp_epsilon as rdp_epsilon,
    )
    from lightning_unlearn.evaluation.baselines.noisy_fine_tuning import (
        noisy_fine_tune as noisy_fine_tune,
    )
    from lightning_unlearn.evaluation.baselines.paper_bounds import (
        gaussian_sigma_classic as gaussian_sigma_classic,
    )
    from lightning_unlearn.evaluation.baselines.simple import (
        Baseline as Baseline,
        fine_tune as fine_tune,
        gradient_ascent as gradient_ascent,
        neg_grad_plus as neg_grad_plus,
        retrain as retrain,
    )
    from lightning_unlearn.evaluation.metrics.accuracy_gaps import (
        AccuracyGaps as AccuracyGaps,
    )
    from lightning_unlearn.evaluation.metrics.distances import (
        OutputDivergence as OutputDivergence,
        WeightDistance as WeightDistance,
        weight_distance as weight_distance,
    )
    from lightning_unlearn.evaluation.metrics.forgetting_quality import (
        ForgettingQuality as ForgettingQuality,
        challenge_score as challenge_score,
        example_epsilons as example_epsilons,
    )
    from lightning_unlearn.evaluation.metrics.klom import Klom as Klom, klom as klom
    from lightning_unlearn.evaluation.metrics.relearning import (
        Relearning as Relearning,
        RelearnTime as RelearnTime,
        relearn_time as relearn_time,
    )
    from lightning_unlearn.evaluation.metrics.scores import (
        confidence as confidence,
        entropy as entropy,
        logit_scaled_confidence as logit_scaled_confidence,
        loss as loss,
        membership_score as membership_score,
        modified_entropy as modified_entropy,
    )
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
