"""The saved student's README.md: a pure function of the run's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from semalign.config import RecipeConfig, TrainConfig, plain
from semalign.config.parsing import parse_config, read_yaml
from semalign.data.samples import lines_of
from semalign.errors import CacheError
from semalign.maths.pairing import LayerPair
from semalign.methods import resolve
from semalign.methods.formula import formula
from semalign.methods.recipe import Recipe
from semalign.models.origin import HUB_ID
from semalign.report.files import measured_student
from semalign.report.words import CLOSENESS, figure_name, finite
from semalign.run import results
from semalign.run.files import find_json, write_atomic
from semalign.run.folder import RunFolder
from semalign.run.metrics import Metrics
from semalign.run.sums import read_sums, write_sums

Json = Mapping[str, Any]
VERSIONS = ("semalign", "torch", "transformers", "peft", "accelerate", "python")


def write_card(run: RunFolder) -> None:
    """Write README.md, and the student's LICENSE where its own files have one, beside the saved weights, and SHA256SUMS anew."""
    student = run.training() / "student"
    card = render_card(run)
    license_text = (find_json(run.models, results.Origins).get("student") or {}).get("license_text")
    if license_text:
        write_atomic(student / "LICENSE", license_text)
    write_atomic(student / "README.md", card)
    trained = find_json(run.root / "train.json", results.Trained, "train").get("files")
    # What was recorded when the weights were saved, never what lies there now.
    known = (
        {n.removeprefix("student/"): f["sha256"] for n, f in trained.items()}
        if trained
        else read_sums(student)
    )
    write_sums(student, {name: sha for name, sha in known.items() if name not in ("README.md", "LICENSE")})


def render_card(run: RunFolder) -> str:
    """The card, metadata first; results are left out as long as there are none."""
    config = plain(parse_config(read_yaml(run.config)))
    models = {side: _model(run, config, side) for side in ("teacher", "student")}
    metrics, name = _metrics(run), run.root.resolve().name
    sections = (
        [f"# {name}: {models['student']['name']} taught by {models['teacher']['name']}", _summary(metrics)],
        ["## Models", _models(models)],
        ["## Training", _training(run, config)],
        ["## Data", _data(run, config)],
        ["## Results", _results(metrics)],
        ["## To reproduce", _reproduce(run, config)],
    )
    body = "\n\n".join(part for section in sections for part in section)
    return f"---\n{metadata(name, config, models, metrics).to_yaml()}\n---\n\n{body}\n"


def metadata(name: str, config: Json, models: Json, metrics: Json) -> ModelCardData:
    """What the hub reads: base model, licence, results as model-index."""
    student = models["student"]
    is_other = student["license"] == "other" and student["license_text"]
    return ModelCardData(
        base_model=student["hub_id"],
        library_name="transformers",
        pipeline_tag="text-generation",
        license=student["license"],
        license_name=student["license_name"],
        license_link="LICENSE" if is_other else None,
        tags=["semalign", "knowledge-distillation"],
        datasets=[d for d in _weights(config) if HUB_ID.fullmatch(d) and not Path(d).suffix] or None,
        model_name=name if metrics else None,
        eval_results=eval_results(config, metrics) if metrics else None,
        base_model_relation="finetune" if student["hub_id"] else None,
    )


def eval_results(config: Json, metrics: Json) -> list[EvalResult]:
    """The trained student's figures: accuracy per task, closeness to the teacher on held-out rows."""
    found = []
    # What they were measured with, not what a run that was stopped since then was to be measured with.
    measured = (metrics.get("fingerprint") or {}).get("evaluation") or config["evaluation"]
    tasks = _short(measured.get("tasks") or "")
    for task, entry in (metrics.get("tasks") or {}).items():
        found.append(_result(tasks, task, "accuracy", _figure(entry, "after", "accuracy")))
    for entry in metrics.get("harness") or ():
        found.append(_result(entry["task"], entry["task"], entry["metric"], _figure(entry, "after", "value")))
    rows = _short(config["data"]["heldout_name"] or ", ".join(_weights(config)))
    for m in CLOSENESS:
        value = _figure(metrics.get("closeness") or {}, "after", m.key)
        found.append(_result(rows, "held-out rows", m.title, value))
    return [result for result in found if result is not None]


