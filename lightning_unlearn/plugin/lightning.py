"""Lightning's names, of the package that this process uses.

The only file that imports Lightning. Each name is written once, as it is called in
`lightning`; where the process uses `pytorch_lightning` it is taken from there.
"""

from functools import partial
from typing import TYPE_CHECKING

from lightning_unlearn._base.lazy import lazy_names
from lightning_unlearn.plugin.which_lightning import (
    check_version,
    choose,
    module_in,
    refuse_mixed,
)

PACKAGE = choose()
check_version(PACKAGE)

if TYPE_CHECKING:
    import lightning.pytorch as pl  # noqa: F401
    from lightning.fabric.utilities.exceptions import (
        MisconfigurationException as MisconfigurationException,
    )
    from lightning.pytorch import (
        Callback as Callback,
        LightningDataModule as LightningDataModule,
        LightningModule as LightningModule,
        Trainer as Trainer,
    )
    from lightning.pytorch.callbacks import (
        BaseFinetuning as BaseFinetuning,
        Checkpoint as Checkpoint,
        EarlyStopping as EarlyStopping,
        ModelCheckpoint as ModelCheckpoint,
        ModelPruning as ModelPruning,
        ProgressBar as ProgressBar,
        RichProgressBar as RichProgressBar,
        StochasticWeightAveraging as StochasticWeightAveraging,
        Timer as Timer,
        TQDMProgressBar as TQDMProgressBar,
    )
    from lightning.pytorch.cli import (
        ArgsType as ArgsType,
        LightningArgumentParser as LightningArgumentParser,
        LightningCLI as LightningCLI,
    )
    from lightning.pytorch.core.optimizer import (
        LightningOptimizer as LightningOptimizer,
    )
    from lightning.pytorch.loggers import Logger as Logger
    from lightning.pytorch.loggers.logger import DummyLogger as DummyLogger
    from lightning.pytorch.profilers import PassThroughProfiler as PassThroughProfiler
    from lightning.pytorch.strategies import (
        DDPStrategy as DDPStrategy,
        ModelParallelStrategy as ModelParallelStrategy,
        SingleDeviceStrategy as SingleDeviceStrategy,
    )
    from lightning.pytorch.strategies.launchers import (
        _MultiProcessingLauncher as _MultiProcessingLauncher,
    )
    from lightning.pytorch.trainer.call import (
        _call_and_handle_interrupt as _call_and_handle_interrupt,
    )
    from lightning.pytorch.trainer.states import (
        TrainerFn as TrainerFn,
        TrainerStatus as TrainerStatus,
    )
    from lightning.pytorch.utilities import CombinedLoader as CombinedLoader
    from lightning.pytorch.utilities.compile import (
        _maybe_unwrap_optimized as _maybe_unwrap_optimized,
    )
    from lightning.pytorch.utilities.exceptions import (
        SIGTERMException as SIGTERMException,
    )
    from lightning.pytorch.utilities.model_helpers import is_overridden as is_overridden
    from lightning.pytorch.utilities.seed import isolate_rng as isolate_rng
    from lightning.pytorch.utilities.types import (
        OptimizerLRScheduler as OptimizerLRScheduler,
    )
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__, partial(module_in, PACKAGE))


def check_package(*things: object) -> None:
    """Raise `SetupError` if one of these is made of the package that is not used.

    What we ask of callbacks, such as whether one keeps averaged weights, we would not
    see in classes of the other package: they are looked at too.
    """
    for thing in things:
        refuse_mixed(thing, PACKAGE, PACKAGE)
