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
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config (tensor, context or sequence parallel)",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
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


def check_launch() -> None:
    """Refuse the launcher's modes that SemAlign has not been tested with.

    Every process holds the trained suffix alone, without embedding, head and teacher; where that does not fit beside
    its optimiser, fewer layers or LoRA do.

    Raises:
        ConfigError: naming the mode and what to use instead.
    """
    for name, what in REFUSED.items():
        if os.environ.get(name, "false").lower() == "true":
            raise ConfigError(
                f"accelerate: expected data parallelism (--multi_gpu), got {what}, which has not been tested; launch with "
                "--multi_gpu, and set train.fsdp, train.lora_r or a smaller pairing.num_layers where a device cannot hold the trained "
                "layers."
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


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts, on whichever processes they lie; every one of them has to ask for it."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def agree(flag: bool) -> bool:
    """Whether any process says yes."""
    import torch

    return bool(total(torch.tensor(int(flag)))) if world() > 1 else flag
