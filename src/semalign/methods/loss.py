"""What a loss is: a value that says which signals it reads, how it is written, and how it is computed.

A loss lives in the file of the method that brought it in. Everything that other parts of the program have to know of it stands
here: the cache stores what it reads, cards and pages show its formula, and training calls what `make` returns.

Legend: N supervised positions, E student width, D teacher width, J slots of the top-k union.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Never

from torch import Tensor

from semalign.config import RecipeFields
from semalign.models.decoder import Decoder
from semalign.models.head import Head

REST = "rest"
"""What is left of both models outside the union at the recipe's temperature (N, 3): `rest_of` the teacher's log-probabilities,
and of the untouched student `followed_logit` and `outside_of`; see `semalign.maths.topk`."""
TOPK = ("ids", "valid", "teacher_logp", "student_logp", REST)
"""The cached union of both models' top-k tokens and the row's own: ids, which slots count, both models' log-probabilities (N, J),
and the rest."""
TEACHER_OUTPUT = ("teacher_output",)
"""The teacher's states after its final norm (N, D)."""

Batch = Mapping[str, Tensor]
"""Signals of one batch by name; what is there is what the recipe's losses read."""
OutputTerm = Callable[[Tensor, Tensor, Batch], Tensor]
"""(states after the final norm (N, E), labels (N,), signals) -> the loss, a mean over the N positions."""
LayerTerm = Callable[[str, Tensor, Tensor, Sequence[int], Batch], Tensor]
"""(place, activations (N, E), targets (N, E or D), supervised positions a row, signals) -> the loss of one pair."""


@dataclass(frozen=True)
class Setting:
    """What a loss may use beside a batch; one for a whole training."""

    recipe: RecipeFields[Never]
    """The recipe, no field of it left open."""
    decoder: Decoder
    head: Head
    """The student's LM head."""
    candidates_C: Tensor
    """Tokens outside the top k that the rest's logit follows, ascending."""
    places: tuple[str, ...]
    """What is paired: student layers (`3`), or heads in them (`3h2`)."""
    teacher_head: Head | None
    """There where a loss says that it needs it."""
    progress: Callable[[], float] = lambda: 0.0
    """Share of the training that is done."""


@dataclass(frozen=True)
class OutputLoss:
    """A loss at the output of the student."""

    name: str
    """What `recipe.output_loss` calls it."""
    formula: str
    """As text, for cards and pages."""
    make: Callable[[Setting], OutputTerm]
    """Gets ready what a training computes once."""
    reads: tuple[str, ...] = ()
    """Signals that it needs of a batch: TOPK, TEACHER_OUTPUT."""
    options: tuple[str, ...] = ()
    """Fields of the recipe that change it: temperature, beta, label_weight, label_smoothing."""
    constant_at: tuple[float, ...] = ()
    """Values of beta with which it is the same whatever the student says, so that they are refused."""
    needs_teacher_head: bool = False
    is_full_vocabulary: bool = False
    """Whether it forms logits over the whole vocabulary, as the distillation and fine-tuning controls do."""


@dataclass(frozen=True)
class LayerLoss:
    """A loss between the activations of a paired layer and their target."""

    name: str
    """What `recipe.layer_loss` calls it."""
    formula: str
    make: Callable[[Setting], LayerTerm]
    """Where the term is a torch module, its parameters are trained beside the student and thrown away afterwards."""
    reads: tuple[str, ...] = ()
    """Signals that it needs of a batch beside the target."""
    interfaces: tuple[str, ...] | None = None
    """Interfaces at which it makes sense; None: at all of them."""
    is_raw: bool = False
    """Whether the target is the teacher's own activation (map none), in the teacher's width."""
    needs_teacher_head: bool = False
