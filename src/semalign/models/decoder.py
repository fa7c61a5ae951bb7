"""A causal language model as SemAlign sees it.

A `Decoder` shows a causal language model as  tokens -> layers 1..L -> final norm -> head  and can run any
span of its layers. Layers are counted 1..L; the stream "after layer 0" is the embedding's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from semalign.errors import ConfigError, ModelError
from semalign.models.head import Head, head_options
from semalign.models.layouts import PROJECTIONS, WHOLE, config_of_span, layout_of, shape_of


class Decoder:
    """A loaded causal language model, its tokenizer, and the parts SemAlign touches."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        name: str = "model",
        *,
        needs_layers: bool = True,
    ) -> None:
        """A decoder of a loaded model.

        Args:
            needs_layers: refuse a model whose layers are not known; without, it can still be run as a whole.
        """
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.config = model.config.get_text_config()
        self.layout = layout_of(self.config, name, needs_layers=needs_layers)
        self.shape = shape_of(self.config, name, has_layers=self.layout is not WHOLE)
        self.body: Any = model.base_model
        self.whole_config = self.body.config
        """The body's configuration outside any span."""
        self.layers: list[nn.Module] = []
        self.final_norm: Any = None
        if self.has_layers:
            self.layers = list(getattr(self.body, self.layout.layers))
            self.final_norm = getattr(self.body, self.layout.norm)
        self.shared_vocab: int | None = None

    @property
    def has_layers(self) -> bool:
        """Whether its layers are known; one without gives its distribution alone."""
        return self.shape.has_layers

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers) if self.has_layers else self.shape.layers

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return self.shape.width

    @property
    def device(self) -> torch.device:
        """Where the embedding is, and so where token ids go."""
        return self.model.get_input_embeddings().weight.device

    def head(self) -> Head:
        """The head, sliced to the ids proven shared where that was established (`shared_vocab`)."""
        linear = self.model.get_output_embeddings()
        size = self.shared_vocab or linear.weight.shape[0]
        bias = getattr(linear, "bias", None)
        bias = None if bias is None else bias.detach()[:size]
        return Head(linear.weight.detach()[:size], head_options(self.shape, bias))

    def norm_weight(self) -> Tensor:
        """gamma of the final norm, float32 (width,)."""
        return self.final_norm.weight.detach().float() + self.layout.norm_offset

    def sublayer(self, layer: int, interface: str) -> nn.Module:
        """The module of layer 1..L whose output, times `shape.residual_scale`, is the `attn` or `mlp` contribution to the stream.

        Raises:
            ConfigError: there is no such module.
        """
        names = self.layout.attn if interface == "attn" else self.layout.mlp
        for name in names:
            if hasattr(self.layers[layer - 1], name):
                return getattr(self.layers[layer - 1], name)
        raise ConfigError(
            f"recipe.interface: no part of layer {layer} of {self.name} puts out its {interface} contribution to the stream; use "
            "block or delta."
        )

    def projections(self, layer: int) -> dict[str, Any]:
        """The seven linear maps of layer 1..L by name.

        Raises:
            ModelError: the architecture fuses some of them.
        """
        try:
            return {n: self.layers[layer - 1].get_submodule(path) for n, path in PROJECTIONS.items()}
        except AttributeError as error:
            raise ModelError(
                f"{self.name}: expected separate modules {', '.join(PROJECTIONS)} in every layer, but {error}; "
                "methods that read the teacher's weights do not work with this architecture."
            ) from None

    @property
    def is_quantised(self) -> bool:
        """Whether the layers hold something else than floating-point weights."""
        return any(not p.is_floating_point() for layer in self.layers for p in layer.parameters())

    def has_heads(self, layer: int) -> bool:
        """Whether layer 1..L has attention heads whose values are captured side by side."""
        return any(name == self.layout.out for name, _ in self.layers[layer - 1].named_modules() if name)

    def out_projection(self, layer: int) -> nn.Module:
        """The map of layer 1..L from its heads' values (H * head_dim) to the stream.

        Raises:
            ConfigError: the layer has no attention heads.
        """
        if not self.has_heads(layer):
            raise ConfigError(
                f"recipe.interface: layer {layer} of {self.name} has no attention heads of one width; use block or delta, or leave the "
                "layer out of pairs.json."
            )
        return self.layers[layer - 1].get_submodule(self.layout.out)

    @contextmanager
    def span(self, start: int, stop: int, *, norm: bool) -> Iterator[nn.Module]:
        """Inside, `body` runs layers start+1..stop only, and the final norm only with `norm`; within another span too."""
        assert 0 <= start <= stop <= self.num_layers
        body, layout = self.body, self.layout
        if not self.has_layers:
            assert (start, stop, norm) == (0, self.num_layers, True), "it runs as a whole"
            yield body
            return
        kept = (getattr(body, layout.layers), getattr(body, layout.norm), body.config)
        setattr(body, layout.layers, nn.ModuleList(self.layers[start:stop]))
        setattr(body, layout.norm, self.final_norm if norm else nn.Identity())
        body.config = config_of_span(self.whole_config, start, stop)
        try:
            yield body
        finally:
            setattr(body, layout.layers, kept[0])
            setattr(body, layout.norm, kept[1])
            body.config = kept[2]

    def forward(self, inputs: Tensor) -> Tensor:
        """Run the current span on token ids (B, T), or on the stream (B, T, D) that enters its first layer.

        Rows are padded on the right, where no token of a causal model sees it. So attention needs no mask but its own, and takes the
        kernel that has this one built in.
        """
        layers = list(getattr(self.body, self.layout.layers)) if self.has_layers else []
        changes = []
        if inputs.dim() == 3 and layers:
            changes.append((layers[0], lambda stream: inputs))
        # Layers in training are float32; Gemma's norms would hand them the half precision of what comes before.
        if exact := next((layer for layer in layers if _is_float32(layer)), None):
            changes.append((exact, Tensor.float))
        handles = [m.register_forward_pre_hook(_on_stream(f), with_kwargs=True) for m, f in changes]
        # The embeds only give shapes: scaling or position embeddings added to them never reach the layers.
        name = "input_ids" if inputs.dim() == 2 else "inputs_embeds"
        try:
            return self.body(**{name: inputs}, use_cache=False).last_hidden_state
        finally:
            for handle in handles:
                handle.remove()

    def self_test(self) -> float:
        """Largest |difference| between the model's logits and head(norm(last layer's output)), relative to their spread."""
        ids = torch.arange(12, device=self.device)[None] % self.shape.vocabulary + 3
        captured: list[Tensor] = []
        last = self.layers[-1] if self.has_layers else self.body
        handle = last.register_forward_hook(lambda m, a, out: captured.append(first_tensor(out)))
        try:
            with torch.no_grad():
                expected = self.model(input_ids=ids, use_cache=False).logits.float()
                states = self.final_norm(captured[0]) if self.has_layers else captured[0]
                ours = self.head().logits(states[0])
        finally:
            handle.remove()
        error = float((expected[0, :, : ours.shape[1]] - ours).abs().max() / expected.std().clamp_min(1e-6))
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.1
        if not error <= tolerance:
            raise ModelError(
                f"{self.name}: final norm and head on the last layer's output miss the model's logits by {error:.2g} of "
                f"their spread (expected at most {tolerance}); this architecture alters its logits in a way SemAlign does not know."
            )
        return error


