"""Pure numbers: what is proved, from which constants, and how sure it is."""

from typing import TYPE_CHECKING

from lightning_unlearn._base.lazy import lazy_names

if TYPE_CHECKING:
    from lightning_unlearn.guarantee.claims import Bound as Bound
    from lightning_unlearn.guarantee.claims import Grade as Grade
    from lightning_unlearn.guarantee.claims import NoiseSource as NoiseSource
    from lightning_unlearn.guarantee.constants import Constant as Constant
    from lightning_unlearn.guarantee.constants import Origin as Origin
    from lightning_unlearn.guarantee.gaussian import compose_mu as compose_mu
    from lightning_unlearn.guarantee.gaussian import gaussian_delta as gaussian_delta
    from lightning_unlearn.guarantee.gaussian import (
        gaussian_epsilon as gaussian_epsilon,
    )
    from lightning_unlearn.guarantee.gaussian import gaussian_mu as gaussian_mu
    from lightning_unlearn.guarantee.gaussian import gaussian_sigma as gaussian_sigma

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
