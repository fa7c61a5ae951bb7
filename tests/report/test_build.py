"""The page: numbers of the view model, markup, escaping, missing files, size."""

import json
import math
import os
import re
import socket
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from semalign.errors import CacheError, SemAlignError
from semalign.report import build_report
from semalign.report.blocks import Facts, Table
from semalign.report.build import render, view
from semalign.report.files import RunFiles, read_run
from semalign.run.digests import sealed
from semalign.run.files import find_json, write_atomic, write_json
from semalign.run.folder import save_result

from .pages import Checker, Edit, RunMaker, page_of, section


def test_the_page_is_well_formed_and_all_its_drawings_are_xml(make_run: RunMaker) -> None:
    page = page_of(make_run())
    checker = Checker(page)
    drawings = re.findall(r'<svg class="plot.*?</svg>(?=\s*</figure>)', page, re.S)
    assert len(drawings) == checker.tags.count("figure") > 12
    for drawing in drawings:
        ET.fromstring(drawing)
    assert len(checker.ids) == len(set(checker.ids))
    targets = {value[1:] for tag, name, value in checker.attributes if (tag, name) == ("a", "href")}
    assert targets <= set(checker.ids)
    assert checker.tags.count("h1") == 1 and checker.tags.index("h1") < checker.tags.index("h2")


def test_the_page_needs_nothing_from_elsewhere(make_run: RunMaker) -> None:
    page = page_of(make_run())
    checker = Checker(page)
    assert not {"script", "link", "iframe", "img", "object"} & set(checker.tags)
    assert not re.search(r"https?:|url\(|@import|//[a-z]", page)
    assert all(
        value.startswith("#")
        for _, name, value in checker.attributes
        if name in ("href", "src", "xlink:href")
    )
    assert not [name for _, name, _ in checker.attributes if name.startswith("on")]


