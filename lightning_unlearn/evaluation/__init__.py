"""Does it forget? Metrics of an unlearned model against the retrained one.

Each is usable by itself, with any model: they see logits, margins or weights, never a
Trainer. The reference is always a model retrained without the forgotten samples.
"""

from lightning_unlearn.evaluation.added_noise import NoiseSize as NoiseSize
from lightning_unlearn.evaluation.added_noise import noise_size as noise_size
from lightning_unlearn.evaluation.audits import AuditReport as AuditReport
from lightning_unlearn.evaluation.audits import audit as audit
from lightning_unlearn.evaluation.baselines import Baseline as Baseline
from lightning_unlearn.evaluation.baselines import fine_tune as fine_tune
from lightning_unlearn.evaluation.baselines import gradient_ascent as gradient_ascent
from lightning_unlearn.evaluation.baselines import neg_grad_plus as neg_grad_plus
from lightning_unlearn.evaluation.baselines import retrain as retrain
from lightning_unlearn.evaluation.comparison import Comparison as Comparison
from lightning_unlearn.evaluation.comparison import Row as Row
from lightning_unlearn.evaluation.distances import OutputDivergence as OutputDivergence
from lightning_unlearn.evaluation.distances import WeightDistance as WeightDistance
from lightning_unlearn.evaluation.distances import weight_distance as weight_distance
from lightning_unlearn.evaluation.experiment import Experiment as Experiment
from lightning_unlearn.evaluation.experiment import Outcome as Outcome
from lightning_unlearn.evaluation.finding import Audit as Audit
from lightning_unlearn.evaluation.gaps import AccuracyGaps as AccuracyGaps
from lightning_unlearn.evaluation.lower import (
    epsilon_lower_bound as epsilon_lower_bound,
)
from lightning_unlearn.evaluation.lower import mu_lower_bound as mu_lower_bound
from lightning_unlearn.evaluation.margins import Klom as Klom
from lightning_unlearn.evaluation.margins import klom as klom
from lightning_unlearn.evaluation.membership import (
    MembershipInference as MembershipInference,
)
from lightning_unlearn.evaluation.membership import MembershipResult as MembershipResult
from lightning_unlearn.evaluation.methods import compare as compare
from lightning_unlearn.evaluation.noisy_fine_tuning import (
    noisy_fine_tune as noisy_fine_tune,
)
from lightning_unlearn.evaluation.one_run import one_run_audit as one_run_audit
from lightning_unlearn.evaluation.quality import ForgettingQuality as ForgettingQuality
from lightning_unlearn.evaluation.quality import challenge_score as challenge_score
from lightning_unlearn.evaluation.quality import example_epsilons as example_epsilons
from lightning_unlearn.evaluation.relearn import Relearning as Relearning
from lightning_unlearn.evaluation.relearn import RelearnTime as RelearnTime
from lightning_unlearn.evaluation.relearn import relearn_time as relearn_time
from lightning_unlearn.evaluation.roc import Attack as Attack
from lightning_unlearn.evaluation.roc import Interval as Interval
from lightning_unlearn.evaluation.roc import RateAt as RateAt
from lightning_unlearn.evaluation.roc import clopper_pearson as clopper_pearson
from lightning_unlearn.evaluation.scores import confidence as confidence
from lightning_unlearn.evaluation.scores import entropy as entropy
from lightning_unlearn.evaluation.scores import (
    logit_scaled_confidence as logit_scaled_confidence,
)
from lightning_unlearn.evaluation.scores import loss as loss
from lightning_unlearn.evaluation.scores import membership_score as membership_score
from lightning_unlearn.evaluation.scores import modified_entropy as modified_entropy
from lightning_unlearn.evaluation.two_sample import two_sample_audit as two_sample_audit
from lightning_unlearn.evaluation.ulira import ULiRA as ULiRA
from lightning_unlearn.evaluation.ulira import ULiRAResult as ULiRAResult
from lightning_unlearn.evaluation.white_box import WhiteBox as WhiteBox
from lightning_unlearn.evaluation.white_box import white_box_mu as white_box_mu
