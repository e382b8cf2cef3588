"""Questions of bank customers, sorted by a public language model: certified deletions.

    pip install -e ".[examples,texts]"
    LIGHTNING_UNLEARN_DATA=folder python examples/banking77.py MODEL

The folder holds ``banking77/train.csv`` and ``test.csv`` (Casanueva et al. 2020, CC BY
4.0). MODEL is a name or folder that `transformers` loads; all-MiniLM-L6-v2 by default.
It was not trained on these questions. Reading them takes some minutes on one core.
"""

import logging
import os
import sys

import lightning as L
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding

from lightning_unlearn import CertifiedClassifier, PublicBackbone, UnlearningCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


# -- begin: 25 lines ---------------------------------------------------------
def main(folder, model=MODEL, rows=None):
    tokenizer = AutoTokenizer.from_pretrained(model)

    def read(part):
        data = Dataset.from_csv(f"{folder}/banking77/{part}.csv", keep_in_memory=True)
        data = data.select(range(0, len(data), -(-len(data) // rows) if rows else 1))
        data = data.class_encode_column("category").rename_column("category", "label")
        data = data.map(lambda row: tokenizer(row["text"]))
        # Texts of one length stand together: batches are padded little.
        return data.map(lambda row: {"length": len(row["input_ids"])}).sort("length")

    def loader(data, **options):
        data = data.select_columns(["input_ids", "attention_mask", "label"])
        collate = DataCollatorWithPadding(tokenizer)
        return DataLoader(data, 64, collate_fn=collate, **options)

    train, test = read("train"), read("test")
    backbone = PublicBackbone(AutoModel.from_pretrained(model))
    net = CertifiedClassifier(backbone, num_classes=77)
    unlearning = UnlearningCallback(epsilon=1.0, delta=1e-5, tolerance=1e-7)
    trainer = L.Trainer(max_epochs=-1, callbacks=[unlearning], accelerator="cpu")
    trainer.fit(net, loader(train, shuffle=True))
    phone = train.filter(lambda row: "phone" in row["text"])  # whom to forget
    result = trainer.unlearn(phone, save_to="clean.ckpt")
    return result, trainer.test(net, loader(test))


# -- end ---------------------------------------------------------------------


if __name__ == "__main__":
    result, measured = main(os.environ["LIGHTNING_UNLEARN_DATA"], *sys.argv[1:])
    print(result.certificate, measured[0], sep="\n\n")
