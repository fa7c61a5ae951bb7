import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from semalign.errors import ModelError
from semalign.maths.head import gathered_logits
from semalign.maths.topk import (
    Divergence,
    fisher_loss,
    followed_logit,
    outside_of,
    rest_logit,
    rest_of,
    told_closeness,
    topk_divergence,
    topk_kl_loss,
    union_topk,
    with_labels,
    with_rest,
)

from . import reference

sizes = st.tuples(st.integers(1, 4), st.integers(3, 12), st.integers(1, 3), st.integers(0, 1000))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(
    size: tuple[int, int, int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, reference.TopkTargets]:
    """Logits of student (a leaf), teacher and untouched student, and the targets cached from the last two."""
    positions, vocabulary, k, seed = size
    student = normal(positions, vocabulary, seed=seed).requires_grad_()
    teacher = normal(positions, vocabulary, seed=seed + 1)
    untouched = normal(positions, vocabulary, seed=seed + 2)
    return student, teacher, untouched, reference.topk_targets(teacher, untouched, k)


@settings(max_examples=30)
@given(sizes)
def test_the_union_of_two_lists_holds_every_token_once(size: tuple[int, int, int, int]) -> None:
    _, teacher, untouched, targets = drawn(size)
    tops = [logits.log_softmax(-1).topk(size[2], dim=-1) for logits in (teacher, untouched)]
    ids, mask = union_topk(tops[0].indices, tops[0].values, tops[1].indices, tops[1].values)
    unions = reference.topk_union(teacher, untouched, size[2])
    for n, union in enumerate(unions):
        counted = ids[n][mask[n]].tolist()
        assert len(counted) == len(set(counted))
        assert set(counted) == union
    assert ids.shape == (size[0], 2 * size[2])
    assert torch.equal(ids, targets.ids_NJ) and torch.equal(mask, targets.mask_NJ)


def test_the_row_s_own_token_is_in_the_union_once() -> None:
    ids, mask = with_labels(
        torch.tensor([[3, 0, 5], [3, 0, 5]]), torch.tensor([[True, True, False]] * 2), torch.tensor([0, 5])
    )
    assert ids.tolist() == [[3, 0, 5, 0], [3, 0, 5, 5]]
    assert mask.tolist() == [[True, True, False, False], [True, True, False, True]]


def test_padding_is_masked_and_hides_nothing() -> None:
    minus = -torch.inf
    ids, mask = union_topk(
        torch.tensor([[3, 0]]),
        torch.tensor([[-0.1, minus]]),
        torch.tensor([[0, 3]]),
        torch.tensor([[-0.2, -2.0]]),
    )
    assert ids.tolist() == [[3, 0, 0, 3]]
    assert mask.tolist() == [[True, False, True, False]]


@settings(max_examples=25)
@given(sizes, st.sampled_from([1.0, 2.5]))
def test_topk_kl(size: tuple[int, int, int, int], temperature: float) -> None:
    student, teacher, untouched, targets = drawn(size)
    unions = reference.topk_union(teacher, untouched, size[2])
    (copy,) = reference.double(student)
    expected = reference.topk_kl_loss(copy, teacher.double(), unions, temperature)
    loss = topk_kl_loss(
        student.gather(1, targets.ids_NJ), targets.teacher_logp_NJ, targets.mask_NJ, temperature=temperature
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,), (wanted,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, copy)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-6)


@settings(max_examples=25)
@given(sizes)
def test_fisher(size: tuple[int, int, int, int]) -> None:
    student, teacher, untouched, targets = drawn(size)
    unions = reference.topk_union(teacher, untouched, size[2])
    (copy,) = reference.double(student)
    expected = reference.fisher_loss(copy, teacher.double(), untouched.double(), unions)
    loss = fisher_loss(
        student.gather(1, targets.ids_NJ), targets.teacher_logp_NJ, targets.student_logp_NJ, targets.mask_NJ
    )
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    (gradient,), (wanted,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, copy)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5)


def test_with_the_whole_vocabulary_the_topk_kl_is_the_full_kl() -> None:
    student, teacher, _, targets = drawn((5, 9, 9, 0))
    loss = topk_kl_loss(student.gather(1, targets.ids_NJ), targets.teacher_logp_NJ, targets.mask_NJ)
    full = reference.divergence(student.detach().double(), teacher.double(), "forward")
    torch.testing.assert_close(loss.double(), full, rtol=1e-5, atol=1e-6)


