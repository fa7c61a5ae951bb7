"""What each result file of a run folder holds: declared once, for those who write it, read it and draw it.

A class has what its readers rely on; a field that may be missing has a default, and keys beside these are a newer version's or
only for people. Paths are in `semalign.run.folder`.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from semalign.reading import MOST_LAYERS, Count, Figure, Object, Place, Seconds, Shape

Share = Annotated[float, Field(ge=0, le=1)]
Matrix = list[list[Figure | None]]


class Recorded(Shape):
    """A file that a result belongs to, as it was written (see `semalign.run.digests`)."""

    bytes: Count
    sha256: str


class Result(Shape):
    """Any result: what made it valid, and the files that belong to it."""

    fingerprint: Object = {}
    files: dict[str, Recorded] = {}


class Costs(Result):
    """Of a step."""

    seconds: Seconds
    peak_rss_bytes: Count
    peak_gpu_bytes: Count | None = None


class Score(Shape):
    layer: Place
    head: Place | None = None
    score: Figure


class Scores(Result):
    """scores.json of the attribute step."""

    layers: list[Score] = []
    heads: list[Score] = []


class Pair(Shape):
    """A pair as `semalign.maths.pairing.LayerPair` writes it."""

    model_config = ConfigDict(extra="forbid")
    teacher: Place
    student: Place
    fraction: Share = 0.0
    teacher_head: Place | None = None
    student_head: Place | None = None


class Plan(Result):
    """pairs.json of the pair step; a user may edit it."""

    teacher_layers: Place
    student_layers: Place
    trained_layers: list[Place]
    critical_layers: list[Place] = []
    pairs: list[Pair] = []
    heads: list[Pair] = []
    selection: str | None = None
    interface: str | None = None


class Generated(Costs):
    """rows.json of the generate step."""

    heldout_seconds: Seconds


class Fit(Shape):
    """A pair with its interface; files of earlier versions may have layer and fraction in one number."""

    teacher: Annotated[float, Field(ge=1, le=MOST_LAYERS)]
    student: Place
    fraction: Share | None = None
    teacher_head: Place | None = None
    student_head: Place | None = None
    interface: str | None = None
    map: str | None = None
    cosine: Figure | None = None
    before: Figure | None = None
    after: Figure | None = None

    @model_validator(mode="after")
    def _one_fraction(self) -> Fit:
        if self.fraction and self.teacher % 1:
            raise ValueError("expected the share of the next layer once, in teacher or in fraction")
        return self


class PrefixError(Shape):
    mean: Figure | None = None
    worst: Figure | None = None


class Manifest(Result):
    """targets/manifest.json of the cache step."""

    bytes: Count | None = None
    samples: Count | None = None
    supervised_tokens: Count | None = None
    top_k: Count | None = None
    alignment: list[Fit] | None = None
    prefix_error: PrefixError | None = None


class Cached(Manifest, Costs):
    """The same with what it cost."""

    heldout_seconds: Seconds
    student_seconds: Seconds


class Moved(Shape):
    layer: Place
    relative_change: Figure | None = None


class Trained(Costs):
    """train.json of the train step."""

    train_seconds: Seconds
    steps: Count | None = None
    loss: Figure | None = None
    trained_parameters: Count | None = None
    movement: list[Moved] = []


class Stage(Result):
    """stage.json: one of several stages of a training."""

    steps: Count
    loss: Figure
    train_seconds: Seconds


class Start(Result):
    """start.json: what a training starts from."""

    start_seconds: Seconds
    losses: list[Figure] | None = None


class LogLine(Shape):
    """A line of train.jsonl."""

    step: Count
    epoch: Figure | None = None
    loss: Figure | None = None
    loss_output: Figure | None = None
    loss_layer: Figure | None = None


class Environment(Shape):
    """environment.json."""

    semalign: str | None = None
    started: str | None = None
    command: str | None = None
    memory_bytes: Figure | None = None


class Origin(Shape):
    """A model in models.json; see `semalign.models.origin.origin`."""

    name: str
    hub_id: str | None
    license: str | None
    license_name: str | None
    license_text: str | None


class Origins(Shape):
    """models.json."""

    teacher: Origin | None = None
    student: Origin | None = None


class Given(Shape):
    """What one dataset gave."""

    weight: Figure
    available: Count
    train: Count
    heldout: Count


class Data(Shape):
    """data.json."""

    training_rows: Count | None = None
    supervised_tokens: Count | None = None
    heldout_rows: Count | None = None
    sources: dict[str, Given] = {}


class Answered(Shape):
    """Accuracy of a model on a task."""

    accuracy: Figure | None = None
    low: Figure | None = None
    high: Figure | None = None
    extraction_failures: Figure | None = None


class Task(Shape):
    """A task: its items, and by model's name what each answered."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Answered | None] = Field(init=False)
    n: Count | None = None


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
        lists: list[Sized] = [self.teacher.top, self.teacher.p]
        for student in students:
            lists += [student.top, student.kl, *student.lens]
        if any(len(values) != len(self.expected) for values in lists):
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


class CellItem(Shape):
    measured: str
    item: str | int
    correct: Annotated[int, Field(ge=0, le=1)]
    extracted: Annotated[int, Field(ge=0, le=1)]


class CellRow(Shape):
    measured: str
    row: Count
    tokens: Count
    kl: Figure
    top1: Figure
    nll: Figure


class CellCosts(Shape):
    """What trained a cell's student, and what that cost; models that are measured as they are have none."""

    method: str
    steps: Count | None = None
    seconds: Seconds | None = None
    train_seconds: Seconds | None = None
    wall_seconds: Seconds | None = None


class Cell(Result):
    """cell.json of a comparison."""

    cell: CellCosts
    items: list[CellItem] = []
    rows: list[CellRow] = []


class Shard(Shape):
    """The JSON beside a shard."""

    files: dict[str, Recorded]
    made_from: str | None = None


class Index(Shape):
    """index.json of a store."""

    fingerprint: Object | None = None