def test_it_works_with_the_network_shut(make_run: RunMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the report opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    assert build_report(make_run()).name == "report.html"


def test_the_same_folder_gives_the_same_page(make_run: RunMaker) -> None:
    run = make_run()
    assert page_of(run) == page_of(run)


def test_the_view_carries_the_numbers_of_the_files(make_run: RunMaker) -> None:
    report = view(read_run(make_run()))
    assert (report.teacher, report.student) == ("embedded:teacher", "embedded:student")
    assert report.headline.number == "61%" and "best: cross-entropy, 44%" in report.headline.sentence
    tiles = {tile.label: tile.value for tile in report.tiles}
    mean = (0.74 + 0.55 + 0.95 + 0.56) / 4
    assert tiles["Mean accuracy, 4 tasks"] == f"{mean:.0%}" and tiles["KL to the teacher"] == "0.080"
    assert tiles["Student layers trained"] == "2" and tiles["Peak memory"] == "1.84\u00a0GB"
    table = next(block for block in section(report, "tasks").blocks if isinstance(block, Table))
    ours = next(row for row in table.rows if row.kind == "c-after" and row.cells[0].text == "Knowledge")
    share = (0.74 - 0.42) / (0.86 - 0.42)
    assert [cell.text for cell in ours.cells][1:4:2] == ["74.0%", f"{share:.0%}"]
    closeness = next(block for block in section(report, "closeness").blocks if isinstance(block, Table))
    best = {
        column: row.name
        for row in closeness.rows
        for column, cell in zip(closeness.columns[1:], row.cells, strict=True)
        if cell.best
    }
    assert best == {
        "KL to the teacher": "Aligned (ours)",
        "Top-1 agreement": "Aligned (ours)",
        "NLL": "Cross-entropy",
    }
    facts = dict(
        item
        for block in section(report, "training").blocks
        if isinstance(block, Facts)
        for item in block.items
    )
    assert facts["Supervised tokens"] == "9,120" and facts["Tokens kept a position"] == "top 32"


HOSTILE = "<script>alert(1)</script><svg onload=x>\"'&{{ 7 * 7 }}]]>\x00\ud800"


def test_hostile_text_stays_text(make_run: RunMaker, edit_json: Edit) -> None:
    run = make_run()

    def poison(m: dict[str, Any]) -> None:
        sample = {
            "task": HOSTILE,
            "prompt": HOSTILE,
            "gold": HOSTILE,
            "teacher": HOSTILE,
            "before": HOSTILE,
            "after": HOSTILE,
        }
        m["samples"].append(sample)
        m["tasks"][HOSTILE] = m["tasks"]["knowledge"]
        m["steps"][0]["name"] = m["recipe"] = m["alignment"][0]["interface"] = HOSTILE
        m["baselines"][HOSTILE] = {"accuracy_gap_closed": 0.1, "kl_gap_closed": 0.1, "train_seconds": 1.0}

    edit_json(run / "metrics.json", poison)
    edit_json(
        run / "environment.json", lambda e: e.update(command=HOSTILE, platform=HOSTILE, semalign=HOSTILE)
    )
    config = f"teacher: {{model_name_or_path: '{HOSTILE[:40]}'}}\n# {HOSTILE}\n"
    write_atomic(run / "config.yaml", sealed(config.encode(errors="replace"), ".yaml"))
    page = page_of(run)
    checker = Checker(page)
    assert "script" not in checker.tags and "alert(1)" in checker.text and "{{ 7 * 7 }}" in checker.text
    assert not [name for _, name, _ in checker.attributes if name.startswith("on")]
    for drawing in re.findall(r'<svg class="plot.*?</svg>(?=\s*</figure>)', page, re.S):
        ET.fromstring(drawing)


@pytest.mark.parametrize(
    ("file", "key", "step"),
    [
        ("pairs.json", "layers", "the pair step writes it"),
        ("train.jsonl", "training", "the train step writes it"),
        ("scores.json", "layers", "the attribute step writes it"),
        ("targets/manifest.json", "training", "the cache step writes it"),
        ("environment.json", "setup", "a run writes it"),
        ("config.yaml", "setup", "a run writes it"),
    ],
)
def test_a_missing_file_names_the_step_that_writes_it(
    make_run: RunMaker, file: str, key: str, step: str
) -> None:
    run = make_run()
    (run / file).unlink()
    part = section(view(read_run(run)), key)
    assert step in f"{part.missing} {part.note} {part.blocks}"
    Checker(page_of(run))


def test_bare_metrics_still_make_a_page(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {})
    checker = Checker(page_of(tmp_path))
    assert "no gap between student and teacher was measured" in checker.text
    assert checker.text.count("evaluate step") >= 4


def test_no_metrics_is_the_users_error_with_the_step_to_run(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"metrics\.json.*evaluate step") as caught:
        build_report(tmp_path)
    assert isinstance(caught.value, SemAlignError)


def test_figures_of_an_earlier_student_are_not_shown(make_run: RunMaker, edit_json: Edit) -> None:
    run = make_run()
    trained = find_json(run / "train.json")
    for known, is_shown in (({"of": 1}, True), ({"of": 2}, False)):
        write_json(
            run / "metrics.json",
            find_json(run / "metrics.json") | {"fingerprint": {"students": {"after": known}}},
        )
        write_json(run / "train.json", trained | {"fingerprint": {"of": 1}})
        if is_shown:
            assert read_run(run).train
        else:
            with pytest.raises(
                CacheError, match=r"metrics\.json: of an earlier student .* run `semalign evaluate` again"
            ):
                build_report(run)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": \xff'])
def test_a_damaged_file_is_named(make_run: RunMaker, content: str) -> None:
    run = make_run()
    (run / "pairs.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CacheError, match=r"pairs\.json"):
        build_report(run)


def test_a_log_that_is_not_as_it_was_written_is_named_with_its_step(make_run: RunMaker) -> None:
    run = make_run()
    whole = (run / "train.jsonl").read_text(encoding="utf-8")
    assert len(read_run(run).train) == 90
    for content in (whole + '{"step": 91, "lo', "{broken\n" + whole, whole.replace("1", "2", 1), ""):
        (run / "train.jsonl").write_text(content, encoding="utf-8")
        with pytest.raises(CacheError, match=r"train\.jsonl .* run `semalign train` again"):
            read_run(run)


@pytest.mark.parametrize("name", ["metrics.json", "scores.json", "environment.json", "config.yaml"])
def test_a_file_of_which_a_digit_changed_is_named(make_run: RunMaker, name: str) -> None:
    run = make_run()
    content = (run / name).read_text()
    (run / name).write_text(content.replace("3", "4", 1))
    with pytest.raises(CacheError, match=rf"{name}: damaged, edited, .* run `semalign \w+` again"):
        build_report(run)


def test_numbers_that_are_not_finite_are_left_out(make_run: RunMaker, edit_json: Edit) -> None:
    run = make_run()

    def spoil(m: dict[str, Any]) -> None:
        m["closeness"]["after"]["kl"] = math.nan
        m["cka"]["after"][0][0] = None
        m["alignment"][0]["after"] = math.inf
        m["movement"][0]["relative_change"] = math.nan
        m["tasks"]["knowledge"]["after"]["low"] = None

    edit_json(run / "metrics.json", spoil)
    with (run / "train.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 91, "epoch": 3.0, "loss": NaN}\n')
    save_result(run / "train.json", {}, {}, [run / "train.jsonl"])
    text = Checker(page_of(run)).text
    assert not re.search(r"\bnan\b|\binf\b|None", text)


def test_eighty_layers_stay_below_the_size_limit(make_run: RunMaker) -> None:
    run = make_run(teacher_layers=80, student_layers=80, trained=80, steps=20_000)
    path = build_report(run)
    assert path.stat().st_size < 3_000_000
    Checker(path.read_text(encoding="utf-8"))


def test_a_failed_write_leaves_the_old_report_and_no_rest(
    make_run: RunMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    (run / "report.html").write_text("old", encoding="utf-8")
    before = sorted(run.rglob("*"))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(CacheError, match=r"report\.html: cannot be written \(disk full\)"):
        build_report(run)
    assert (run / "report.html").read_text(encoding="utf-8") == "old" and sorted(run.rglob("*")) == before


def test_a_local_path_shows_only_its_name() -> None:
    config = "teacher: {model_name_or_path: /data/models/big}\nstudent: {model_name_or_path: org/small}\n"
    report = view(RunFiles(name="r", metrics={}, config_text=config))
    assert (report.teacher, report.student) == ("big", "org/small")
    assert json.dumps(render(report)).count("org/small") >= 2


@pytest.mark.parametrize("config", ["", "[1, 2]", "teacher: 3", ": : :", "teacher: {a: 1}"])
def test_an_odd_config_does_not_stop_the_page(config: str) -> None:
    assert view(RunFiles(name="r", metrics={}, config_text=config)).teacher == "teacher"
