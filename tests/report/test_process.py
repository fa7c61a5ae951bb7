"""Sections on the run itself: loss curves, what is in the cache, seconds and memory, versions and config."""

from __future__ import annotations

from typing import Any

import pytest

from semalign.report import build_report
from semalign.report.blocks import Code, Facts, Legend, Panels, Section, Table
from semalign.report.build import view
from semalign.report.files import RunFiles, read_run
from semalign.report.process import cost_section, setup_section, training_section
from semalign.run.files import read_sealed

from .pages import Edit, RunMaker, section


def log(*losses: float, **parts: list[float]) -> list[dict[str, Any]]:
    """Lines of train.jsonl, a step each."""
    lines = [{"step": n, "epoch": n / 2, "loss": loss} for n, loss in enumerate(losses, 1)]
    return [line | {k: v[n] for k, v in parts.items()} for n, line in enumerate(lines)]


def panels(part: Section) -> Panels:
    return next(block for block in part.blocks if isinstance(block, Panels))


def facts(part: Section) -> dict[str, str]:
    return dict(item for block in part.blocks if isinstance(block, Facts) for item in block.items)


def test_a_baseline_that_is_a_step_is_counted_once(make_run: RunMaker, edit_json: Edit) -> None:
    run = make_run()
    step = {"name": "train cosine", "seconds": 21.0, "peak_rss_bytes": 9e8}
    edit_json(run / "metrics.json", lambda m: m["steps"].append(step))
    table = next(block for block in section(view(read_run(run)), "cost").blocks if isinstance(block, Table))
    shown = {row.name: row.cells[0].text.replace("\u00a0", " ") for row in table.rows}
    assert (
        len(table.rows) == 7
        and shown["Cosine training"] == "21 s"
        and shown["Cross-entropy training"] == "14 s"
    )


def test_the_error_of_eight_bit_streams_is_told_where_there_is_one(
    make_run: RunMaker, edit_json: Edit
) -> None:
    run = make_run()
    assert "eight-bit" not in build_report(run).read_text(encoding="utf-8")
    error = {"mean": 0.0227, "worst": 0.0299}
    edit_json(run / "targets" / "manifest.json", lambda m: m.update(prefix_error=error))
    assert "2.27% on average, 2.99% at worst" in build_report(run).read_text(encoding="utf-8")


def test_every_training_has_a_panel_with_its_first_and_last_loss(make_run: RunMaker) -> None:
    files = read_run(make_run())
    part = training_section(files)
    assert part.finding == "90 steps, 3.0 epochs."
    logs = [files.train, files.baseline_train["cosine"], files.baseline_train["cross_entropy"]]
    ends = [f"{rows[0]['loss']:.3f} → {rows[-1]['loss']:.3f}" for rows in logs]
    shown = [(p.title, p.aside) for p in panels(part).panels]
    assert shown == list(zip(["Aligned (ours)", "Cosine", "Cross-entropy"], ends, strict=True))
    for panel, kind, others in zip(
        panels(part).panels,
        ("c-after", "c-base1", "c-base2"),
        ("c-base", "c-after", "c-after"),
        strict=True,
    ):
        assert f"curve {kind}" in panel.svg and f"curve {others}" not in panel.svg


@pytest.mark.parametrize(
    ("parts", "curves"),
    [
        ({}, 1),
        ({"loss_output": [3.0, 2.0], "loss_layer": [0.0, 0.0]}, 1),  # the output's part is the loss
        ({"loss_output": [2.0, 1.5], "loss_layer": [1.0, 0.5]}, 3),
    ],
)
def test_parts_of_a_loss_are_drawn_where_they_say_more_than_it(
    parts: dict[str, list[float]], curves: int
) -> None:
    part = training_section(RunFiles("run", {"recipe": "kl"}, train=log(3.0, 2.0, **parts)))
    (panel,) = panels(part).panels
    assert panel.title == "Full KL (ours)" and panel.svg.count("<polyline") == curves
    legends = [block for block in part.blocks if isinstance(block, Legend)]
    assert [len(legend.items) for legend in legends] == ([curves] if curves > 1 else [])


def test_a_log_without_losses_has_no_curve() -> None:
    part = training_section(RunFiles("run", {}, train=[{"step": 7, "loss": None}]))
    assert part.finding.startswith("7 steps") and not panels(part).panels


def test_a_run_that_was_not_trained_names_the_step() -> None:
    part = training_section(RunFiles("run", {}, baseline_train={"kl": log(1.0, 0.5)}))
    assert "the train step writes it" in part.missing and not part.blocks


def test_costs_are_compared_with_the_longest_and_the_largest() -> None:
    steps = [
        {"name": "cache", "seconds": 30.0, "peak_rss_bytes": 2e9},
        {"name": "train", "seconds": 60.0, "peak_rss_bytes": 1e9},
    ]
    part = cost_section({"steps": steps})
    said = part.finding.replace("\u00a0", " ")
    assert said == "The longest step is train, at 1 min 00 s; memory peaks at 2 GB."
    (table,) = part.blocks
    assert isinstance(table, Table) and table.columns == ["Step", "Time", "Peak memory"]
    for row, time, memory in zip(table.rows, ("50%", "100%"), ("100%", "50%"), strict=True):
        assert f'width="{time}"' in str(row.cells[0].bar) and f'width="{memory}"' in str(row.cells[1].bar)
    assert [row.name for row in table.rows] == ["Cache", "Train"]


def test_memory_of_the_gpu_has_a_column_where_a_step_had_one() -> None:
    steps = [
        {"name": "pair", "seconds": 1.0, "peak_rss_bytes": 1e9},
        {"name": "train", "seconds": 2.0, "peak_rss_bytes": 1e9, "peak_gpu_bytes": 3e9},
    ]
    part = cost_section({"steps": steps})
    (table,) = part.blocks
    assert isinstance(table, Table) and table.columns[-1] == "On the GPU"
    assert [row.cells[2].text.replace("\u00a0", " ") for row in table.rows] == ["–", "3 GB"]
    assert part.finding.replace("\u00a0", " ").endswith("memory peaks at 1 GB, and at 3 GB on the GPU.")


def test_a_baseline_without_a_step_follows_with_its_seconds_alone(make_run: RunMaker) -> None:
    (table,) = cost_section(read_run(make_run()).metrics).blocks
    assert isinstance(table, Table)
    last = [(r.name, *(c.text.replace("\u00a0", " ") for c in r.cells)) for r in table.rows[-2:]]
    assert last == [("Cosine training", "17 s", "–"), ("Cross-entropy training", "14 s", "–")]


def test_a_run_without_steps_says_what_records_them() -> None:
    assert "a complete run records time and memory of each" in cost_section({}).missing


def test_the_setup_has_command_machine_versions_and_the_config_as_it_was(make_run: RunMaker) -> None:
    run = make_run()
    part = setup_section(read_run(run))
    found = facts(part)
    assert found["Command"] == "semalign run example.yaml" and found["PyTorch"] == "2.13.0"
    assert found["Memory"].replace("\u00a0", " ") == "16 GB" and found["Cores"] == "2"
    (code,) = (block for block in part.blocks if isinstance(block, Code))
    assert code.text == read_sealed(run / "config.yaml", "transfer")


def test_what_the_environment_does_not_say_is_left_out() -> None:
    found = facts(setup_section(RunFiles("run", {}, environment={"cpu": "Example", "torch": None})))
    assert found["Processor"] == "Example" and not {"PyTorch", "Command", "Memory"} & set(found)
