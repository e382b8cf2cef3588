"""The only folder that imports Lightning: importing it adds ``trainer.unlearn``."""

from lightning_unlearn.plugin.verbs.unlearn import attach

attach()
