"""Record chosen activations while a model runs; hooks live exactly as long as the `with` block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from semalign.errors import ConfigError
from semalign.models import Decoder, first_tensor


class Point(NamedTuple):
    """A place in a model: layer 1..L and supervision interface."""

    layer: int
    interface: str


def _stream_in(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _recorder(point: Point, found: dict[Point, Tensor], width: int) -> Any:
    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        value = first_tensor(output)
        if point.interface == "delta":
            value = value - _stream_in(args, kwargs)
        assert value.dim() == 3 and value.shape[-1] == width, (
            f"{point}: expected (B, T, {width}), got {tuple(value.shape)}"
        )
        found[point] = value

    return hook


@contextmanager
def capture(decoder: Decoder, points: Iterable[Point]) -> Iterator[dict[Point, Tensor]]:
    """Activations (B, T, D) by point, filled by every forward pass inside the block, gradients kept.

    `block` is the stream after the layer, `delta` what the layer adds to it, `attn` and `mlp` a sublayer's
    contribution before the residual addition, `output` the stream after the final norm.
    """
    found: dict[Point, Tensor] = {}
    handles = []
    try:
        for point in points:
            if not 1 <= point.layer <= decoder.num_layers:
                raise ConfigError(
                    f"layer {point.layer}: {decoder.name} has layers 1 to {decoder.num_layers}; choose one of them."
                )
            if point.interface == "output":
                module = decoder.final_norm
            elif point.interface in ("block", "delta"):
                module = decoder.layers[point.layer - 1]
            else:
                module = decoder.sublayer(*point)
            handles.append(
                module.register_forward_hook(_recorder(point, found, decoder.width), with_kwargs=True)
            )
        yield found
    finally:
        for handle in handles:
            handle.remove()
