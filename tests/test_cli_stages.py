"""``fit`` in stages from the command line, and a request that goes back to one."""

import json

import pytest
from torch.utils.data import Subset

from lightning_unlearn.cli import LightningCLI
from tests.helpers.cli_project import QUIET, Classifier, Digits


class Growing(Digits):
    """A table that gets longer: some come later."""

    def __init__(self, batch_size: int = 64, n: int = 400):
        super().__init__(batch_size)
        self.n = n

    def setup(self, stage: str):
        super().setup(stage)
        self.train = Subset(self.train.dataset, range(self.n))


def run(verb, *arguments):
    arguments = [verb, "--config", "config.yaml", *QUIET, *arguments]
    LightningCLI(Classifier, Growing, args=arguments)


@pytest.mark.parametrize(
    ("forget", "bound"), [("[450]", "rewound"), ("[3]", "retrained")]
)
def test_fit_twice_then_a_request(forget, bound, project, capsys):
    kept = "--unlearning.stages=stages"
    run("fit", kept, "--trainer.max_epochs=2")
    assert not list((project / "stages").iterdir())
    more = ("--data.n=500", "--ckpt_path=run.ckpt")
    run("fit", kept, *more, "--trainer.max_epochs=4")
    assert len(list((project / "stages").iterdir())) == 1
    run("unlearn", kept, "--data.n=500", "--ckpt_path=run.ckpt", "--forget", forget,
        "--how=retrain", "--save_to=clean.ckpt", "--trainer.max_epochs=1")  # fmt: skip
    assert capsys.readouterr().out.count("EXACT: retrained by this tool") == 1
    certificate = json.loads((project / "clean.certificate.json").read_text())
    assert (certificate["grade"], certificate["bound"]) == ("exact", bound)
    (left,) = (project / "stages").iterdir()
    assert f"-{400 - (bound == 'retrained')}-" in left.name
