"""A recipe's losses on one batch: against literal formulas, weighted as the recipe says, the same under autocast."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, log_softmax, mse_loss, softmax

from semalign.config import ModelConfig, RecipeConfig
from semalign.data import Sample, collate
from semalign.data.batches import state_mask
from semalign.maths.losses import geometry_loss
from semalign.methods import method, methods, resolve
from semalign.methods.objective import Objective, sum_of_row_means
from semalign.methods.recipe import Recipe
from semalign.models.decoder import Decoder
from semalign.models.head import Head
from semalign.models.loading import load


def one_objective(folder: Path, recipe: Recipe, places: tuple[str, ...] = ("1",)) -> tuple[Objective, int]:
    decoder = load(ModelConfig(str(folder)))
    candidates = torch.arange(decoder.shape.vocabulary)
    return Objective(recipe, decoder, places, candidates, decoder.head()), decoder.width


def test_jsd_equals_the_literal_formula(tiny_pair: tuple[Path, Path]) -> None:
    objective, width = one_objective(tiny_pair[1], method("jsd"))
    own, theirs = torch.randn(4, width), torch.randn(4, width)
    p, q = (softmax(h @ objective.head.weight_VD.float().T, 1) for h in (theirs, own))
    m = (p + q) / 2
    expected = (kl_div(m.log(), p, reduction="batchmean") + kl_div(m.log(), q, reduction="batchmean")) / 2
    found = objective.output_loss(own, torch.zeros(4).long(), {"teacher_output": theirs})
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_geometry_is_per_sequence_and_the_projector_learns_its_share(tiny_pair: tuple[Path, Path]) -> None:
    objective, width = one_objective(tiny_pair[1], method("v2"))
    own, target = torch.randn(7, width), torch.randn(7, width)
    expected = (4 * geometry_loss(own[:4], target[:4]) + 3 * geometry_loss(own[4:], target[4:])) / 7
    found = objective.layer_loss("1", own, [4, 3], {"target.1": target})
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    objective, _ = one_objective(tiny_pair[1], method("hidden_mse"))
    projected = objective.projectors["1"](own / own.square().mean(1, keepdim=True).sqrt())
    expected = mse_loss(projected / width**0.5, target) * width
    found = objective.layer_loss("1", own, [7], {"target.1": target})
    torch.testing.assert_close(found, expected)
    assert {p.requires_grad for p in objective.projectors.parameters()} == {True}


@pytest.mark.parametrize("name", sorted(methods()))
def test_no_loss_depends_on_how_a_step_is_split(tiny_pair: tuple[Path, Path], name: str) -> None:
    """Gradients of micro-batches, each weighted by its positions as the trainer does, add up to the whole batch's."""
    objective, width = one_objective(tiny_pair[1], method(name))
    draw = torch.Generator().manual_seed(0)
    counts = [4, 1, 3, 6]
    total, slots = sum(counts), 6
    own = torch.randn(total, width, generator=draw)
    logp = torch.randn(total, 2 * slots, generator=draw).log_softmax(1)
    batch = {
        "ids": torch.stack([torch.randperm(200, generator=draw)[:slots] for _ in range(total)]),
        "valid": torch.ones(total, slots, dtype=torch.bool),
        "teacher_logp": logp[:, :slots],
        "student_logp": logp[:, slots:],
        "rest": torch.randn(total, 3, generator=draw) - 2,
        "teacher_output": torch.randn(total, width, generator=draw),
        "target.1": torch.randn(total, width, generator=draw),
    }
    labels = torch.randint(200, (total,), generator=draw)

    def gradient(first: int, last: int) -> torch.Tensor:
        rows = slice(sum(counts[:first]), sum(counts[:last]))
        part = own[rows].clone().requires_grad_()
        signals = {key: value[rows] for key, value in batch.items()}
        layers = {"1": part} if objective.recipe.layer is not None else {}
        loss = objective(part, layers, labels[rows], counts[first:last], signals)["loss"]
        weight = len(part) / total
        (found,) = torch.autograd.grad(loss * weight, part)
        return found

    whole = gradient(0, 4)
    for cuts in ((0, 1, 4), (0, 2, 4), (0, 1, 2, 3, 4)):
        parts = [gradient(a, b) for a, b in itertools.pairwise(cuts)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-7)