def _figure(entry: Json, name: str, key: str) -> float | None:
    """A figure of one of the models; None where it was not measured."""
    return finite((entry.get(name) or {}).get(key))


def _result(dataset: str, name: str, metric: str, value: float | None) -> EvalResult | None:
    if value is None:
        return None
    return EvalResult(
        task_type="text-generation",
        dataset_type=dataset,
        dataset_name=name,
        metric_type=metric.lower().replace(" ", "_"),
        metric_name=metric,
        metric_value=round(value, 4),
    )


def _summary(metrics: Json) -> str:
    shares = {kind: finite(metrics.get(f"{kind.lower()}_gap_closed")) for kind in ("accuracy", "KL")}
    told = [f"{100 * share:.0f}% of the {kind} gap" for kind, share in shares.items() if share is not None]
    if not told:
        return "A student trained by SemAlign; nothing was measured yet."
    return f"Training closed {' and '.join(told)} between the untouched student and the teacher."


def _models(models: Json) -> str:
    lines = ["| | model | licence |", "|---|---|---|"]
    for side, model in models.items():
        shown = (
            f"[{model['name']}](https://huggingface.co/{model['hub_id']})"
            if model["hub_id"]
            else model["name"]
        )
        lines.append(f"| {side} | {shown} | {_license(model)} |")
    note = (
        "This student keeps the licence of the student that it was trained from. Its training used the teacher's "
        "outputs, so the teacher's terms may apply as well."
    )
    return "\n".join(lines) + f"\n\n{note}"


def _plan(run: RunFolder) -> Json:
    return find_json(run.pairs, results.Plan, "pair", may_be_edited=True)


def _license(model: Json) -> str:
    return model["license_name"] or model["license"] or "not stated in its files"


def _training(run: RunFolder, config: Json) -> str:
    recipe = resolve(RecipeConfig(**config["recipe"]))
    result, plan, train = (
        find_json(run.root / "train.json", results.Trained, "train"),
        _plan(run),
        config["train"],
    )
    chosen = plan.get("heads" if recipe.interface == "head" else "pairs", ())
    pairs = ", ".join(LayerPair.from_json(p).label for p in chosen)
    moved = [m["layer"] for m in result.get("movement", ())] or plan.get("trained_layers", ())
    layers = ", ".join(map(str, moved))
    trained = recipe.train_of(TrainConfig(**train))
    rows = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"]
    adapter = find_json(run.training() / "student" / "adapter_config.json", step="train", is_sealed=False)
    kind = f"LoRA, rank {trained.lora_r}, merged" if trained.lora_r else "full weights"
    kind = f"a LoRA adapter of rank {adapter.get('r')}" if adapter else kind
    kind = "changed before training, and not trained" if recipe.trained == "none" else kind
    lines = {
        "recipe": recipe.name,
        "teacher layer → student layer": pairs,
        "trained layers": f"{layers} ({kind})",
        "steps": result.get("steps"),
        "rows a step": rows * result.get("processes", 1),
        "learning rate": f"{trained.learning_rate:g} ({train['lr_scheduler_type']})",
        "seconds of training": result.get("train_seconds"),
        "seed": config["seed"],
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in lines.items() if v is not None)])
    return f"{table}\n\n{_formula(recipe)}"


def _formula(recipe: Recipe) -> str:
    lines = "\n".join(formula(recipe))
    return f"```text\n{lines}\n```\n\nTargets are constants; the mean is over supervised tokens."


