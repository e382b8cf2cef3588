"""One seed: its forget set, and the networks trained with it and without it."""

import copy
import time
from functools import cached_property

import torch
from lightning.pytorch import Trainer, seed_everything
from models import load, loader, loss, make
from settings import Cache, Setting
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_unlearn as lu

TRAINED = ("original", "retrained", "retrained again")


class World:
    """What every row of one seed shares.

    The retrained network starts from the original's initial weights; "retrained
    again" has another seed, so the two say how far retrainings differ by chance.

    Args:
        setting: What is run.
        seed: Of the forget set, the initial weights and the order of batches.
        device: "cpu" or "cuda".
        cache: Where trained weights are kept.
    """

    def __init__(self, setting: Setting, seed: int, device: str, cache: Cache) -> None:
        self.setting, self.seed, self.device, self.cache = setting, seed, device, cache
        self.train, self.test = load(setting, device)
        n = len(self.train)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        self.forget = order[: setting.n_forget].sort().values
        keep = torch.ones(n, dtype=torch.bool)
        keep[self.forget] = False
        self.retain_set = self.part(keep.nonzero()[:, 0])
        self.forget_set = self.part(self.forget)

    def part(self, rows: Tensor) -> TensorDataset:
        """Some of the training samples."""
        return TensorDataset(*(t[rows.to(t.device)] for t in self.train.tensors))

    def make(self) -> nn.Module:
        """A network whose weights will be loaded."""
        return make(self.setting)

    def trainer(self, callback: lu.UnlearningCallback, epochs: int = 1) -> Trainer:
        """A Trainer that prints and writes nothing."""
        return Trainer(
            max_epochs=epochs,
            callbacks=[callback],
            accelerator="gpu" if self.device == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def callback(self, **options) -> lu.UnlearningCallback:
        """With the norm ball, the batch size and the damping of the setting."""
        damping = self.setting.damping
        fixed = {"damping": "auto" if damping is None else damping}
        fixed |= {"max_norm": self.setting.max_norm, "accept_noise": True}
        fixed |= {"batch_size": self.setting.batch_size}
        if self.device == "cuda":  # three seeds share one: "auto" would take all of it
            fixed |= {"graph_memory": 8 << 30}
        return lu.UnlearningCallback(**{**fixed, **options})

    @property
    def checkpoint(self):
        """Of the original network, as the Trainer saved it."""
        return self.cache.path(self.seed, "original", "ckpt")

    def trained(self, name: str) -> tuple[nn.Module, float]:
        """(one of `TRAINED`, seconds of its training), from the cache if there."""
        file = self.cache.path(self.seed, name, "pt")
        net = self.make()
        if not file.exists():
            seconds = self._fit(net, name)
            torch.save({"weights": net.state_dict(), "seconds": seconds}, file)
        kept = torch.load(file, weights_only=True, map_location=self.device)
        net.load_state_dict(kept["weights"])
        return net.to(self.device).eval(), kept["seconds"]

    def _fit(self, net: nn.Module, name: str) -> float:
        again = 1000 if name == "retrained again" else 0
        seed_everything(self.seed + again, verbose=False)
        net.load_state_dict(self.make().state_dict())  # of this seed
        whole = name == "original"
        own = self.trainer(self.callback(), self.setting.epochs)
        begin = time.perf_counter()
        own.fit(net, loader(self.train if whole else self.retain_set, shuffle=True))
        self.wait()
        seconds = time.perf_counter() - begin
        if whole:
            own.save_checkpoint(self.checkpoint)
        return seconds

    @cached_property
    def original(self) -> nn.Module:
        """Trained on all samples."""
        return self.trained("original")[0]

    @cached_property
    def retrained(self) -> nn.Module:
        """Trained on the retained samples."""
        return self.trained("retrained")[0]

    def request(self, forget: Tensor, **options):
        """(network, result) of ``trainer.unlearn`` on the original checkpoint."""
        net = self.make()
        result = self.trainer(self.callback(**options)).unlearn(
            forget,
            model=net,
            train_dataloaders=DataLoader(self.train, 128),
            ckpt_path=self.checkpoint,
        )
        return net.to(self.device).eval(), result

    def wait(self) -> None:
        """For the device, before a clock is read."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    @torch.no_grad()
    def logits(self, net: nn.Module, dataset: TensorDataset) -> Tensor:
        """Of all samples, in their order, on the CPU."""
        net = net.to(self.device).eval()
        parts = [net(b[0]) for b in loader(dataset, self.setting.batch_size)]
        return torch.cat(parts).float().cpu()

    def gradient(self, net: nn.Module, dataset: TensorDataset) -> Tensor:
        """Of F over a dataset, weight decay included, in float64."""
        net = copy.deepcopy(net).to(self.device).eval()
        total = torch.zeros((), dtype=torch.float64)
        for batch in loader(dataset, self.setting.batch_size):
            value = loss(net, batch) * len(batch[0]) / len(dataset)
            found = torch.autograd.grad(value, list(net.parameters()))
            total = total + flat(found)
        return total + 5e-4 * flat(net.parameters())


def flat(tensors) -> Tensor:
    """One float64 vector on the CPU."""
    return torch.cat([t.detach().double().reshape(-1).cpu() for t in tensors])
