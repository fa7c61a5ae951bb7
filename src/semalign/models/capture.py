"""Record chosen activations while a model runs; hooks live exactly as long as the `with` block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semalign.errors import ConfigError
from semalign.models.decoder import Decoder, first_tensor


class Point(NamedTuple):
    """A place in a model: layer 1..L, supervision interface and, for `head`, the head 1..H."""

    layer: int
    interface: str
    head: int | None = None


def _stream_in(args: tuple, kwargs: dict) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _factor(decoder: Decoder, point: Point) -> float:
    """By what a module's output is multiplied before it joins the stream."""
    return decoder.shape.residual_scale if point.interface in ("attn", "mlp", "head") else 1.0


def _recorder(point: Point, found: dict[Point, Tensor], width: int, factor: float) -> Any:
    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        value = first_tensor(output)
        if point.interface == "delta":
            # What enters may come from the device of the layer before.
            value = value - _stream_in(args, kwargs).to(value.device)
        if factor != 1.0:
            value = value * factor
        assert value.dim() == 3 and value.shape[-1] == width, (
            f"{point}: expected (B, T, {width}), got {tuple(value.shape)}"
        )
        found[point] = value

    return hook


def _head_recorder(point: Point, found: dict[Point, Tensor], size: int, factor: float) -> Any:
    def hook(module: Any, args: tuple, output: Tensor) -> None:
        if point.head is None:
            found[point] = args[0]
            return
        alone = torch.zeros_like(args[0])
        at = slice((point.head - 1) * size, point.head * size)
        alone[..., at] = args[0][..., at]
        # forward, not the module itself, which would call this hook again; LoRA on the module is part of it.
        value, bias = module.forward(alone), getattr(module, "bias", None)
        value = value if bias is None else value - bias
        found[point] = value if factor == 1.0 else value * factor

    return hook


@contextmanager
def capture(decoder: Decoder, points: Iterable[Point]) -> Iterator[dict[Point, Tensor]]:
    """Activations (B, T, D) by point, filled by every forward pass inside the block, gradients kept.

    `block` is the stream after the layer, `delta` what the layer adds to it, `attn` and `mlp` a sublayer's
    contribution before the residual addition, `output` the stream after the final norm. `head` is what one attention
    head contributes through the output projection, without its bias and before a norm that follows; without a head
    number, the heads' values side by side (B, T, H * head_dim) as they enter that projection.
    """
    found: dict[Point, Tensor] = {}
    handles = []
    try:
        for point in points:
            if not decoder.has_layers:
                raise ConfigError(
                    f"recipe: expected a model whose layers SemAlign knows, got {decoder.name} of type {decoder.config.model_type!r}; "
                    "take recipe.name: aligned_output and pairing.selection: last."
                )
            if not 1 <= point.layer <= decoder.num_layers:
                raise ConfigError(
                    f"layer {point.layer}: {decoder.name} has layers 1 to {decoder.num_layers}; choose one of them."
                )
            if point.interface == "head":
                if point.head is not None and not 1 <= point.head <= decoder.shape.heads:
                    raise ConfigError(
                        f"head {point.head}: {decoder.name} has heads 1 to {decoder.shape.heads} in a layer; choose one of them."
                    )
                hook = _head_recorder(point, found, decoder.shape.head_dim, _factor(decoder, point))
                handles.append(decoder.out_projection(point.layer).register_forward_hook(hook))
                continue
            module = _module(decoder, point)
            hook = _recorder(point, found, decoder.width, _factor(decoder, point))
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _module(decoder: Decoder, point: Point) -> nn.Module:
    """Whose output the activation is, or holds."""
    if point.interface == "output":
        return decoder.final_norm
    if point.interface in ("block", "delta"):
        return decoder.layers[point.layer - 1]
    return decoder.sublayer(point.layer, point.interface)


@contextmanager
def patched(
    decoder: Decoder, point: Point, states_BT: Tensor, values_NE: Tensor, *, keeps_length: bool = False
) -> Iterator[None]:
    """Inside the block, the activation at a point is replaced by given values, and the layers behind it go on from there.

    Args:
        point: of any interface but `head`.
        states_BT: where it is replaced, N positions of every forward pass.
        values_NE: what takes its place.
        keeps_length: scale each value to the length of what it replaces.
    """

    factor = _factor(decoder, point)

    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        whole = first_tensor(output)
        base = _stream_in(args, kwargs) if point.interface == "delta" else torch.zeros_like(whole)
        own, values = (whole - base)[states_BT], (values_NE / factor).to(whole.dtype)
        if keeps_length:
            values = (
                values * own.norm(dim=-1, keepdim=True) / values.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            )
        changed = whole.clone()
        changed[states_BT] = base[states_BT] + values
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = _module(decoder, point).register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
