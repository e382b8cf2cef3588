"""Lightning's names for tests, of the package that the process uses.

Set LIGHTNING_UNLEARN_LIGHTNING=pytorch_lightning to run the same tests under it.
"""

from functools import partial
from typing import TYPE_CHECKING

from lightning_unlearn._base.lazy import lazy_names
from lightning_unlearn.plugin.lightning import PACKAGE
from lightning_unlearn.plugin.which_lightning import module_in

if TYPE_CHECKING:
    import lightning.pytorch as L  # noqa: F401
    import lightning.pytorch as pl  # noqa: F401
    from lightning.pytorch import (
        Callback as Callback,
        LightningDataModule as LightningDataModule,
        LightningModule as LightningModule,
    )
    from lightning.pytorch.callbacks import (
        BackboneFinetuning as BackboneFinetuning,
        BatchSizeFinder as BatchSizeFinder,
        EarlyStopping as EarlyStopping,
        ModelCheckpoint as ModelCheckpoint,
        ModelPruning as ModelPruning,
        RichProgressBar as RichProgressBar,
        StochasticWeightAveraging as StochasticWeightAveraging,
        ThroughputMonitor as ThroughputMonitor,
        Timer as Timer,
        TQDMProgressBar as TQDMProgressBar,
    )
    from lightning.pytorch.cli import LightningCLI as LightningCLI
    from lightning.pytorch.loggers import (
        CSVLogger as CSVLogger,
        Logger as Logger,
        MLFlowLogger as MLFlowLogger,
        TensorBoardLogger as TensorBoardLogger,
    )
    from lightning.pytorch.plugins import MixedPrecision as MixedPrecision
    from lightning.pytorch.strategies import (
        DDPStrategy as DDPStrategy,
        FSDPStrategy as FSDPStrategy,
        ModelParallelStrategy as ModelParallelStrategy,
    )
    from lightning.pytorch.utilities import CombinedLoader as CombinedLoader
    from lightning.pytorch.utilities.exceptions import (
        SIGTERMException as SIGTERMException,
    )
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__, partial(module_in, PACKAGE))


def in_package(text: str, package: str = PACKAGE) -> str:
    """A user's file, written for `lightning`, as one for a package."""
    if package == "lightning":
        return text
    text = text.replace("import lightning as", "import pytorch_lightning as")
    return text.replace("lightning.pytorch", "pytorch_lightning")
