"""What each result file of a run folder holds: declared once, for those who write it, read it and draw it.

A class has what its readers rely on; a field that may be missing has a default, and keys beside these are a newer version's or
only for people. Paths are in `semalign.run.folder`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from semalign.reading import MOST_LAYERS, Count, Figure, Object, Place, Seconds, Shape

Share = Annotated[float, Field(ge=0, le=1)]


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


class Answer(Shape):
    """A line of answers.jsonl: what a model answered to an item, and the verdict."""

    model: str = ""
    id: str | int
    task: str
    prompt: str
    asked: str | None = None
    text: str
    ended: bool
    correct: bool
    extracted: bool
    reason: str = ""
    code: str | None = None
    sample: Count | None = None


class CellItem(Shape):
    """Of the answers to an item the shares that were right, held an answer, and had ended."""

    measured: str
    item: str | int
    correct: Share
    extracted: Share
    ended: Share | None = None


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


class MadeCosts(Shape, extra="forbid"):
    """made.json beside a student that something else has trained."""

    wall_seconds: Seconds | None = None
    train_seconds: Seconds | None = None
    steps: Count | None = None
    rows: Count | None = None
    peak_rss_bytes: Count | None = None


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
