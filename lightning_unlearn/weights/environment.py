"""What decides the last bits of a computation, besides its inputs."""

import os
import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

#: Programs that read samples or compute with them.
_PACKAGES = (
    *("numpy", "lightning", "pytorch-lightning", "torchvision", "pillow", "timm"),
    *("transformers", "tokenizers", "sentence-transformers"),
)
#: They choose among the kernels of the libraries below torch.
_VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE"),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE"),
)


def environment(device: torch.device) -> dict[str, str]:
    """Device, kernels, settings and versions that rows computed now depend on.

    What `passes` sets by itself is not here: autocast, TensorFloat-32, the attention
    kernel. The number of threads is: a matrix product of 784 columns on one and on two
    differs in its last bits.

    Args:
        device: On which is computed.

    Returns:
        Name of a setting -> its value, in words.
    """
    backends = torch.backends
    found = {
        "device": _name_of(device),
        "machine": f"{platform.machine()} {_processor()}".strip(),
        "kernels": backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "deterministic": f"{torch.are_deterministic_algorithms_enabled()}",
        "mkldnn": f"{backends.mkldnn.is_available() and backends.mkldnn.enabled}",
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        cudnn = backends.cudnn
        found["cuda"] = f"{torch.version.cuda}, cuDNN {cudnn.version()}"
        found["cudnn"] = ", ".join(
            f"{name}={getattr(cudnn, name)}"
            for name in ("enabled", "benchmark", "deterministic")
        )
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    set_here = {name: os.environ.get(name) for name in _VARIABLES}
    return found | {name: value for name, value in set_here.items() if value}


def _name_of(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda, {torch.cuda.get_device_name(device)}, {major}.{minor}"


def _processor() -> str:
    """The model of the processor, whose libraries choose kernels by it."""
    lines = Path("/proc/cpuinfo")
    if lines.is_file():
        for line in lines.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def changes(before: dict[str, str], now: dict[str, str]) -> str:
    """What differs between two environments, in words; "" if nothing does."""
    names = [n for n in sorted({*before, *now}) if before.get(n) != now.get(n)]
    told = [
        f"{name} was {before.get(name, 'not there')}, is {now.get(name, 'not there')}"
        for name in names[:3]
    ]
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    return "; ".join(told) + more
