"""The student's card says what the run's files say, and nothing about this machine; uploads happen only when asked for."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any, get_args

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError

from semalign.cli import main
from semalign.config import MapName, RecipeConfig
from semalign.config.parsing import load_config, read_yaml
from semalign.errors import ConfigError
from semalign.methods import layer_losses, methods, output_losses, resolve
from semalign.methods.formula import formula
from semalign.methods.maps import MAPS
from semalign.report.card import _training, _without_paths, render_card
from semalign.run.files import find_json, write_json
from semalign.run.folder import RunFolder
from semalign.steps.pipeline import transfer


@pytest.fixture(scope="module")
def done(tiny_pair: tuple[Path, Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose student has a card and a licence file of its own."""
    root = tmp_path_factory.mktemp("secret place")
    student = root / "small-model"
    shutil.copytree(tiny_pair[1], student)
    (student / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n\n# Small\n")
    (student / "LICENSE").write_text("MIT License, as it stands.\n")
    values = {
        "teacher": {"model_name_or_path": str(tiny_pair[0])},
        "student": {"model_name_or_path": str(student)},
        "data": {"dataset_name": str(rows_file), "heldout_rows": 4, "max_length": 64},
        "output_dir": str(root / "my-run"),
        "pairing": {"num_layers": 2},
        "train": {"num_train_epochs": 1, "per_device_train_batch_size": 8},
        "evaluation": {"baselines": ["cross_entropy"]},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(values))
    assert main(["transfer", str(root / "run.yaml"), "--quiet", "--json"]) == 0
    return root / "my-run"


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


class Recorder:
    """In place of HfApi: remembers what it was asked."""

    calls: list[tuple[str, dict[str, Any]]]
    error: Exception | None = None

    def __init__(self) -> None:
        Recorder.calls = []

    def create_repo(self, repo_id: str, **options: Any) -> str:
        if Recorder.error:
            raise Recorder.error
        Recorder.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return f"https://hub.test/{repo_id}"

    def upload_folder(self, **options: Any) -> None:
        Recorder.calls.append(("upload_folder", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    Recorder.calls, Recorder.error = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", Recorder)
    return Recorder


def test_a_dry_run_lists_files_and_card_and_opens_no_connection(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    assert main(["push", str(done), "--hub_model_id", "me/student"]) == 0
    shown = capsys.readouterr().out
    assert "nothing was uploaded" in shown and "license: mit" in shown
    for path in (done / "student").iterdir():
        assert path.name in shown and f"{path.stat().st_size:,}" in shown
    assert main(["push", str(done), "--hub_model_id", "me/student", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["uploaded"] is None


def test_with_yes_exactly_the_student_folder_is_uploaded(
    done: Path, hub: type[Recorder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(done), "--hub_model_id", "me/student", "--private", "--yes", "--json"]) == 0
    made, uploaded = hub.calls
    assert made == (
        "create_repo",
        {"repo_id": "me/student", "private": True, "exist_ok": True, "repo_type": "model"},
    )
    assert uploaded[0] == "upload_folder" and uploaded[1]["folder_path"] == done / "student"
    assert uploaded[1]["repo_id"] == "me/student"
    assert json.loads(capsys.readouterr().out)["uploaded"] == "https://hub.test/me/student"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 3, "expected ORG/NAME, got none"),
        (["--hub_model_id", "a/b/c"], 3, "expected a name such as ORG/NAME"),
        (["--hub_model_id", "me/student", "--yes"], 1, "hf auth login"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    done: Path,
    hub: type[Recorder],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    hub.error = LocalTokenNotFoundError("Token is required")
    assert main(["push", str(done), *arguments]) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert not [call for call in hub.calls if call[0] == "upload_folder"]


def test_a_run_without_student_cannot_be_pushed(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(done / "config.yaml", tmp_path)
    assert main(["push", str(tmp_path), "--hub_model_id", "me/student"]) == 6
    assert "no trained student" in " ".join(capsys.readouterr().err.split())


def test_push_to_hub_in_the_config_uploads_at_the_end_and_only_then(done: Path, hub: type[Recorder]) -> None:
    config = load_config(done / "config.yaml")
    transfer(config)
    assert hub.calls == []
    asked = load_config(done / "config.yaml", push_to_hub=True, hub_model_id="me/student")
    transfer(asked, ("attribute",))
    transfer(asked, ("evaluate", "report"))
    assert hub.calls == []
    transfer(asked)
    assert [name for name, _ in hub.calls] == ["create_repo", "upload_folder"]
    with pytest.raises(ConfigError, match="hub_model_id"):
        load_config(done / "config.yaml", push_to_hub=True, hub_model_id=None)