def test_a_decaying_layer_weight_falls_to_nothing(tiny_pair: tuple[Path, Path]) -> None:
    recipe = resolve(RecipeConfig(name="v2", layer_schedule="decay", output_loss="none"))
    objective, width = one_objective(tiny_pair[1], recipe)
    own, target = torch.randn(5, width), torch.randn(5, width)
    found = []
    for objective.progress in (0.0, 0.5, 1.0):
        losses = objective(own, {"1": own}, torch.zeros(5).long(), [5], {"target.1": target})
        found.append(float(losses["loss"]) / float(losses["loss_layer"]))
    assert found == pytest.approx([1.0, 0.5, 0.0])


def test_label_share_reaches_the_trained_distribution(tiny_pair: tuple[Path, Path]) -> None:
    objective, width = one_objective(tiny_pair[1], resolve(RecipeConfig(label_weight=0.5)))
    own = torch.randn(3, width)
    batch = {
        "ids": torch.tensor([[5, 6], [7, 8], [9, 10]]),
        "valid": torch.ones(3, 2, dtype=torch.bool),
        "teacher_logp": torch.log(torch.tensor([[0.75, 0.25]] * 3)),
        "student_logp": torch.zeros(3, 2),
        "rest": torch.tensor([[-1e30, 0.0, -1e30]] * 3),
    }
    labels = torch.tensor([5, 8, 9])
    logits = own @ objective.head.weight_VD.float().T
    rest = logits.scatter(1, batch["ids"], -torch.inf).logsumexp(1, keepdim=True)
    logp = log_softmax(torch.cat([logits.gather(1, batch["ids"]), rest], 1), 1)
    mixed = torch.tensor([[0.875, 0.125, 0.0], [0.375, 0.625, 0.0], [0.875, 0.125, 0.0]])
    expected = kl_div(logp, mixed, reduction="batchmean")
    assert float(objective.output_loss(own, labels, batch)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["aligned", "fisher", "v2", "cosine"])
def test_losses_without_a_vocabulary_are_the_same_under_autocast(name: str) -> None:
    recipe, student = method(name), Decoder(tiny_model("llama", layers=2, wide=False), None)
    objective = Objective(recipe, student, ["2"], torch.arange(4, 20))
    draw = torch.Generator().manual_seed(0)
    width = student.width
    states, target = torch.randn(6, width, generator=draw), torch.randn(6, width, generator=draw)
    logp = torch.randn(6, 8, generator=draw).log_softmax(1)
    batch = {
        "ids": torch.arange(8).repeat(6, 1),
        "valid": torch.ones(6, 8, dtype=torch.bool),
        "teacher_logp": logp,
        "student_logp": logp.flip(1),
        "rest": torch.zeros(6, 3),
        "target.2": target,
    }
    labels = torch.arange(6)
    exact = objective(states, {"2": states}, labels, [6], batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = objective(states, {"2": states}, labels, [6], batch)
    for key, value in exact.items():
        torch.testing.assert_close(mixed[key], value, rtol=0, atol=0)


def of_tiny_student(recipe: Recipe, places: tuple[str, ...] = ("1", "2")) -> Objective:
    """An objective on a student in memory that pairs two layers."""
    student = Decoder(tiny_model("llama", layers=2, wide=False), None)
    return Objective(recipe, student, places, torch.arange(4, 20), student.head())


def drawn(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 32, generator=torch.Generator().manual_seed(seed))


def test_the_loss_adds_the_output_and_the_mean_over_pairs_by_the_recipes_weights() -> None:
    recipe = Recipe(
        "x", output_loss="cross_entropy", output_weight=2.0, layer_loss="cosine", layer_weight=0.3
    )
    objective = of_tiny_student(recipe)
    states, one, two, target = (drawn(5, seed) for seed in range(4))
    labels = torch.arange(40, 45)
    found = objective(states, {"1": one, "2": two}, labels, [3, 2], {"target.1": target, "target.2": target})
    output = cross_entropy(states @ objective.head.weight_VD.T, labels)
    layer = sum(1 - cosine_similarity(h, target).mean() for h in (one, two)) / 2
    assert float(found["loss_output"]) == pytest.approx(float(output), rel=1e-5)
    assert float(found["loss_layer"]) == pytest.approx(float(layer), rel=1e-5)
    assert float(found["loss"]) == pytest.approx(float(2 * output + 0.3 * layer), rel=1e-5)


def test_without_pairs_there_is_no_layer_loss() -> None:
    objective = of_tiny_student(Recipe("x", output_loss="cross_entropy", output_weight=0.5), ())
    states, labels = drawn(4, 0), torch.arange(4)
    found = objective(states, {}, labels, [4], {})
    assert set(found) == {"loss", "loss_output"}
    assert float(found["loss"]) == pytest.approx(0.5 * float(found["loss_output"]))


def test_a_recipe_without_a_loss_at_the_output_has_zero_there_and_no_gradient() -> None:
    objective = of_tiny_student(Recipe("x", layer_loss="cosine", layer_weight=1.0), ("1",))
    states, hidden = drawn(4, 0).requires_grad_(), drawn(4, 1).requires_grad_()
    found = objective(states, {"1": hidden}, torch.arange(4), [4], {"target.1": drawn(4, 2)})
    found["loss"].backward()
    assert float(found["loss_output"].detach()) == 0 and float(found["loss"].detach()) > 0
    assert float(states.grad.abs().max()) == 0 and float(hidden.grad.abs().max()) > 0


def test_learned_projectors_are_registered_once_and_other_losses_learn_nothing() -> None:
    learned = of_tiny_student(method("hidden_mse"))
    names = [name for name, _ in learned.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) > 0 and all(name.startswith("projectors.") for name in names)
    assert not list(of_tiny_student(method("aligned")).parameters())


def test_the_students_own_head_takes_no_gradient() -> None:
    objective = of_tiny_student(method("cross_entropy"), ())
    objective(drawn(4, 0).requires_grad_(), {}, torch.arange(4), [4], {})["loss"].backward()
    assert not objective.head.weight_VD.requires_grad and objective.head.weight_VD.grad is None


def test_half_precision_states_and_targets_are_upcast_before_the_losses() -> None:
    objective = of_tiny_student(
        Recipe("x", layer_loss="cosine", layer_weight=1.0, output_loss="cross_entropy")
    )
    states, hidden, target = (drawn(6, seed).bfloat16() for seed in range(3))
    labels = torch.arange(6)
    half = objective(states, {"1": hidden}, labels, [6], {"target.1": target})
    exact = objective(states.float(), {"1": hidden.float()}, labels, [6], {"target.1": target.float()})
    for name, value in exact.items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], value, rtol=0, atol=0)


