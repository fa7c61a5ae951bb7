"""What every step starts from: tokenised rows and the vocabulary both models share, checked before weights are read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from semalign.config import DataConfig, TransferConfig, without_names
from semalign.data import (
    Sample,
    check_shared,
    disjoint,
    effective_max_length,
    load_rows,
    prepare,
    shared_vocabulary,
)
from semalign.data.batches import candidates_of
from semalign.data.chat import answered, lacks_answer
from semalign.data.drawing import draw_rows, task_rows
from semalign.data.kinds import Row
from semalign.data.lexicon import Lexicon
from semalign.data.mixture import Drawn
from semalign.data.rereading import reread
from semalign.data.samples import unseen_counts
from semalign.data.shown import Shown
from semalign.errors import CacheError, DataError
from semalign.models.decoder import Decoder, share_vocabulary
from semalign.models.layouts import Shape
from semalign.models.loading import Checkpoint, named
from semalign.models.soundness import check_pair
from semalign.reading import Object
from semalign.run.digests import damage
from semalign.run.files import find_json, hash_of, read_lines
from semalign.run.folder import RunFolder, verified

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Rows as tokens, for training and for measuring, and what identifies them."""

    train: list[Sample]
    heldout: list[Sample]
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    """Leading ids that mean the same in both models; heads are sliced to them."""
    teacher: Shape
    """The teacher's sizes."""
    student: Shape
    """The student's sizes."""
    open_teacher: Callable[[], Decoder]
    open_student: Callable[[], Decoder]
    fingerprint: dict[str, Any]
    """Identity of the models and the tokenised rows."""
    lexicons: tuple[Lexicon, Lexicon] | None = None
    """The student's and the teacher's tokens, where the teacher has a tokenizer of its own."""
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per dataset: weight, rows it holds, rows given to training and held out."""

    @cached_property
    def candidates(self) -> Tensor:
        """See `candidates_of`; read from the training rows once."""
        return candidates_of(self.train)

    def load_teacher(self) -> Decoder:
        """The teacher, its head sliced to the shared ids; it is the caller's to drop."""
        return self._sliced(self.open_teacher())

    def load_student(self) -> Decoder:
        """The untouched student, its head sliced to the shared ids."""
        return self._sliced(self.open_student())

    def _sliced(self, decoder: Decoder) -> Decoder:
        share_vocabulary(self.vocabulary, decoder)
        return decoder

    def counts(self) -> dict[str, Any]:
        """Rows and tokens that a run starts from, for data.json."""
        return {
            "training_rows": len(self.train),
            "supervised_tokens": sum(s.supervised for s in self.train),
            "heldout_rows": len(self.heldout),
            "sources": self.sources,
            **unseen_counts([*self.train, *self.heldout]),
        }


def _generated(data: DataConfig, drawn: Drawn, run: RunFolder | None) -> Drawn:
    """The same with the rows that the generate step wrote; without a run, with stand-ins for them."""
    if run is None:
        # For an estimate: as many rows of the same lengths, and answers still to come as long as they may be.
        train, heldout = (_with_stand_ins(data, rows) for rows in (drawn.train, drawn.heldout))
        return replace(drawn, train=train * (data.variants + 1), heldout=heldout)
    check_unedited(run)
    for path in (run.rows, run.heldout):
        if not path.exists():
            raise CacheError(f"{path}: not there yet; run `semalign generate` first.")
        verified(run.generated, path.name, "generate")
    # Line by line: of a mixture they may be of several kinds.
    heldout = read_lines(run.heldout, "generate", Object)
    return replace(drawn, train=load_rows(str(run.rows)), heldout=heldout)


def check_unedited(run: RunFolder) -> None:
    """Refuse rows that are not those which the teacher answered; making them again would lose what somebody wrote.

    Raises:
        DataError: rows.jsonl or heldout.jsonl has changed.
    """
    try:
        files = find_json(run.generated, step="generate").get("files", {})
    except CacheError:
        return  # the generate step makes it again
    for name, entry in files.items():
        path = run.root / name
        if path.exists() and damage(run.root, {name: entry}):
            raise DataError(
                f"{path}: edited or damaged since `semalign generate` wrote it; to train on it as it is, copy it elsewhere and "
                "give that as data.dataset_name of a new run; to have it made again, delete it and run `semalign generate`."
            )


def is_to_answer(data: DataConfig, row: dict[str, Any]) -> bool:
    """Whether a row has no answer and a model is to give it one."""
    return data.completions != "given" and lacks_answer(row)