def let_checkpoint(model: nn.Module) -> None:
    """Layers set to recompute do so only in train mode; what is in them stays in eval mode, or dropout would come on."""
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def _is_float32(layer: nn.Module) -> bool:
    """Whether a layer multiplies in float32 of itself: the type of its first matrix, which is no adapter's."""
    return next((p.dtype for p in layer.parameters() if p.dim() == 2), None) == torch.float32


def _on_stream(change: Callable[[Tensor], Tensor]) -> Any:
    """A pre-hook that changes the stream which enters a layer."""

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook


def first_tensor(output: Any) -> Tensor:
    """A module's output without the extras some return beside it."""
    return output if isinstance(output, Tensor) else output[0]


def share_vocabulary(size: int, *decoders: Decoder) -> None:
    """Slice every head to the first `size` ids, which both models are known to share."""
    for decoder in decoders:
        decoder.shared_vocab = size


def linear_names(decoder: Decoder, layers: Sequence[int] | None = None) -> list[str]:
    """Last names of all modules of some layers (of all by default) that LoRA can adapt.

    These are their linear maps. Of a mixture of experts they are those outside the MLP: experts are fused tensors, and peft takes the
    names of the linear maps beside them for the experts of all layers.
    """
    chosen = range(1, decoder.num_layers + 1) if layers is None else layers
    return sorted({name.rsplit(".", 1)[-1] for layer in chosen for name in _linear(decoder, layer)})


def _linear(decoder: Decoder, layer: int) -> list[str]:
    """The modules of layer 1..L that LoRA can adapt, by their names in the layer."""
    found = [n for n, m in decoder.layers[layer - 1].named_modules() if isinstance(m, nn.Linear | Conv1D)]
    return [n for n in found if not decoder.shape.experts or n.split(".")[0] not in decoder.layout.mlp]


def is_transposed(decoder: Decoder) -> bool:
    """Whether the linear maps of a layer store (in, out) as GPT-2's do; peft calls it fan_in_fan_out."""
    return any(isinstance(module, Conv1D) for module in decoder.layers[0].modules())


def lora_modules(decoder: Decoder, layers: Sequence[int], targets: Sequence[str]) -> list[str]:
    """Full names of the linear modules inside the given layers, of all or of those whose last name is a target; none may miss."""
    wanted = tuple(targets) or linear_names(decoder, layers)
    by_id = {id(module): name for name, module in decoder.model.named_modules()}
    found, matched = [], set()
    for layer in layers:
        root = by_id[id(decoder.layers[layer - 1])]
        for name in _linear(decoder, layer):
            last = name.rsplit(".", 1)[-1]
            if last in wanted:
                found.append(f"{root}.{name}")
                matched.add(last)
    if missing := sorted(set(wanted) - matched):
        raise ModelError(
            f"train.lora_target_modules: {', '.join(missing)} match no linear map of the trained layers; available: "
            f"{', '.join(linear_names(decoder, layers))}."
        )
    return found
