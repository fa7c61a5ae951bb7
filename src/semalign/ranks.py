"""The processes of one launch (`accelerate launch -m semalign ...`, torchrun): who is this, wait for all, add up over all.

With one process every function is free: nothing is initialised, nothing waits. Process 0 is the main one; it alone
writes what is not a shard, and shows progress.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from semalign.errors import ConfigError, RankError

if TYPE_CHECKING:
    from torch import Tensor
# torch is imported where it is used: the command line asks for is_main() before it loads anything heavy.

T = TypeVar("T")
# The main process may answer items for hours while the others wait for it.
PATIENCE = timedelta(days=30)
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (tensor, context or sequence parallel)",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
    "ACCELERATE_USE_TP": "tensor parallelism",
}
_waiting: list[Any] = []  # the process group of wait(), from_main() and total(), once there is one


def world() -> int:
    """How many processes work on the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def is_main() -> bool:
    """Whether this is process 0."""
    return rank() == 0


def uses_fsdp() -> bool:
    """Whether the launcher asks for sharded parameters."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_launch() -> None:
    """Refuse launchers' modes that SemAlign has not been tested with.

    Raises:
        ConfigError: naming the mode and what to use instead.
    """
    for name, what in REFUSED.items():
        if os.environ.get(name, "false").lower() == "true":
            raise ConfigError(
                f"accelerate: expected plain data parallelism (--multi_gpu, --multi_cpu) or FSDP2, got {what}; "
                "launch with --multi_gpu, or with --use_fsdp --fsdp_version 2 where one device cannot hold the trained layers."
            )
    if uses_fsdp() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            "accelerate: expected FSDP version 2, got version 1, whose flattened parameters hide the layers; "
            "launch with --fsdp_version 2."
        )


def start() -> None:
    """Join the other processes, where there are any; each takes the accelerator of its local number."""
    check_launch()
    if world() == 1 or _waiting:
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo")
    _waiting.append(dist.new_group(backend="gloo", timeout=PATIENCE))


def leave() -> None:
    """Part from the other processes, at the end of a program: they cannot meet again."""
    if _waiting:
        import torch.distributed as dist

        _waiting.clear()
        dist.destroy_process_group()


def _together(act: Callable[[Any, Any], object]) -> None:
    if not _waiting:
        return
    import torch.distributed as dist

    try:
        act(dist, _waiting[0])
    except RuntimeError:
        raise RankError(
            f"process {rank()} of {world()}: another process has stopped, and says why itself; "
            "run the same command again to go on."
        ) from None


def wait() -> None:
    """Return once every process is here."""
    _together(lambda dist, group: dist.barrier(group=group))


def from_main(make: Callable[[], T]) -> T:
    """What process 0 makes, on every process; the others wait for it. Plain values only."""
    box: list[Any] = [make() if is_main() else None]
    _together(lambda dist, group: dist.broadcast_object_list(box, src=0, group=group))
    return box[0]


def total(tensor: Tensor) -> Tensor:
    """The tensor, on the CPU, replaced by its sum over all processes."""
    _together(lambda dist, group: dist.all_reduce(tensor, group=group))
    return tensor


def agree(flag: bool) -> bool:
    """Whether any process says yes."""
    import torch

    return bool(total(torch.tensor(int(flag)))) if world() > 1 else flag