def _with_stand_ins(data: DataConfig, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # No space at the end, which some chat templates cut off: another tokenizer's template would then write another answer.
    answer = " ".join(["answer"] * data.max_new_tokens)
    return [answered(row, answer) if is_to_answer(data, row) else row for row in rows]


def load_inputs(config: TransferConfig, run: RunFolder | None = None, *, identified: bool = True) -> Inputs:
    """Read configurations, tokenizers and rows; check that the models go together.

    Args:
        run: folder of the generate step's rows, where `data` asks for the teacher's answers.
        identified: whether all bytes of the models are hashed; an estimate, which keeps nothing, has no need of it.
    """
    memory = None if run is None else run.digests
    teacher = named(config.teacher, memory, identified=identified, needs_layers=False)
    student = named(config.student, memory, identified=identified)
    drawn = draw_rows(config.data)
    given = drawn.train
    if config.data.is_generated:
        drawn = _generated(config.data, drawn, run)
    if shared := disjoint(drawn.train, task_rows(config)):
        raise DataError(
            f"{config.evaluation.tasks}: the prompts of {shared} items are among the training rows too; remove them from one side."
        )
    return inputs_of(config, teacher, student, drawn, given)


def inputs_of(
    config: TransferConfig,
    teacher: Checkpoint,
    student: Checkpoint,
    drawn: Drawn,
    given: Sequence[Row] | None = None,
) -> Inputs:
    """Two models and rows as every step wants them; `data` says how rows become tokens.

    Args:
        given: rows with the answers that the teacher may be shown; None: those that are trained on.
    """
    check_pair(teacher.shape, student.shape, allow_smaller_teacher=config.allow_smaller_teacher)
    _warn(config, teacher, student)
    tokenizer = student.tokenizer
    is_own = config.teacher.tokenizer == "own"
    # Where the teacher has another tokenizer, its rows have other lengths, and no id of it is the student's.
    read_alike = (student,) if is_own else (teacher, student)
    other = read_alike[0]
    shared = shared_vocabulary(other.tokenizer, tokenizer, other.shape.vocabulary, student.shape.vocabulary)
    if shared.teacher_extra or shared.student_extra:
        logger.info("heads sliced to the %d shared ids", shared.size)
    length = min(
        effective_max_length(tokenizer, m.shape.positions, config.data.max_length) for m in read_alike
    )
    options: dict[str, Any] = {
        "max_length": length,
        "supervise": config.data.supervise,
        "max_dropped": config.data.max_dropped,
        "thinking": config.data.thinking,
    }
    train = prepare(drawn.train, tokenizer, source=_source(config.data), **options)
    shown = Shown(config.teacher, drawn.train if given is None else given, config.seed)
    train = shown.views(train, tokenizer, config.data, teacher.shape.positions)
    heldout = prepare(drawn.heldout, tokenizer, source="held-out rows", **options) if drawn.heldout else []
    lexicons = (Lexicon(tokenizer), Lexicon(teacher.tokenizer)) if is_own else None
    if lexicons:
        again = partial(reread, lexicons=lexicons, data=config.data, positions=teacher.shape.positions)
        train = again(train, source=_source(config.data))
        heldout = again(heldout, source="held-out rows") if heldout else []
    check_shared([*train, *heldout], shared, tokenizer)
    known = {
        "teacher": teacher.identity,
        "student": student.identity,
        "data": without_names(config.data),
        "train": hash_of([s.sha for s in train]),
        "heldout": hash_of([s.sha for s in heldout]),
    }
    return Inputs(
        train,
        heldout,
        tokenizer,
        shared.size,
        teacher.shape,
        student.shape,
        teacher.open,
        student.open,
        known,
        lexicons,
        drawn.sources,
    )


def _warn(config: TransferConfig, teacher: Checkpoint, student: Checkpoint) -> None:
    """Say what is likely not to be meant."""
    # An estimate does not hash the models.
    if teacher.identity == student.identity and (teacher.identity or config.teacher == config.student):
        logger.warning("the teacher is the student: there is no gap to close, and its figures are left empty")
    if "strftime_now" in str(student.tokenizer.chat_template):
        logger.warning(
            "the chat template writes the date or time (strftime_now): rows change with the clock, and with them everything "
            "that was made from them is made again; write a fixed date into the template to keep results"
        )
    for name, limit in (("teacher", teacher.shape.rope_limit), ("student", student.shape.rope_limit)):
        if limit is not None and limit < config.data.max_length:
            logger.warning(
                "the %s's rotary embedding changes for a whole batch beyond %d tokens, so no row may be longer",
                name,
                limit,
            )


def _source(data: DataConfig) -> str:
    return data.dataset_name if isinstance(data.dataset_name, str) else "mixture"
