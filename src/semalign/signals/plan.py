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


def other_layers(found: tuple[int, int], layers: tuple[int, int]) -> str:
    """How the layers of teacher and student that a plan counts differ from those of the models."""
    return f"a plan for {found[0]} teacher and {found[1]} student layers, where the models have {layers[0]} and {layers[1]}"


def read_plan(run: RunFolder, layers: tuple[int, int] | None = None) -> Plan:
    """The plan as it stands in the file, checked like any user's input.

    Args:
        layers: how many the teacher and the student have; None: whatever the file says.

    Raises:
        ConfigError: it is a plan for models of other depths, or no plan that can be followed.
    """
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
    if layers is not None and depths != layers:
        raise ConfigError(
            f"{run.pairs}: {other_layers(depths, layers)}; delete it and run `semalign pair` to have it made again."
        )
    found = Plan(pairs, trained, heads)
    _check(run, found, depths)
    return found


def _check(run: RunFolder, plan: Plan, depths: tuple[int, int]) -> None:
    """Refuse a plan that models of these depths cannot follow."""
    for p in (*plan.pairs, *plan.heads):
        if not (
            1 <= p.student <= depths[1]
            and 1 <= p.teacher <= depths[0]
            and p.teacher + (p.fraction > 0) <= depths[0]
        ):
            raise ConfigError(
                f"{run.pairs}: pair {p.label} is out of range; student layers are 1 to {depths[1]}, teacher layers 1 to {depths[0]}."
            )
    if not plan.trained_layers or max(plan.trained_layers) > depths[1]:
        raise ConfigError(
            f"{run.pairs}: trained_layers {list(plan.trained_layers)} must name layers between 1 and {depths[1]}; mend the list."
        )
    if len({p.student for p in plan.pairs}) != len(plan.pairs):
        raise ConfigError(f"{run.pairs}: a student layer is paired twice; keep one pair per student layer.")
    if not all(p.teacher_head and p.student_head for p in plan.heads) or len(
        {p.place for p in plan.heads}
    ) != len(plan.heads):
        raise ConfigError(
            f"{run.pairs}: expected heads with teacher_head and student_head, a student's head once; mend the list heads."
        )
