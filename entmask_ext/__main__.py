"""python -m entmask_ext: what is built, what runs, on what machine. For bug reports."""

import platform
import sys

import numpy as np
import torch

from entmask_ext import _C, _build_check


def report() -> str:
    record = _build_check.read_record()
    built = f"CUDA {record['cuda']} for {', '.join(record['cuda_archs'])}" if record["cuda"] else "CPU only"
    lines = {
        "entmask_ext": f"{built} ({record['reason']})",
        "library": str(_build_check.library()),
        "built for": f"torch {record['torch']}, Python {record['python']}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "python": f"{platform.python_version()} ({sys.executable})",
        "numpy": np.__version__,
        "system": f"{platform.platform()}, glibc {platform.libc_ver()[1]}",
        "CPU": f"{_cpu_name()}, {torch.get_num_threads()} threads",
        "CPU kernels": _cpu_kernels(),
        "GPU": _gpus(),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


def _cpu_kernels() -> str:
    try:
        return str(_C.build_info()["cpu_isa"])
    except ValueError as error:  # ENTMASK_CPU names none
        return f"none: {error}"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{d.name} ({d.major}.{d.minor}, {d.total_memory / 2**30:.0f} GiB)" for d in devices)


if __name__ == "__main__":
    print(report())
