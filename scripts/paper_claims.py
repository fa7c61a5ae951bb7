"""The paper's claims about its bases and its alignment, checked again on any pair (arXiv 2510.24208, version 1).

    python scripts/paper_claims.py                                   # embedded pair
    python scripts/paper_claims.py --teacher DIR --student DIR --rows mbpp_train.jsonl
    python scripts/paper_claims.py --run RUN                         # and CKA before and after that run's training

1. Decomposition: how well does S S' h point along h, for S the unit bases from the LM head's pseudo-inverse, the unit input
   embeddings, and as many random unit vectors?
2. Target: cosine between the aligned teacher activation and what the untouched student has at the paired layer.
3. Alignment: CKA of the paired layers before and after training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from semalign.config.parsing import build_config
from semalign.data.batches import batch_inputs
from semalign.data.inputs import Inputs, load_inputs
from semalign.maths.bases import apply_map, gram, semantic_map
from semalign.maths.pairing import depth_pairs
from semalign.maths.similarity import linear_cka, mean_cosine
from semalign.models.capture import Point, capture
from semalign.models.decoder import Decoder, share_vocabulary
from semalign.models.loading import load

INTERFACES = ("block", "mlp")
States = dict[tuple[str, int], Tensor]


@torch.no_grad()
def states_of(decoder: Decoder, inputs: Inputs, rows: int) -> States:
    """(interface, layer) -> activations at the supervised positions of a few rows (N, width), float32."""
    points = [Point(n, i) for n in range(1, decoder.num_layers + 1) for i in INTERFACES]
    kept: dict[tuple[str, int], list[Tensor]] = {}
    for sample in inputs.train[:rows]:
        ids, mask = batch_inputs(decoder, [sample])
        with capture(decoder, points) as found:
            decoder.forward(ids)
        for point in points:
            kept.setdefault((point.interface, point.layer), []).append(found[point][mask].float().cpu())
    return {key: torch.cat(parts) for key, parts in kept.items()}


def frames(decoder: Decoder) -> dict[str, Tensor]:
    """S S' (width x width) of each set of unit vectors."""
    head_VD = decoder.head().weight_VD
    size, width = head_VD.shape
    embedding_VD = decoder.model.get_input_embeddings().weight.detach()[:size]
    random_VD = torch.randn(size, width, generator=torch.Generator().manual_seed(0))
    return {
        "pseudo-inverse of the head": semantic_map(head_VD, head_VD),
        "input embeddings": gram(torch.nn.functional.normalize(embedding_VD.float(), dim=1)).float(),
        "random unit vectors": gram(torch.nn.functional.normalize(random_VD, dim=1)).float(),
    }


def decomposition(name: str, states: States, by_frame: dict[str, Tensor], depths: list[int]) -> Table:
    """cos(h, S S' h), a row a set of vectors, a column an interface and layer."""
    keys = [(i, n) for i in INTERFACES for n in depths]
    table = Table("", *(f"{i} {n}" for i, n in keys), title=f"{name}: mean cos(h, S S' h)")
    for label, frame in by_frame.items():
        figures = [mean_cosine(states[key] @ frame, states[key]) for key in keys]
        table.add_row(label, *(f"{figure:.3f}" for figure in figures))
    return table


def targets(teacher: States, student: States, pairs: list[tuple[int, int]], map_ED: Tensor) -> Table:
    """The paper's target against the untouched student, a row a pair."""
    columns = [
        f"{i}, {what}" for i in INTERFACES for what in ("cosine", "CKA with target", "CKA with teacher")
    ]
    table = Table("teacher -> student", *columns, title="target against the untouched student")
    for theirs, ours in pairs:
        cells = []
        for interface in INTERFACES:
            raw, own = teacher[interface, theirs], student[interface, ours]
            target = apply_map(raw, map_ED, normalize=True)
            cells += [mean_cosine(target, own), linear_cka(target, own), linear_cka(raw, own)]
        table.add_row(f"{theirs} -> {ours}", *(f"{cell:.3f}" for cell in cells))
    return table


def before_and_after(run: Path) -> Table:
    """CKA of the paired layers over a run's training, from its own files."""
    metrics = json.loads((run / "metrics.json").read_text())
    pairs = json.loads((run / "pairs.json").read_text())["pairs"]
    table = Table("teacher -> student", "CKA before", "CKA after", title=f"recipe {metrics['recipe']}")
    for pair in pairs:
        cells = [metrics["cka"][w][pair["teacher"] - 1][pair["student"] - 1] for w in ("before", "after")]
        table.add_row(f"{pair['teacher']} -> {pair['student']}", *(f"{cell:.3f}" for cell in cells))
    return table


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="embedded:teacher")
    parser.add_argument("--student", default="embedded:student")
    parser.add_argument("--rows", default="embedded:transfer")
    parser.add_argument("--count", type=int, default=16, help="rows whose activations are read")
    parser.add_argument("--run", type=Path, help="a finished run folder, for CKA before and after")
    options = parser.parse_args()
    console = Console(width=150)
    models = {name: {"model_name_or_path": getattr(options, name)} for name in ("teacher", "student")}
    data = {"dataset_name": options.rows, "max_length": 512, "max_rows": options.count}
    config = build_config({**models, "data": data, "output_dir": "unused"}, Path())
    inputs = load_inputs(config)
    states, heads, counts = {}, {}, {}
    for name in ("teacher", "student"):
        decoder = load(getattr(config, name))
        share_vocabulary(inputs.vocabulary, decoder)
        counts[name], heads[name] = decoder.num_layers, decoder.head().weight_VD.clone()
        states[name] = states_of(decoder, inputs, options.count)
        depths = sorted({max(1, round(decoder.num_layers * share)) for share in (0.25, 0.5, 0.75, 1.0)})
        console.print(decomposition(name, states[name], frames(decoder), depths))
        del decoder
    quarter = sorted({max(1, round(counts["student"] * share)) for share in (0.25, 0.5, 0.75, 1.0)})
    pairs = [(p.teacher, p.student) for p in depth_pairs(quarter, counts["teacher"], counts["student"])]
    map_ED = semantic_map(heads["teacher"], heads["student"])
    console.print(targets(states["teacher"], states["student"], pairs, map_ED))
    if options.run:
        console.print(before_and_after(options.run))


if __name__ == "__main__":
    main()
