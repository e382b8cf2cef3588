"""The only folder that imports Lightning: importing it adds ``trainer.unlearn``."""

from lightning_unlearn.plugin.run.compat import name_mixed_packages
from lightning_unlearn.plugin.verbs.unlearn import attach

attach()
name_mixed_packages()
