"""Pure numbers: what is proved, from which constants, and how sure it is."""

from lightning_unlearn.certificate.claims import Bound as Bound
from lightning_unlearn.certificate.claims import Grade as Grade
from lightning_unlearn.certificate.claims import NoiseSource as NoiseSource
from lightning_unlearn.certificate.constants import Constant as Constant
from lightning_unlearn.certificate.constants import Origin as Origin
from lightning_unlearn.certificate.gaussian import (
    compose_mu as compose_mu,
)
from lightning_unlearn.certificate.gaussian import (
    gaussian_delta as gaussian_delta,
)
from lightning_unlearn.certificate.gaussian import (
    gaussian_epsilon as gaussian_epsilon,
)
from lightning_unlearn.certificate.gaussian import (
    gaussian_mu as gaussian_mu,
)
from lightning_unlearn.certificate.gaussian import (
    gaussian_sigma as gaussian_sigma,
)
from lightning_unlearn.certificate.gaussian import (
    gaussian_sigma_classic as gaussian_sigma_classic,
)
from lightning_unlearn.certificate.noisy_fine_tuning import (
    noisy_fine_tuning_epsilon as noisy_fine_tuning_epsilon,
)
from lightning_unlearn.certificate.noisy_fine_tuning import (
    noisy_fine_tuning_noise_std as noisy_fine_tuning_noise_std,
)
from lightning_unlearn.certificate.noisy_fine_tuning import (
    noisy_fine_tuning_sensitivity as noisy_fine_tuning_sensitivity,
)
from lightning_unlearn.certificate.noisy_fine_tuning import (
    rdp_epsilon as rdp_epsilon,
)
from lightning_unlearn.certificate.record import Certificate as Certificate
from lightning_unlearn.certificate.record import PublicPart as PublicPart
