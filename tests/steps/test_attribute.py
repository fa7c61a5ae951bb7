"""Attribution on a real decoder: agreement with captum, independence of batches, no weight gradient."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import LayerGradientXActivation
from tiny import COMMON, config_of, tiny_model, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from semalign.config import EvaluationConfig, PairingConfig, RecipeConfig
from semalign.data import Sample, prepare
from semalign.data.batches import labels_of, state_mask
from semalign.data.inputs import load_inputs
from semalign.errors import ModelError
from semalign.models.decoder import Decoder
from semalign.run.files import read_json
from semalign.run.folder import RunFolder
from semalign.steps.attribute import attribute, attribute_layers
from semalign.steps.pipeline import transfer


def samples(count: int = 5) -> list[Sample]:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "add two " * (1 + i % 3)},
                {"role": "assistant", "content": f"the answer is {i}"},
            ]
        }
        for i in range(count)
    ]
    return prepare(rows, tiny_tokenizer(), max_length=64)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("aggregate", ["sum", "abs"])
def test_scores_agree_with_captum(kind: str, aggregate: str) -> None:
    decoder = Decoder(tiny_model(kind, layers=3, wide=True), None, kind)
    sample = samples(1)[0]
    ids = torch.tensor([sample.input_ids])
    states, labels = state_mask(torch.tensor([sample.mask])), labels_of(sample)

    def loss(ids_BT: torch.Tensor) -> torch.Tensor:
        logits = decoder.model(ids_BT).logits[states]
        return torch.nn.functional.cross_entropy(logits, labels)[None]

    expected = []
    for layer in decoder.layers:
        product = LayerGradientXActivation(loss, layer).attribute(ids)
        product = (product if isinstance(product, torch.Tensor) else product[0]).detach()
        expected.append(float((product.abs() if aggregate == "abs" else product).sum()))
    ours = attribute_layers(decoder, [sample], aggregate=aggregate)  # type: ignore[arg-type]
    # The final norm ignores the length of its input, so the signed sum after the last layer is zero up to rounding.
    assert ours == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_batch_size_and_checkpointing_change_nothing() -> None:
    decoder = Decoder(tiny_model("llama", layers=3, wide=True), None)
    one = attribute_layers(decoder, samples(), batch_size=1)
    assert attribute_layers(decoder, samples(), batch_size=4) == pytest.approx(one, rel=1e-4)
    assert attribute_layers(decoder, samples(), activation_checkpointing=True) == pytest.approx(one, rel=1e-4)


def test_no_weight_gradient_is_made_and_flags_are_restored() -> None:
    decoder = Decoder(tiny_model("llama", layers=2, wide=True), None)
    attribute_layers(decoder, samples())
    assert all(p.grad is None and p.requires_grad for p in decoder.model.parameters())


class Allocations(TorchDispatchMode):
    """What operations allocate: the shapes of all new tensors, and the largest sum of bytes alive at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        for tensor in (t for t in tree_leaves(out) if isinstance(t, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in known and storage._cdata not in self.alive:
                self.shapes.add(tuple(tensor.shape))
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def allocated(decoder: Decoder, rows: list[Sample], batch_size: int) -> Allocations:
    with Allocations() as seen:
        attribute_layers(decoder, rows, batch_size=batch_size)
    return seen


def wide_decoder(intermediate: int) -> Decoder:
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        "llama", num_hidden_layers=3, intermediate_size=intermediate, **COMMON, **sizes
    )
    return Decoder(AutoModelForCausalLM.from_config(config, dtype=torch.float32), None)


def test_memory_does_not_grow_with_the_weights() -> None:
    row, peaks = samples(1), {}
    for intermediate in (64, 1024):
        decoder = wide_decoder(intermediate)
        seen = allocated(decoder, row, 1)
        head = decoder.head().weight_VD.shape
        weights = {tuple(p.shape) for p in decoder.layers[0].parameters() if p.dim() > 1} - {tuple(head)}
        assert not seen.shapes & weights, "a tensor of a weight's shape is its gradient"
        assert not any(p.requires_grad and p.grad is not None for p in decoder.model.parameters())
        peaks[intermediate] = seen.peak
    tokens, added = len(row[0].input_ids), 1024 - 64
    # Channels of the MLP for every token of three layers, a few tensors of each: no term with the width times channels.
    assert peaks[1024] - peaks[64] <= 3 * 4 * 4 * tokens * added
    assert 3 * 4 * 4 * tokens * added < 4 * 3 * 128 * added * 3 / 2, (
        "half of what weight gradients would take"
    )


def test_memory_is_that_of_one_batch() -> None:
    decoder = Decoder(tiny_model("llama", layers=4, wide=True), None)
    row = samples(1)
    two, eight = allocated(decoder, row * 2, 2), allocated(decoder, row * 8, 2)
    assert eight.peak == pytest.approx(two.peak, rel=0.05)
    assert allocated(decoder, row * 8, 8).peak > 2 * eight.peak


def test_all_zero_scores_are_an_error() -> None:
    decoder = Decoder(tiny_model("llama", layers=2, wide=True), None, "dead")
    with torch.no_grad():
        decoder.final_norm.weight.zero_()
    with pytest.raises(ModelError, match="dead: expected finite, non-zero"):
        attribute_layers(decoder, samples())


@pytest.mark.parametrize(
    ("changes", "is_scored"),
    [
        ({}, False),
        ({"recipe": RecipeConfig("self")}, False),
        ({"recipe": RecipeConfig("aligned")}, False),
        ({"pairing": PairingConfig(selection="attribution", num_layers=1)}, True),
        ({"pairing": PairingConfig(heads=1)}, True),
        ({"evaluation": EvaluationConfig(baselines={"cosine": {}})}, False),
    ],
)
def test_layers_are_scored_where_the_plan_depends_on_the_scores(
    changes: dict[str, Any],
    is_scored: bool,
    tiny_pair: tuple[Path, Path],
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = replace(config_of(tiny_pair, rows_file, tmp_path / "run"), **changes)
    run, inputs = RunFolder(Path(config.output_dir)), load_inputs(config)
    if not is_scored:
        inputs = replace(inputs, open_teacher=lambda: pytest.fail("the teacher is loaded for nothing"))
    attribute(config, run, inputs)
    assert bool(read_json(run.scores, "attribute")["layers"]) is is_scored
    made = run.scores.stat().st_mtime_ns
    attribute(config, run, inputs)
    assert run.scores.stat().st_mtime_ns == made
    assert not [r.message for r in caplog.records if "made again" in r.message]


def test_scores_that_are_asked_for_are_made_and_stay(
    tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_pair, rows_file, tmp_path / "run")
    run = transfer(config, ("attribute", "pair"))
    assert read_json(run.scores, "attribute")["layers"] == []
    assert read_json(run.pairs, "pair")["critical_layers"] == []
    transfer(config, ("attribute",))
    made = run.scores.read_bytes()
    assert len(read_json(run.scores, "attribute")["layers"]) == 5
    transfer(config, ("attribute", "pair"))
    assert run.scores.read_bytes() == made and read_json(run.pairs, "pair")["critical_layers"]