def test_logits_over_the_whole_vocabulary_are_in_half_precision_under_autocast() -> None:
    objective = of_tiny_student(method("cross_entropy"), ())
    states, labels = drawn(6, 0), torch.arange(6)
    exact = float(objective(states, {}, labels, [6], {})["loss"])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = float(objective(states, {}, labels, [6], {})["loss"])
    logits = (states.bfloat16() @ objective.head.weight_VD.bfloat16().T).float()
    assert mixed == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-4)
    assert mixed != exact and mixed == pytest.approx(exact, rel=0.02)


def rows() -> list[Sample]:
    return [
        Sample([7, 8, 9, 10, 11], [False, True, True, True, True], "long"),
        Sample([12, 13, 14], [False, False, True], "short"),
    ]


def test_row_means_are_added_up_each_over_its_own_tokens() -> None:
    head, generator = Head(drawn(40, 0)), torch.Generator().manual_seed(1)
    batch = collate(rows())
    states, output = state_mask(batch["mask"]), torch.randn(2, 5, 32, generator=generator)
    found = sum_of_row_means(output, states, rows(), head)
    logits = output @ head.weight_VD.T
    means = [
        cross_entropy(logits[0, :4], torch.arange(8, 12)),
        cross_entropy(logits[1, 1:2], torch.tensor([14])),
    ]
    assert float(found) == pytest.approx(float(sum(means)), rel=1e-5)


def test_a_rows_gradient_does_not_depend_on_its_batch() -> None:
    head, output = Head(drawn(40, 0)), torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    together = output.clone().requires_grad_()
    sum_of_row_means(together, state_mask(collate(rows())["mask"]), rows(), head).backward()
    for number, row in enumerate(rows()):
        alone = output[number : number + 1, : len(row.input_ids)].clone().requires_grad_()
        sum_of_row_means(alone, state_mask(torch.tensor([row.mask])), [row], head).backward()
        torch.testing.assert_close(together.grad[number, : len(row.input_ids)], alone.grad[0])
