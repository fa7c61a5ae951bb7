"""Versions, machine and command of a run."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from semalign.jail.process import offered
from semalign.run.plugins import plugins
from semalign.run.secrets import redacted


def environment() -> dict[str, Any]:
    """Versions, machine and command line."""
    jail = offered()
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "semalign")}
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "jail": None if jail is None else jail.as_json(),
        "memory_bytes": psutil.virtual_memory().total,
        "command": redacted(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **({"plugins": [file.__name__ for file in plugins()]} if plugins() else {}),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