def lse(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return temperature * (logits / temperature).logsumexp(1)


def kl_with_rest(
    student: torch.Tensor,
    teacher: torch.Tensor,
    untouched: torch.Tensor,
    targets: reference.TopkTargets,
    candidates: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The KL on J and the rest, as training computes it."""
    ids, mask, t = targets.ids_NJ, targets.mask_NJ, {"temperature": temperature}
    of_teacher = rest_of(targets.teacher_logp_NJ, lse(teacher, temperature) - lse(teacher, 1.0), mask, **t)
    before = followed_logit(untouched[:, candidates], candidates, ids, mask, **t)
    outside = outside_of(before, untouched.gather(1, ids), lse(untouched, temperature), mask, **t)
    rest = rest_logit(
        followed_logit(student[:, candidates], candidates, ids, mask, **t), before, outside, **t
    )
    slots = with_rest(student.gather(1, ids), rest, targets.teacher_logp_NJ, of_teacher[:, None], mask)
    return topk_kl_loss(*slots, **t)


def coarse(logits: torch.Tensor, unions: list[set[int]]) -> list[torch.Tensor]:
    """Probabilities of the tokens of J and of all others together, a vector a position."""
    parts = []
    for z, union in zip(logits.softmax(1), unions, strict=True):
        others = [v for v in range(len(z)) if v not in union]
        parts.append(torch.cat([z[sorted(union)], z[others].sum(0, keepdim=True)]))
    return parts


def coarse_kl(
    student: torch.Tensor, teacher: torch.Tensor, unions: list[set[int]], temperature: float
) -> torch.Tensor:
    """The exact KL of both models at a temperature once all tokens outside J are one, from whole logits."""
    pairs = zip(coarse(teacher / temperature, unions), coarse(student / temperature, unions), strict=True)
    # kl: 0 log 0 is 0, for J may be everything
    return torch.stack([(p.xlogy(p) - p.xlogy(q)).sum() for p, q in pairs]).mean() * temperature**2


@settings(max_examples=25)
@given(sizes, st.sampled_from([1.0, 2.0, 0.7]))
@example((1, 4, 2, 235), 0.7)
def test_with_all_candidates_the_loss_is_the_kl_with_everything_outside_as_one_token(
    size: tuple[int, int, int, int], temperature: float
) -> None:
    student, teacher, untouched, targets = drawn(size)
    unions = reference.topk_union(teacher, untouched, size[2])
    (copy,) = reference.double(student)
    expected = coarse_kl(copy, teacher.double(), unions, temperature)
    loss = kl_with_rest(student, teacher, untouched, targets, torch.arange(size[1]), temperature)
    # A float32 sum over the vocabulary is known to some millionths of its mass, and what is left outside J may be as little: so well is
    # its logarithm known.
    outside = [
        float(p[-1])
        for z in (student, teacher, untouched)
        for p in coarse(z.detach().double() / temperature, unions)
    ]
    known = 1e-3 + max(5e-7 / mass if mass else 0.0 for mass in outside)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=known)
    (gradient,), (wanted,) = torch.autograd.grad(loss, student), torch.autograd.grad(expected, copy)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-3, atol=known)
    full = reference.divergence(
        student.detach().double() / temperature, teacher.double() / temperature, "forward"
    )
    assert float(loss.detach()) <= float(full) * temperature**2 + known


def test_while_training_the_loss_and_its_gradient_follow_the_exact_ones() -> None:
    """States move through a head, a quarter of which is followed: what is outside moves with those tokens."""
    vocabulary, width = 400, 12
    # What all tokens have in common moves their logits together.
    head = normal(vocabulary, width, seed=1) / 4 + normal(1, width, seed=2) / 2
    teacher, start = normal(20, width, seed=3) @ head.T, normal(20, width, seed=4)
    untouched, candidates = start @ head.T, torch.arange(0, vocabulary, 4)
    for k, temperature in ((2, 1.0), (2, 2.0), (16, 1.0), (16, 2.0)):
        targets = reference.topk_targets(teacher, untouched, k)
        unions = reference.topk_union(teacher, untouched, k)
        ids, mask, t = targets.ids_NJ, targets.mask_NJ, {"temperature": temperature}
        before = followed_logit(untouched[:, candidates], candidates, ids, mask, **t)
        outside = outside_of(before, untouched.gather(1, ids), lse(untouched, temperature), mask, **t)
        states = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([states], lr=0.05)
        values, moved, frozen = [], [], []
        for _ in range(60):
            logits = states @ head.T
            loss = kl_with_rest(logits, teacher, untouched, targets, candidates, temperature)
            exact = coarse_kl(logits.double(), teacher.double(), unions, temperature)
            (own,) = torch.autograd.grad(loss, states, retain_graph=True)
            (wanted,) = torch.autograd.grad(exact, states, retain_graph=True)
            # The same with what is outside held where it was.
            followed = followed_logit(logits[:, candidates], candidates, ids, mask, **t)
            held = rest_logit(followed, followed.detach(), outside, **t)
            of_teacher = rest_of(
                targets.teacher_logp_NJ, lse(teacher, temperature) - lse(teacher, 1.0), mask, **t
            )
            slots = with_rest(logits.gather(1, ids), held, targets.teacher_logp_NJ, of_teacher[:, None], mask)
            (still,) = torch.autograd.grad(topk_kl_loss(*slots, **t), states)
            values.append((float(loss.detach()), float(exact.detach())))
            moved.append(float((own - wanted).norm() / wanted.norm()))
            frozen.append(float((still - wanted).norm() / wanted.norm()))
            states.grad = own
            optimizer.step()
        start_value = values[0][1]
        assert values[-1][1] < 0.15 * start_value
        assert max(abs(mine - exact) for mine, exact in values) < 0.05 * start_value
        assert sum(moved) < 0.8 * sum(frozen), (k, temperature)


@settings(max_examples=25)
@given(sizes, st.data())
def test_at_the_untouched_student_any_candidates_give_the_same_exact_loss(
    size: tuple[int, int, int, int], data: st.DataObject
) -> None:
    _, _, untouched, targets = drawn(size)
    count = data.draw(st.integers(1, size[1]))
    candidates = (
        torch.randperm(size[1], generator=torch.Generator().manual_seed(size[3]))[:count].sort().values
    )
    _, teacher, _, _ = drawn(size)
    loss = kl_with_rest(untouched, teacher, untouched, targets, candidates)
    expected = kl_with_rest(untouched, teacher, untouched, targets, torch.arange(size[1]))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_models_that_agree_have_no_loss_whatever_the_candidates() -> None:
    untouched = normal(4, 12)
    targets = reference.topk_targets(untouched, untouched, 2)
    loss = kl_with_rest(untouched, untouched, untouched, targets, torch.tensor([1, 5]))
    assert float(loss) == pytest.approx(0, abs=1e-6)


def test_mass_outside_both_top_k_sets_is_pushed_back() -> None:
    """What a KL on J alone cannot see: the student learns to say something that neither model said."""
    untouched, teacher = torch.zeros(1, 8), torch.zeros(1, 8)
    untouched[0, :2] = teacher[0, :2] = torch.tensor([8.0, 1.0])
    student = untouched.clone()
    student[0, 7] = 12.0
    student.requires_grad_()
    targets = reference.topk_targets(teacher, untouched, 2)
    assert 7 not in targets.ids_NJ
    alone = topk_kl_loss(student.gather(1, targets.ids_NJ), targets.teacher_logp_NJ, targets.mask_NJ)
    assert float(alone.detach()) == pytest.approx(0, abs=1e-6)
    loss = kl_with_rest(student, teacher, untouched, targets, torch.tensor([3, 7]))
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) > 1
    assert float(gradient[0, 7]) > 0.5


def test_fisher_is_the_second_order_expansion_of_the_kl() -> None:
    teacher = normal(6, 9).double()
    step = normal(6, 9, seed=1).double()
    errors = []
    for size in (1e-2, 1e-3):
        student = teacher + size * step
        targets = reference.topk_targets(
            teacher, teacher, 9
        )  # untouched student = teacher: w = p_T on all tokens
        fisher = fisher_loss(
            student.gather(1, targets.ids_NJ),
            targets.teacher_logp_NJ,
            targets.student_logp_NJ,
            targets.mask_NJ,
        )
        kl = reference.divergence(student, teacher, "forward")
        errors.append(float((fisher - kl).abs() / kl))
    # The relative error of a second-order expansion falls in proportion to the step.
    assert errors[0] < 0.05
    assert errors[1] < 0.2 * errors[0]


def test_adding_a_constant_to_the_logits_changes_nothing() -> None:
    student, _, _, targets = drawn((4, 10, 3, 7))
    logits = student.detach().gather(1, targets.ids_NJ)
    shift = torch.tensor([[3.0], [-5.0], [0.5], [10.0]])
    arguments = (targets.teacher_logp_NJ, targets.student_logp_NJ, targets.mask_NJ)
    torch.testing.assert_close(
        fisher_loss(logits + shift, *arguments), fisher_loss(logits, *arguments), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        topk_kl_loss(logits + shift, arguments[0], arguments[2]),
        topk_kl_loss(logits, arguments[0], arguments[2]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_student_equal_to_the_teacher_has_no_loss() -> None:
    _, teacher, _, targets = drawn((4, 10, 3, 8))
    logits = teacher.gather(1, targets.ids_NJ)
    assert float(topk_kl_loss(logits, targets.teacher_logp_NJ, targets.mask_NJ)) == pytest.approx(0, abs=1e-6)
    loss = fisher_loss(logits, targets.teacher_logp_NJ, targets.student_logp_NJ, targets.mask_NJ)
    assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), -float("inf")])
def test_masked_slots_are_never_read(filler: float) -> None:
    student, _, _, targets = drawn((4, 6, 3, 3))
    assert not targets.mask_NJ.all()
    hidden = ~targets.mask_NJ
    logits = student.gather(1, targets.ids_NJ)
    dirty = [
        x.masked_fill(hidden, filler) for x in (logits, targets.teacher_logp_NJ, targets.student_logp_NJ)
    ]
    for clean, spoilt in (
        (
            topk_kl_loss(logits, targets.teacher_logp_NJ, targets.mask_NJ),
            topk_kl_loss(*dirty[:2], targets.mask_NJ),
        ),
        (
            fisher_loss(logits, targets.teacher_logp_NJ, targets.student_logp_NJ, targets.mask_NJ),
            fisher_loss(*dirty, targets.mask_NJ),
        ),
    ):
        assert torch.equal(clean, spoilt)
        (one,) = torch.autograd.grad(clean, student, retain_graph=True)
        (two,) = torch.autograd.grad(spoilt, student, retain_graph=True)
        assert torch.equal(one, two)


def test_a_position_without_tokens_counts_as_zero() -> None:
    logits = normal(2, 4).requires_grad_()
    logp = normal(2, 4, seed=1).log_softmax(-1)
    mask = torch.tensor([[True] * 4, [False] * 4])
    for both, one in (
        (topk_kl_loss(logits, logp, mask), topk_kl_loss(logits[:1], logp[:1], mask[:1])),
        (fisher_loss(logits, logp, logp, mask), fisher_loss(logits[:1], logp[:1], logp[:1], mask[:1])),
    ):
        torch.testing.assert_close(both, one / 2)
        gradient = torch.autograd.grad(both, logits)[0]
        assert gradient[1].abs().max() == 0
        assert gradient[0].abs().max() > 0


def test_bfloat16_caches_are_upcast() -> None:
    _, _, _, targets = drawn((4, 10, 3, 9))
    hidden, weight = normal(4, 5, seed=4).bfloat16().requires_grad_(), normal(10, 5, seed=5).bfloat16()
    logits = gathered_logits(hidden, weight, targets.ids_NJ)
    teacher, student = targets.teacher_logp_NJ.bfloat16(), targets.student_logp_NJ.bfloat16()
    for loss, same in (
        (
            topk_kl_loss(logits, teacher, targets.mask_NJ),
            topk_kl_loss(logits, teacher.float(), targets.mask_NJ),
        ),
        (
            fisher_loss(logits, teacher, student, targets.mask_NJ),
            fisher_loss(logits, teacher.float(), student.float(), targets.mask_NJ),
        ),
    ):
        assert loss.dtype == torch.float32
        assert torch.equal(loss, same)
        loss.backward(retain_graph=True)
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_mistakes_are_refused() -> None:
    logits = torch.ones(2, 4)
    with pytest.raises(ModelError, match="share one shape"):
        topk_kl_loss(logits, torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ModelError, match="float32 mask"):
        fisher_loss(logits, logits, logits, torch.ones(2, 4))
    with pytest.raises(ModelError, match="at least one"):
        topk_kl_loss(torch.ones(0, 4), torch.ones(0, 4), torch.ones(0, 4, dtype=torch.bool))
    with pytest.raises(ModelError, match="temperature"):
        topk_kl_loss(logits, logits, torch.ones(2, 4, dtype=torch.bool), temperature=0.0)
    ids = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ModelError, match="2 and 1"):
        union_topk(ids, torch.zeros(2, 1), ids[:1], torch.zeros(1, 1))


def literal(kind: str, p: torch.Tensor, q: torch.Tensor, beta: float) -> torch.Tensor:
    """Of two distributions, as the papers write it."""

    def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * (a / b).log()).sum(1).mean()

    mixed = beta * p + (1 - beta) * q
    if kind == "reverse":
        return kl(q, p)
    if kind == "jsd":
        return beta * kl(p, mixed) + (1 - beta) * kl(q, mixed)
    if kind == "skewed":
        return kl(p, mixed)
    target = (p * q.detach() ** beta) / (p * q.detach() ** beta).sum(1, keepdim=True)
    return kl(target, q)


@pytest.mark.parametrize("kind", ["reverse", "jsd", "skewed", "bridge"])
@pytest.mark.parametrize(("beta", "temperature"), [(0.1, 1.0), (0.5, 2.0), (0.9, 0.5)])
def test_divergences_are_those_of_the_whole_vocabulary_where_every_token_has_a_slot(
    kind: Divergence, beta: float, temperature: float
) -> None:
    student = normal(5, 12, seed=1).double().requires_grad_()
    teacher = normal(5, 12, seed=2).double()
    p, q = ((z / temperature).softmax(1) for z in (teacher, student))
    expected = literal(kind, p, q, beta) * temperature**2
    # Slots in any order, and masked ones with anything in them.
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    slots, known = (torch.cat([z[:, order], torch.full((5, 3), 7.0)], 1) for z in (student, teacher))
    mask = torch.cat([torch.ones(5, 12), torch.zeros(5, 3)], 1).bool()
    found = topk_divergence(slots, known.log_softmax(1), mask, kind, beta=beta, temperature=temperature)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, student)[0], torch.autograd.grad(expected, student)[0]
    )


def test_divergences_meet_the_kl_at_their_ends() -> None:
    student, teacher = normal(4, 9, seed=4), normal(4, 9, seed=5).log_softmax(1)
    mask = torch.ones(4, 9, dtype=torch.bool)
    kl = topk_kl_loss(student, teacher, mask)
    torch.testing.assert_close(topk_divergence(student, teacher, mask, "bridge", beta=0.0), kl)
    torch.testing.assert_close(topk_divergence(student, teacher, mask, "skewed", beta=0.0), kl)
    assert float(topk_divergence(student, teacher, mask, "skewed", beta=1.0)) == 0
    for kind in ("reverse", "jsd", "skewed"):
        assert float(topk_divergence(teacher, teacher, mask, kind)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ModelError, match=r"beta must lie in \[0, 1\], and inside it for jsd, got 1.0"):
        topk_divergence(student, teacher, mask, "jsd", beta=1.0)
    with pytest.raises(ModelError, match="The temperature must be positive"):
        topk_divergence(student, teacher, mask, "reverse", temperature=0.0)


def told(student: torch.Tensor, teacher: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """KL on the teacher's k likeliest tokens and the rest, with a masked slot that repeats one, and the same exactly."""
    logp, ids = teacher.double().log_softmax(1).float().topk(k)
    mask = torch.ones(len(ids), k + 1, dtype=torch.bool)
    mask[:, -1] = False
    slots = torch.cat([ids, ids[:, :1]], 1), torch.cat([logp, logp[:, :1]], 1), mask
    parts = [coarse(z.double(), [set(row) for row in ids.tolist()]) for z in (teacher, student)]
    exact = torch.stack([reference.kl(p, q) for p, q in zip(*parts, strict=True)])
    return told_closeness(student, *slots, ids[:, 0])["kl"], exact


def test_told_closeness_is_at_most_the_full_one_of_a_student_that_is_sure() -> None:
    student, teacher = torch.zeros(1, 1000), torch.full((1, 1000), 0.005 / 999).log()
    student[0, 0], teacher[0, 0] = 28.0, math.log(0.995)
    found, exact = told(student, teacher, 3)
    full = reference.divergence(student.double(), teacher.double(), "forward")
    assert float(full) == pytest.approx(0.0736, abs=1e-3)
    assert float(found) == pytest.approx(float(exact), abs=1e-6) and float(found) <= float(full) + 1e-6


@settings(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([1.0, 5.0, 20.0]), st.integers(1, 8))
def test_told_closeness_is_exact_for_peaked_logits(seed: int, peak: float, k: int) -> None:
    teacher = peak * normal(4, 50, seed=seed)
    student = 2 * teacher + normal(4, 50, seed=seed + 1)
    found, exact = told(student, teacher, k)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=2e-6)
