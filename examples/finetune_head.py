"""Delete a whole user's samples from a head on a public ResNet-20, certified.

    LIGHTNING_UNLEARN_DATA=folder python examples/finetune_head.py [user]

needs ``weights/resnet20-12fca82f.th`` (akamaster/pytorch_resnet_cifar10, BSD-2) and
``cifar100/subset_10k_2k.npz`` in the folder; most of its time reads the images once.

The backbone was trained on CIFAR-10. The private images are CIFAR-100, which are other
images: it cannot remember them, and taking it as public is true. With CIFAR-10 as the
private data it would be false, since the backbone has seen those images; the run
would still print "certified, taking ... backbone as public". No program can check that
for you.
"""

import hashlib
import logging
import os
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_unlearn import ConvexHead, UnlearnableMixin, UnlearningCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]  # ImageNet's: public too
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


class Block(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.stride, self.extra = after // before, (after - before) // 2
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = x[:, :, :: self.stride, :: self.stride]  # shortcut "option A"
        return F.relu(out + F.pad(x, (0, 0, 0, 0, self.extra, self.extra)))


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return x.mean((2, 3))


def public_backbone(path):
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith("12fca82f"):
        sys.exit(f"{path} is not the published file: its sha256 differs")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    state = {name.removeprefix("module."): value for name, value in state.items()}
    backbone = ResNet20()  # without the CIFAR-10 layer at the end
    backbone.load_state_dict({k: v for k, v in state.items() if "linear" not in k})
    return backbone.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def features(backbone, file, kind):
    """64 numbers an image, with ``user_id``: made up, but the same in every run.

    The last bits of a row depend on the batch it is computed in. A batch here holds
    one user's images, so no row depends on another user in any bit.
    """
    e = file[f"{kind}_x"]  # the pixels are delta-coded
    v = np.cumsum(np.cumsum(e, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    green = v[:, 0]
    images = torch.tensor(np.stack([v[:, 1] + green, green, v[:, 2] + green], 1))
    users = file[f"{kind}_index"] % 200
    rows = torch.empty(len(images), 64)
    with torch.inference_mode():
        for user in np.unique(users):
            mine = torch.tensor(users == user)
            rows[mine] = backbone((images[mine] / 255 - MEAN) / STD)
    dataset = TensorDataset(rows, torch.tensor(file[f"{kind}_y"].astype(np.int64)))
    dataset.user_id = [f"u{user}" for user in users]
    return dataset


class Net(UnlearnableMixin, L.LightningModule):
    """The backbone stays in it: to serve images, and to be named in the certificate."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = ConvexHead(64, 100)

    def forward(self, images):
        return self.head(self.backbone((images - MEAN) / STD))

    def on_train_epoch_start(self):
        self.backbone.eval()  # keeps BatchNorm's statistics still

    def training_step(self, batch, batch_idx):
        rows, labels = batch
        return self.head.loss(rows, labels).mean()

    def configure_optimizers(self):
        adam = torch.optim.Adam(self.head.parameters(), lr=0.05, weight_decay=1e-3)
        return [adam], [torch.optim.lr_scheduler.CosineAnnealingLR(adam, 20)]


def train(backbone, train_set):
    net = Net(backbone)
    trainer = L.Trainer(
        max_epochs=20,
        callbacks=[UnlearningCallback(epsilon=1.0, delta=1e-5)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(net, DataLoader(train_set, batch_size=500, shuffle=True))
    return net, trainer


def accuracies(net, parts):
    found = []
    for part in parts:
        rows, labels = next(iter(DataLoader(part, batch_size=len(part))))
        with torch.no_grad():
            found.append((net.head(rows).argmax(1) == labels).float().mean().item())
    return found


def main(user="u17"):
    L.seed_everything(0, verbose=False)
    folder = Path(os.environ.get("LIGHTNING_UNLEARN_DATA", "."))
    weights = folder / "weights" / "resnet20-12fca82f.th"
    images = folder / "cifar100" / "subset_10k_2k.npz"
    if not (weights.is_file() and images.is_file()):
        sys.exit(f"no {weights} or no {images}: set LIGHTNING_UNLEARN_DATA")
    start = time.perf_counter()
    backbone = public_backbone(weights)
    with np.load(images) as file:
        train_set, test_set = (features(backbone, file, k) for k in ("train", "test"))
    read_in = time.perf_counter() - start

    forget = [i for i, owner in enumerate(train_set.user_id) if owner == user]
    retain = [i for i, owner in enumerate(train_set.user_id) if owner != user]
    parts = [Subset(train_set, forget), Subset(train_set, retain), test_set]

    net, trainer = train(backbone, train_set)
    rows = [("before", accuracies(net, parts))]
    result = trainer.unlearn([user], by="user_id")  # <- the one new line
    rows.append(("after unlearning", accuracies(net, parts)))
    start = time.perf_counter()
    retrained, _ = train(backbone, parts[1])
    retrained_in = time.perf_counter() - start
    rows.append(("retrained without", accuracies(retrained, parts)))

    print(result.certificate)
    print(f"\n{f'accuracy ({user})':<22}{'forget':>9}{'retain':>9}{'test':>9}")
    for name, row in rows:
        print(f"{name:<22}" + "".join(f"{a:>9.1%}" for a in row))
    print(
        f"\n{len(forget)} images of {user} deleted in {result.seconds:.1f} s; the head "
        f"retrained in {retrained_in:.1f} s; all images read once in {read_in:.0f} s"
    )
    return result, rows


if __name__ == "__main__":
    torch.set_num_threads(1)  # batches are small: on a busy machine more are slower
    main(*sys.argv[1:])
