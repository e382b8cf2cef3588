"""Run by test_distributed.py: train under two processes and save a checkpoint."""

import sys

import torch

from tests.helpers.nets import HeadNet, UnlearningCallback, digits, loader, trainer

if __name__ == "__main__":
    torch.set_num_threads(1)
    callback = UnlearningCallback(max_norm=2.0, accept_noise=True)
    fit_trainer = trainer(callback, max_epochs=4, strategy="ddp", devices=2)
    fit_trainer.fit(HeadNet(lr=0.1), loader(digits(600)))
    fit_trainer.save_checkpoint(sys.argv[1])
