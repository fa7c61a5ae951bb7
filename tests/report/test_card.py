"""The student's card says what the run's files say, and nothing about this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
from huggingface_hub import ModelCard

from semalign.config import MapName, RecipeConfig
from semalign.config.parsing import load_config, read_yaml
from semalign.methods import layer_losses, methods, output_losses, resolve
from semalign.methods.formula import formula
from semalign.methods.maps import MAPS
from semalign.report.card import _training, _without_paths, render_card
from semalign.run.files import find_json, write_json
from semalign.run.folder import RunFolder


def test_the_card_parses_as_the_hub_reads_it_and_has_the_measured_figures(done: Path) -> None:
    card = ModelCard.load(done / "student" / "README.md")
    metrics = json.loads((done / "metrics.json").read_text())
    assert card.data.license == "mit" and card.data.library_name == "transformers"
    results = {r.metric_name: r.metric_value for r in card.data.eval_results}
    after = metrics["closeness"]["after"]
    assert results == {
        "KL to the teacher": pytest.approx(after["kl"], abs=1e-4),
        "Top-1 agreement": pytest.approx(after["top1_agreement"], abs=1e-4),
        "NLL": pytest.approx(after["nll"], abs=1e-4),
    }
    assert (done / "student" / "LICENSE").read_text() == "MIT License, as it stands.\n"


def test_the_card_names_models_layers_data_recipe_and_versions(done: Path) -> None:
    text = (done / "student" / "README.md").read_text()
    pairs = json.loads((done / "pairs.json").read_text())["pairs"]
    for pair in pairs:
        assert f"T{pair['teacher'] + pair['fraction']:g} → S{pair['student']}" in text
    assert "| student | small-model | mit |" in text and "| teacher | teacher | not stated" in text
    assert "| rows.jsonl | 1 | 16 | 4 |" in text
    assert all(line in text for line in formula(resolve(RecipeConfig())))
    versions = json.loads((done / "environment.json").read_text())
    assert all(f"{name} {versions[name]}" in text for name in ("torch", "transformers", "semalign"))


def test_no_folder_of_this_machine_is_in_the_card(done: Path, tiny_pair: tuple[Path, Path]) -> None:
    text = (done / "student" / "README.md").read_text()
    for secret in ("secret place", str(Path.home()), str(tiny_pair[0].parent), "/tmp"):
        assert secret not in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("http://host:8000", "http://host:8000"),
        ("s3://bucket/deep/run", "s3://bucket/deep/run"),
        ("file:///home/me/cache", "cache"),
        ("/home/me/rows.jsonl", "rows.jsonl"),
        ("org/name", "org/name"),
    ],
)
def test_an_address_stays_as_it_is_and_a_path_loses_its_folders(value: str, shown: str) -> None:
    assert _without_paths({"of": [value], "at": value}) == {"of": [value], "at": shown}


def test_rows_a_step_are_those_of_all_processes_and_what_is_not_trained_has_no_rank(
    done: Path, tmp_path: Path
) -> None:
    run = RunFolder(shutil.copytree(done, tmp_path / "run"))
    config = read_yaml(run.config)
    assert "| rows a step | 8 |" in _training(run, config) and "(LoRA, rank 16, merged)" in _training(
        run, config
    )
    result = json.loads((run.root / "train.json").read_text())
    write_json(run.root / "train.json", result | {"processes": 2})
    told = _training(run, config | {"recipe": {"name": "laten"}})
    assert "| rows a step | 16 |" in told and "not trained)" in told and "rank" not in told


def test_the_config_in_the_card_makes_the_same_run(done: Path, tmp_path: Path) -> None:
    text = (done / "student" / "README.md").read_text()
    shown = text.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "run.yaml").write_text(shown)
    theirs, ours = load_config(tmp_path / "run.yaml"), load_config(done / "config.yaml")
    for part in ("train", "cache", "recipe", "pairing", "attribution", "evaluation", "seed"):
        assert getattr(theirs, part) == getattr(ours, part)


def test_the_card_depends_on_the_run_s_files_alone(done: Path, tmp_path: Path) -> None:
    copy = tmp_path / "my-run"
    copy.mkdir()
    for path in done.glob("*.*"):
        shutil.copy(path, copy)
    assert render_card(RunFolder(copy)) == (done / "student" / "README.md").read_text()
    # Figures of another training are not this student's.
    trained = find_json(copy / "train.json")
    trained["fingerprint"]["seed"] = 1
    write_json(copy / "train.json", trained)
    assert "Not measured yet." in render_card(RunFolder(copy))


def test_a_licence_with_a_name_of_its_own_is_carried_over_whole(done: Path, tmp_path: Path) -> None:
    copy = tmp_path / "my-run"
    copy.mkdir()
    for path in done.glob("*.*"):
        shutil.copy(path, copy)
    models = find_json(copy / "models.json")
    models["student"] |= {"license": "other", "license_name": "qwen-research"}
    write_json(copy / "models.json", models)
    card = render_card(RunFolder(copy))
    data = ModelCard(card).data
    assert (data.license, data.license_name, data.license_link) == ("other", "qwen-research", "LICENSE")
    assert "| student | small-model | qwen-research |" in card


def test_the_student_with_its_card_still_loads(done: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(done / "student").config.num_hidden_layers == 3


@pytest.mark.parametrize("name", sorted(methods()))
def test_every_recipe_has_a_formula_of_its_terms(name: str) -> None:
    recipe = methods()[name]
    lines = formula(recipe)
    assert lines[0].startswith("loss = ") and len(lines[0]) > len("loss = ")
    assert ("output" in lines[0]) == (recipe.output_loss != "none")
    assert ("layer" in lines[0]) == (recipe.layer is not None and recipe.layer_weight > 0)


def test_every_loss_and_map_has_words() -> None:
    assert set(get_args(MapName)) == set(MAPS)
    for found in (output_losses(), layer_losses(), MAPS):
        assert all(len(value.formula) > 2 for value in found.values())