def _data(run: RunFolder, config: Json) -> str:
    counts = find_json(run.data, results.Data)
    lines = ["| dataset | weight | training rows | held-out rows |", "|---|---|---|---|"]
    for name, s in (counts.get("sources") or {}).items():
        lines.append(f"| {_short(name)} | {s['weight']:.3g} | {s['train']} | {s['heldout']} |")
    total = f"{counts.get('training_rows', '?')} training rows with {counts.get('supervised_tokens', '?')} supervised tokens"
    writer = config["data"]["completions"]
    who = {"speculative": "student and corrected by the teacher"}.get(writer, writer)
    made = "" if writer == "given" else f" (answers written by the {who})"
    left_out = "".join(f" What the rows hold and the tokens do not: {line}." for line in lines_of(counts))
    return "\n".join(lines) + f"\n\n{total}{made}; {counts.get('heldout_rows', '?')} held-out rows.{left_out}"


def _results(metrics: Json) -> str:
    if not metrics:
        return "Not measured yet."
    names = ["before", *(metrics.get("baselines") or {}), "after", "teacher"]
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for task, entry in (metrics.get("tasks") or {}).items():
        lines.append(f"| {task} (n={entry.get('n')}) | {' | '.join(_accuracy(entry, n) for n in names)} |")
    for entry in metrics.get("harness") or ():
        cells = [_shown(_figure(entry, n, "value")) for n in names]
        lines.append(f"| {entry['task']} {figure_name(entry)} (n={entry['n']}) | {' | '.join(cells)} |")
    near = metrics.get("closeness") or {}
    for m in CLOSENESS:
        cells = [_shown(_figure(near, n, m.key)) for n in names]
        if any(cells):
            lines.append(f"| {m.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\nBrackets: 95% Wilson intervals. One run, one seed."


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _accuracy(entry: Json, name: str) -> str:
    value, low, high = (_figure(entry, name, key) for key in ("accuracy", "low", "high"))
    if value is None or low is None or high is None:
        return ""
    return f"{100 * value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _reproduce(run: RunFolder, config: Json) -> str:
    environment = find_json(run.environment, results.Environment)
    versions = ", ".join(f"{name} {environment[name]}" for name in VERSIONS if name in environment)
    text = yaml.safe_dump(_without_paths(config), sort_keys=False, allow_unicode=True)
    return (
        f"```bash\nsemalign transfer config.yaml\n```\n\nwith {versions or 'versions not recorded'}, and this as "
        f"config.yaml (of local paths only the last part is shown):\n\n```yaml\n{text}```\n\n"
        "Method: arXiv 2510.24208. Software: SemAlign."
    )


def _without_paths(value: Any) -> Any:
    """The same values; a local path loses its folders, which are nobody's business, and null stands for the default."""
    if isinstance(value, Mapping):
        return {_without_paths(k): _without_paths(v) for k, v in value.items() if v is not None}
    return _short(value) if isinstance(value, str) else value


def _short(name: str) -> str:
    if "://" in name and not name.startswith("file:"):
        return name  # no path of this machine; what is secret in it was left out when it was written
    is_path = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1
    return Path(name.replace("\\", "/")).name if is_path else name


def _weights(config: Json) -> Json:
    given = config["data"]["dataset_name"]
    return {given: 1.0} if isinstance(given, str) else given


def _model(run: RunFolder, config: Json, side: str) -> Json:
    name = _short(config[side]["model_name_or_path"])
    unknown = {"name": name, **dict.fromkeys(("hub_id", "license", "license_name", "license_text"))}
    return find_json(run.models, results.Origins).get(side) or unknown


def _metrics(run: RunFolder) -> Json:
    """What was measured of this very student; figures of an earlier one are not its own."""
    try:
        metrics = find_json(run.metrics, Metrics, "evaluate")
    except CacheError:
        return {}  # the evaluate step makes them again, and the card after them
    trained = find_json(run.root / "train.json", results.Trained, "train")
    return metrics if measured_student(metrics) == trained.get("fingerprint") else {}
