"""What the tests of pages share: a reader of HTML that checks it, and the parts of a report."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from semalign.report import build_report
from semalign.report.blocks import Report, Section

RunMaker = Callable[..., Path]
Edit = Callable[[Path, Callable[[Any], None]], None]

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Checker(HTMLParser):
    """Balanced tags, ids, links and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def page_of(run: Path) -> str:
    return build_report(run).read_text(encoding="utf-8")


def section(report: Report, key: str) -> Section:
    return next(part for part in report.sections if part.key == key)
