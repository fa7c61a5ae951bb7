"""A comparison's file: which cells share a source, and a sentence for every mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from semalign.comparison.overrides import nested
from semalign.comparison.plan import Comparison, read_comparison
from semalign.comparison.run import jobs_of
from semalign.config import ModelConfig
from semalign.data.drawing import split_rows
from semalign.errors import ConfigError
from semalign.models.loading import load

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "compare-embedded.yaml"
METHODS: dict[str, Any] = {
    "aligned": {},
    "kl": {"train.num_train_epochs": 5},
    "mine": {"recipe.name": "fisher", "recipe": {"learning_rate": 0.01}},
    "varied": {"recipe.name": "aligned", "data.variants": 2},
    "deep": {"recipe.name": "aligned", "pairing.num_layers": 4},
    "random": {"recipe.name": "aligned", "teacher": "random"},
    "shuffled": {},
}


def values(**changes: Any) -> dict[str, Any]:
    return {
        "output_dir": "runs/x",
        "default": "aligned",
        "seeds": 2,
        "base": {
            "teacher": {"model_name_or_path": "embedded:teacher"},
            "student": {"model_name_or_path": "embedded:student"},
            "data.dataset_name": "embedded:transfer",
            "evaluation": {"tasks": "embedded:test"},
        },
        "tasks": {t: {"data.dataset_name": f"embedded:transfer/{t}"} for t in ("knowledge", "arithmetic")},
        "methods": METHODS,
    } | changes


def read(folder: Path, **changes: Any) -> Comparison:
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(values(**changes), sort_keys=False))
    return read_comparison(path)


def test_cells_share_a_source_exactly_when_rows_teacher_plan_and_cache_are_the_same(tmp_path: Path) -> None:
    found = read(tmp_path)
    place = {(t, m): s.config.output_dir for (t, m, seed), s in found.sources.items() if seed == 0}
    shared = {place["knowledge", m] for m in ("aligned", "kl", "mine", "shuffled")}
    assert len(shared) == 1
    apart = {place["knowledge", m] for m in ("aligned", "varied", "deep", "random")}
    assert len(apart) == 4
    assert not {place["knowledge", m] for m in METHODS} & {place["arithmetic", m] for m in METHODS}
    source = found.sources["knowledge", "kl", 0]
    assert source.task == "knowledge" and not source.has_random_teacher
    assert set(source.config.evaluation.baselines) == {"aligned", "kl", "mine", "shuffled"}
    random = found.sources["knowledge", "random", 0]
    assert random.has_random_teacher
    assert random.config.teacher.model_name_or_path.startswith(str(Path("runs/x/random-teacher-")))


def test_what_is_drawn_is_drawn_anew_for_every_seed(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.sources["knowledge", "aligned", 0] is found.sources["knowledge", "aligned", 1]
    first, second = (found.sources["knowledge", "varied", seed] for seed in range(2))
    assert first.run.root != second.run.root and [s.config.seed for s in (first, second)] == [0, 1]
    methods = METHODS | {"chosen": {"recipe.name": "aligned", "pairing.selection": "attribution"}}
    few = read(tmp_path, methods=methods, base=values()["base"] | {"data.max_rows": 8, "seed": 3})
    for label in methods:
        one, two = (few.sources["knowledge", label, seed] for seed in range(2))
        assert one.run.root != two.run.root and [s.config.data.rows_seed for s in (one, two)] == [0, 1]
        drawn = [[row["id"] for row in split_rows(s.config.data)[0]] for s in (one, two)]
        assert len(set(drawn[0])) == 8 and set(drawn[0]) != set(drawn[1])
    all_rows = read(tmp_path, methods=methods)
    assert (
        all_rows.sources["knowledge", "chosen", 0].run.root
        != all_rows.sources["knowledge", "chosen", 1].run.root
    ), "the rows of the attribution are drawn"
    # Students of all seeds are measured with the same held-out rows and teacher.
    assert [s.is_measured_with for s in (few.sources["knowledge", "aligned", n] for n in range(2))] == [
        True,
        False,
    ]


def test_a_cells_config_is_the_base_with_its_tasks_and_its_methods_changes(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.configs["knowledge", "kl"].train.num_train_epochs == 5
    assert found.configs["arithmetic", "mine"].data.dataset_name == "embedded:transfer/arithmetic"
    recipe = found.recipes["arithmetic", "mine"]
    assert (recipe.name, recipe.output_loss, recipe.learning_rate) == ("mine", "fisher", 0.01)


def test_cells_come_seed_by_seed_and_the_default_is_always_among_the_methods(tmp_path: Path) -> None:
    found = read(tmp_path)
    labels = found.chosen(["varied", "kl"])
    assert labels == ["aligned", "kl", "varied"] and found.chosen(None) == list(METHODS)
    cells = list(found.cells(labels, "rows"))
    assert len(cells) == len(set(cells)) == 12 and [c.seed for c in cells] == [0] * 6 + [1] * 6
    assert len({c.place for c in cells}) == 12
    with pytest.raises(ConfigError, match="got 'alined'; did you mean aligned"):
        found.chosen(["alined"])


def test_no_student_is_trained_on_a_task_that_is_measured_only(tmp_path: Path) -> None:
    tasks = values()["tasks"]
    tasks["arithmetic"] |= {"data.max_rows": 1}
    found = read(tmp_path, measured_only=["arithmetic"], tasks=tasks)
    assert {cell.task for cell in found.cells(found.chosen(None), "rows")} == {"knowledge"}
    jobs = jobs_of(found, ["aligned", "kl"])
    assert all(list(job.references) == ["knowledge", "arithmetic"] for job in jobs.values())
    # The default's source measures it; no other is made for it.
    assert {label for task, label, _ in found.sources if task == "arithmetic"} == {"aligned"}
    assert found.reference("arithmetic").is_measured_with


def test_students_that_something_else_has_trained_are_measured_and_not_trained(tmp_path: Path) -> None:
    methods = METHODS | {"theirs": {"made": "others/{task}-{seed}"}}
    found = read(tmp_path, methods=methods)
    assert found.made["arithmetic", "theirs", 1] == ModelConfig(str(tmp_path / "others" / "arithmetic-1"))
    assert len(found.made) == 4 and not any(label == "theirs" for _, label, _ in found.sources)
    jobs = jobs_of(found, ["aligned", "theirs"])
    job = jobs["arithmetic/theirs/rows-1"]
    assert job.source is None and job.recipe is None
    assert job.config.student.model_name_or_path.endswith("arithmetic-1")
    # Its cell is another one once the folder is there.
    before = job.fingerprint
    load("embedded:student").model.save_pretrained(tmp_path / "others" / "arithmetic-1")
    assert jobs_of(found, ["aligned", "theirs"])["arithmetic/theirs/rows-1"].fingerprint != before
    # One folder is one student, whatever the number of seeds.
    one = read(tmp_path, methods=METHODS | {"theirs": {"made": "others/{task}"}}, seeds=3)
    assert [c.seed for c in one.cells(["theirs"], "rows")] == [0] * len(one.options.tasks)


def test_options_that_hold_mappings_are_options_here_too(tmp_path: Path) -> None:
    mixture = {"embedded:transfer/arithmetic": 1.0, "embedded:transfer/knowledge": 1.0}
    base = BASE | {
        "student": {"model_name_or_path": "embedded:student", "chat_template_kwargs": {"thinking": False}},
        "evaluation": {"harness": {"gsm8k": {}}},
    }
    found = read(
        tmp_path, base=base, methods=METHODS | {"kl": {"data.dataset_name": mixture, "data.max_rows": 8}}
    )
    config = found.configs["arithmetic", "kl"]
    assert config.student.chat_template_kwargs == {"thinking": False}
    assert dict(config.data.weights) == mixture and config.evaluation.harness == {"gsm8k": {}}


def test_the_example_holds_every_method_that_differs_there_and_all_four_tasks() -> None:
    from semalign.methods import methods

    found = read_comparison(EXAMPLE)
    names = {
        label: (changes or {}).get("recipe.name", label) for label, changes in found.options.methods.items()
    }
    # Variants of one loss at the output stand with the other ablations.
    ablations = read_comparison(EXAMPLES / "ablations-embedded.yaml").options.methods
    elsewhere = {"reverse", "generalised_jsd", "skewed", "bridge"}
    assert elsewhere <= set(ablations)
    assert set(methods()) - {"cross_entropy_all", "kl_all"} - elsewhere <= set(names.values())
    assert found.configs["knowledge", "varied"].pairing.num_layers == load("embedded:student").num_layers
    assert len(found.options.tasks) == 4 and found.options.default == "varied"


@pytest.mark.parametrize(
    "name",
    [
        "ablations-embedded",
        "compare-small",
        "few-rows-embedded",
        "few-rows-real",
        "paper-embedded",
        "shifted-embedded",
        "compare-real",
        "compare-real-closeness",
        "compare-real-code",
    ],
)
def test_the_other_examples_are_plans_whose_labels_differ(name: str) -> None:
    found = read_comparison(EXAMPLES / f"{name}.yaml")
    task = next(iter(found.options.tasks))
    labels = [m for m in found.options.methods if (task, m, 0) not in found.made]
    students = {
        repr(
            (
                replace(found.recipes[task, m], name=""),
                found.configs[task, m].train,
                found.sources[task, m, 0],
                found.targets.get((task, m, 0)),
            )
        )
        for m in labels
    }
    assert len(students) == len(labels)


def test_nested_is_the_inverse_of_dotted_names() -> None:
    assert nested({"a.b.c": 1, "a.b.d": 2, "e": 3}) == {"a": {"b": {"c": 1, "d": 2}}, "e": 3}


BASE = values()["base"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": True}, "seeds: expected a whole number, got True"),
        ({"seeds": 10**15}, "seeds: expected at most 1000"),
        ({"output_dir": 3}, "output_dir: expected a text, got 3"),
        ({"base": "trapmodule.X"}, "base: expected names with values"),
        ({"base": {**BASE, "teacher": "trapmodule.X"}}, "base: expected fields of a run's config, got 'teacher'"),
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
        ({"workers": "two"}, "workers: expected a whole number, got 'two'"),
        ({"method": {}}, "got 'method'; did you mean methods"),
        ({"default": "alined"}, "got 'alined'; did you mean aligned"),
        ({"equal_time": ["kll"]}, "got 'kll'; did you mean kl"),
        ({"equal_time": "kl"}, "equal_time: expected a list"),
        ({"methods": METHODS | {"theirs": {"made": "x", "train.max_steps": 3}}}, "and nothing beside it"),
        ({"methods": METHODS | {"theirs": {"made": 3}}}, "methods.theirs: expected a folder under made"),
        ({"methods": {"aligned": {"made": "x"}}}, "methods.aligned: expected the default"),
        ({"methods": METHODS | {"theirs": {"made": "x-{seed}"}}}, "expected {task} in made"),
        ({"base": BASE | {"cache": {"folder": "big"}}}, "expected no cache.folder in a comparison"),
        ({"measured_only": ["arithmetics"]}, "got 'arithmetics'; did you mean arithmetic"),
        ({"measured_only": ["knowledge", "arithmetic"]}, "expected fewer than all tasks, got all"),
        ({"measured_only": "knowledge"}, "measured_only: expected a list of tasks"),
        ({"methods": {}}, "methods: expected names with values"),
        ({"methods": {"aligned": {"train.num_epochs": 1}}}, "did you mean train.num_train_epochs"),
        ({"methods": {"aligned": {}, "fancy": {}}}, "expected the name of a method, got 'fancy'"),
        ({"methods": {"aligned": {}, "a b": {}}}, "got 'a b'; rename it"),
        ({"methods": {"aligned": {}, "teacher": {}}}, "got 'teacher'; rename it"),
        ({"methods": {"aligned": None}}, "methods.aligned: expected names with values, got None"),
        ({"base": BASE | {"teacher": BASE["teacher"] | {"server": {"url": "http://h"}}},
          "methods": {"aligned": {}, "r": {"recipe.name": "kl", "teacher": "random"}}}, "a teacher that is loaded here"),
        ({"methods": {"aligned": {"evaluation.max_items": 3}}}, "the same for all cells"),
        ({"methods": {"aligned": {"student.dtype": "float32"}}}, "the same for all cells"),
        ({"methods": {"aligned": {"teacher": "random"}}}, "the default is measured against the base's teacher"),
        ({"methods": {"aligned": {}, "r": {"recipe.name": "kl", "teacher": "rand"}}}, "expected random or fields"),
        ({"tasks": {"knowledge": {"seed": 3}}}, "tasks.knowledge: seed is the same"),
        ({"base": BASE | {"output_dir": "x"}}, "base: output_dir is the same"),
        ({"base": BASE | {"recipe.name": "kl"}}, "base: recipe.name is the same"),
        ({"base": BASE | {"cache": {"topk": 8}}}, "got 'cache.topk'; did you mean cache.top_k"),
        ({"base": BASE | {"cache": {"top_k": 0}}}, "cache.top_k: expected a positive count"),
    ],
)  # fmt: skip
def test_a_mistake_gets_a_sentence_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values().items() if k != "default"}))
    with pytest.raises(ConfigError, match="expected default, found nothing"):
        read_comparison(path)


def test_a_method_at_equal_time_has_a_cache_of_its_own(tmp_path: Path) -> None:
    found = read(tmp_path, equal_time=["kl"])
    place = {m: found.sources["knowledge", m, 0].config.output_dir for m in METHODS}
    assert place["kl"] not in {place[m] for m in METHODS if m != "kl"} and place["aligned"] == place["mine"]
