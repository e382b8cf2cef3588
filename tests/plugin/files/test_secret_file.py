"""What a killed write leaves on the disk, and how it is cleared away."""

import subprocess
import sys

import torch

from lightning_unlearn._base.files import part_of
from lightning_unlearn.plugin.files.secret_file import SecretFile

KIND = SecretFile("a kind", "some secret", "secret=")
KILLED = """
import resource, signal, sys
from pathlib import Path
import torch
from lightning_unlearn.plugin.files.secret_file import SecretFile
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # killed in the middle of the write
kind = SecretFile("a kind", "some secret", "secret=")
kind.write(Path(sys.argv[1]), {}, {"x": torch.ones(100_000)})
"""


def test_a_killed_write_leaves_one_name_and_delete_clears_it(tmp_path):
    path = tmp_path / "secret.pt"
    ended = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert ended.returncode < 0, "expected a killed process"
    assert [p.name for p in tmp_path.iterdir()] == [part_of(path).name]
    KIND.delete(path)
    assert list(tmp_path.iterdir()) == []


def test_only_its_owner_can_read_it(tmp_path):
    path = tmp_path / "secret.pt"
    KIND.write(path, {"a": "b"}, {"x": torch.ones(3)})
    assert path.stat().st_mode & 0o777 == 0o600
    text, tensors = KIND.read(path)
    assert text == {"a": "b"}
    assert tensors["x"].tolist() == [1.0, 1.0, 1.0]
    assert [p.name for p in tmp_path.iterdir()] == ["secret.pt"]
