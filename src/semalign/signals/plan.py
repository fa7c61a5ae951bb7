"""The plan of a run: which layers are paired and which are trained."""

from __future__ import annotations

from dataclasses import dataclass

from semalign.errors import ConfigError
from semalign.maths.pairing import LayerPair
from semalign.reading import UnreadableError, check_shape
from semalign.run import results
from semalign.run.files import read_json
from semalign.run.folder import RunFolder


@dataclass(frozen=True)
class Plan:
    """What later steps obey."""

    pairs: tuple[LayerPair, ...]
    trained_layers: tuple[int, ...]
    heads: tuple[LayerPair, ...] = ()
    """Pairs of single attention heads, for the interface head."""

    def at(self, interface: str) -> tuple[LayerPair, ...]:
        """What is paired at an interface: heads, or else layers."""
        return self.heads if interface == "head" else self.pairs

    @property
    def cut(self) -> int:
        """Student layers 1..cut never change."""
        return min(self.trained_layers) - 1


def read_plan(run: RunFolder) -> Plan:
    """The plan as it stands in the file, checked like any user's input."""
    plan = read_json(run.pairs, "pair", may_be_edited=True)
    try:
        check_shape(results.Plan, plan)
    except UnreadableError as error:
        raise ConfigError(
            f"{run.pairs}: expected pairs of teacher, student and fraction and a list trained_layers, but {error}; mend or delete it."
        ) from error
    pairs, heads = (tuple(LayerPair(**p) for p in plan.get(key, ())) for key in ("pairs", "heads"))
    trained = tuple(sorted(set(plan["trained_layers"])))
    depths = plan["teacher_layers"], plan["student_layers"]
    for p in (*pairs, *heads):
        if not (
            1 <= p.student <= depths[1]
            and 1 <= p.teacher <= depths[0]
            and p.teacher + (p.fraction > 0) <= depths[0]
        ):
            raise ConfigError(
                f"{run.pairs}: pair {p.label} is out of range; student layers are 1 to {depths[1]}, teacher layers 1 to {depths[0]}."
            )
    if not trained or max(trained) > depths[1]:
        raise ConfigError(
            f"{run.pairs}: trained_layers {list(trained)} must name layers between 1 and {depths[1]}; mend the list."
        )
    if len({p.student for p in pairs}) != len(pairs):
        raise ConfigError(f"{run.pairs}: a student layer is paired twice; keep one pair per student layer.")
    if not all(p.teacher_head and p.student_head for p in heads) or len({p.place for p in heads}) != len(
        heads
    ):
        raise ConfigError(
            f"{run.pairs}: expected heads with teacher_head and student_head, a student's head once; mend the list heads."
        )
    return Plan(pairs, trained, heads)
