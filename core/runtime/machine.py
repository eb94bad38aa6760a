"""Facts about the machine: devices, hardware, versions of software."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arflows.core.runtime.errors import UserError
from arflows.core.runtime.processes import local_rank


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of a name.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps", …; "auto" takes a GPU if there is one.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto" and local_rank() is not None and torch.cuda.is_available():
        name = f"cuda:{local_rank()}"  # each of several processes has its own GPU
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        present = [
            "cpu",
            *(f"cuda:{index}" for index in range(torch.cuda.device_count())),
            *(["mps"] if torch.backends.mps.is_available() else []),
        ]
        raise UserError(f"there is no device {name!r} on this machine: choose among {', '.join(present)}.") from error
    return device


def widest_float(device: torch.device) -> torch.dtype:
    """The widest floating-point type of a device: float64, or float32 on devices without it, such as Apple's mps.

    >>> widest_float(torch.device("mps")), widest_float(torch.device("cpu"))
    (torch.float32, torch.float64)
    """
    return torch.float32 if device.type == "mps" else torch.float64


def double(values: Tensor) -> Tensor:
    """Values in float64: on their device, or on the CPU where the device lacks that type."""
    return values.to(values.device if widest_float(values.device) == torch.float64 else "cpu").double()


def software() -> dict[str, Any]:
    """Versions of the relevant packages, and the commit if this package runs from a checkout.

    Returns:
        ``{"arflows", "torch", "python", "commit"}``; "commit" is None outside a git checkout and ends in "+changes"
        where tracked files differ from it.
    """
    return {
        "arflows": version("arflows"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(Path(__file__).resolve().parent),
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """Names of the device and the processor, and the number of threads.

    Returns:
        ``{"device", "processor", "threads"}``: for CUDA the GPU's name, else "cpu"; the processor's name; the threads
        torch computes with.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "processor": _processor(), "threads": torch.get_num_threads()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit(folder: Path) -> str | None:
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", __file__) is None:
        return None  # no git, no checkout, or installed inside somebody else's
    changes = git("status", "--porcelain", "--untracked-files=no")
    return f"{git('rev-parse', 'HEAD')}{'+changes' if changes else ''}"
