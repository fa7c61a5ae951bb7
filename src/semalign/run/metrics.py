"""What metrics.json of the evaluate step holds; see `semalign.run.results`."""

from __future__ import annotations

from pydantic import ConfigDict, Field, model_validator

from semalign.reading import MOST_LAYERS, Count, Figure, Seconds, Shape
from semalign.run.results import Fit, Moved, Result

Matrix = list[list[Figure | None]]


class Answered(Shape):
    """Accuracy of a model on a task."""

    accuracy: Figure | None = None
    low: Figure | None = None
    high: Figure | None = None
    extraction_failures: Figure | None = None
    ended: Figure | None = None


class Task(Shape):
    """A task: its items, and by model's name what each answered."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Answered | None] = Field(init=False)
    n: Count | None = None
    samples: Count | None = None
    """Answers to each item, where there are several."""


class Near(Shape):
    """Closeness of a model to the teacher."""

    kl: Figure | None = None
    top1_agreement: Figure | None = None
    nll: Figure | None = None


class Closeness(Shape):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Near | None] = Field(init=False)
    rows: Count | None = None
    tokens: Count | None = None


class Valued(Shape):
    value: Figure | None = None
    low: Figure | None = None
    high: Figure | None = None


class Harness(Shape):
    """A figure of lm-evaluation-harness, and by model's name its values."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Valued | None] = Field(init=False)
    task: str
    metric: str
    filter: str
    n: Count


class Closed(Shape):
    """Shares of the gaps that a training closed."""

    accuracy_gap_closed: Figure | None = None
    kl_gap_closed: Figure | None = None
    train_seconds: Seconds | None = None


class Step(Shape):
    """What a step cost, for the page."""

    name: str
    seconds: Seconds | None = None
    peak_rss_bytes: Figure | None = None
    peak_gpu_bytes: Figure | None = None


class Heatmaps(Shape):
    """CKA of teacher layers (rows) and student layers (columns)."""

    before: Matrix | None = None
    after: Matrix | None = None

    @model_validator(mode="after")
    def _sizes(self) -> Heatmaps:
        maps: list[Matrix] = [m for m in (self.before, self.after) if m]
        sizes: list[list[int]] = [[len(row) for row in m] for m in maps]
        if any(max([len(size), *size]) > MOST_LAYERS for size in sizes):
            raise ValueError(f"expected at most {MOST_LAYERS} layers")
        # A ragged one is not drawn.
        whole = [size for size in sizes if len(set(size)) == 1]
        if len(whole) == 2 and whole[0] != whole[1]:
            raise ValueError("expected before and after of one size")
        return self


class TeacherTokens(Shape):
    top: list[str]
    p: list[Figure | None]


class StudentTokens(Shape):
    top: list[str] = []
    kl: list[Figure | None] = []
    lens: list[list[str]] = []


class TokenRow(Shape):
    """What the models say at the tokens of a row."""

    prompt: str
    expected: list[str]
    teacher: TeacherTokens
    before: StudentTokens | None = None
    after: StudentTokens | None = None

    @model_validator(mode="after")
    def _lengths(self) -> TokenRow:
        students = [s for s in (self.before, self.after) if s is not None and s.model_fields_set]
        counts = {len(self.teacher.top), len(self.teacher.p)}
        for student in students:
            counts |= {len(student.top), len(student.kl), *map(len, student.lens)}
        if counts != {len(self.expected)}:
            raise ValueError(f"expected {len(self.expected)} tokens of every model")
        return self


class Sample(Shape):
    """An item with the answers to it."""

    task: str | None = None
    prompt: str | None = None
    correct: dict[str, bool | None] | None = None


class Metrics(Closed, Result):
    """metrics.json of the evaluate step."""

    recipe: str | None = None
    wall_seconds: Seconds | None = None
    peak_rss_bytes: Figure | None = None
    peak_gpu_bytes: Figure | None = None
    baselines: dict[str, Closed] | None = None
    accuracy: dict[str, Figure] | None = None
    tasks: dict[str, Task] | None = None
    closeness: Closeness | None = None
    alignment: list[Fit] | None = None
    cka: Heatmaps | None = None
    harness: list[Harness] | None = None
    tokens: list[TokenRow] | None = None
    movement: list[Moved] | None = None
    steps: list[Step] | None = None
    samples: list[Sample] | None = None
