import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semalign.errors import ModelError
from semalign.maths.regression import PENALTIES, RidgeFit, best_penalty, ridge_scores


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fitted(teacher: torch.Tensor, student: torch.Tensor, *, center: bool = True, batch: int = 5) -> RidgeFit:
    fit = RidgeFit(teacher.shape[1], student.shape[1], center=center)
    for start in range(0, len(teacher), batch):
        fit.add(teacher[start : start + batch], student[start : start + batch])
    return fit


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_noiseless_linear_data_is_recovered(width: int, student_width: int, seed: int) -> None:
    teacher = normal(8 * width + 4, width, seed=seed) + 3
    map_ED, bias_E = normal(student_width, width, seed=seed + 1), normal(student_width, seed=seed + 2)
    found, bias = fitted(teacher, teacher @ map_ED.T + bias_E).solve(penalty=0)
    assert (found.dtype, bias.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(found, map_ED.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias, bias_E.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("center", [True, False])
def test_ridge_equals_the_normal_equations(center: bool) -> None:
    teacher, student = normal(30, 4) + 1, normal(30, 3, seed=1) - 2
    x, y = (teacher - teacher.mean(0), student - student.mean(0)) if center else (teacher, student)
    penalty = 0.3 * (x.T @ x).diagonal().mean()
    expected = torch.linalg.solve(x.T @ x + penalty * torch.eye(4), x.T @ y).T
    offset = student.mean(0) - expected @ teacher.mean(0) if center else torch.zeros(3)
    map_ED, bias_E = fitted(teacher, student, center=center).solve(penalty=0.3)
    torch.testing.assert_close(map_ED, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias_E, offset.float(), rtol=1e-5, atol=1e-6)


def test_the_penalty_is_relative_so_a_change_of_units_changes_nothing() -> None:
    teacher, student = normal(30, 4), normal(30, 3, seed=1)
    small, _ = fitted(teacher, student).solve(penalty=0.1)
    large, _ = fitted(teacher * 1000, student).solve(penalty=0.1)
    torch.testing.assert_close(large * 1000, small, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("penalty", [0.0, 1e-8])
def test_fewer_rows_than_channels_fits_the_rows(penalty: float) -> None:
    teacher, student = normal(4, 10), normal(4, 3, seed=1)
    map_ED, bias_E = fitted(teacher, student).solve(penalty=penalty)
    torch.testing.assert_close(teacher.float() @ map_ED.T + bias_E, student.float(), rtol=1e-4, atol=1e-4)


def test_least_squares_without_penalty_has_the_smallest_norm() -> None:
    teacher, student = normal(4, 10), normal(4, 3, seed=1)
    map_ED, _ = fitted(teacher, student, center=False).solve(penalty=0)
    expected = (torch.linalg.pinv(teacher) @ student).T
    torch.testing.assert_close(map_ED, expected.float(), rtol=1e-5, atol=1e-6)


def test_batches_and_half_precision_do_not_matter() -> None:
    teacher, student = normal(40, 4).bfloat16(), normal(40, 3, seed=1).bfloat16()
    one, many = fitted(teacher, student, batch=40), fitted(teacher.double(), student.double(), batch=7)
    assert one.rows == many.rows == 40
    for left, right in zip(one.solve(), many.solve(), strict=True):
        torch.testing.assert_close(left, right)


def test_procrustes_recovers_a_scaled_rotation() -> None:
    rotation = torch.linalg.qr(normal(5, 5, seed=3))[0]
    teacher = normal(50, 5) * torch.tensor([1, 2, 3, 4, 5.0]) + 1
    map_ED, bias_E = fitted(teacher, 0.7 * teacher @ rotation.T + 2).solve_procrustes()
    torch.testing.assert_close(map_ED, (0.7 * rotation).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias_E, torch.full((5,), 2.0), rtol=1e-5, atol=1e-5)


def test_procrustes_rows_are_orthogonal_and_its_scale_is_least_squares() -> None:
    teacher, student = normal(50, 6), normal(50, 3, seed=1)
    map_ED, _ = fitted(teacher, student, center=False).solve_procrustes()
    gram = (map_ED @ map_ED.T).double()
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(3).double(), rtol=1e-5, atol=1e-6)

    def error(factor: float) -> float:
        return float((student - factor * teacher @ map_ED.double().T).square().sum())

    assert error(1.0) < min(error(0.99), error(1.01))
    assert fitted(torch.zeros(9, 4), torch.zeros(9, 3)).solve_procrustes()[0].abs().max() == 0


def test_constant_activations_give_a_constant_map() -> None:
    map_ED, bias_E = fitted(torch.ones(9, 4), torch.full((9, 3), 2.0)).solve()
    assert map_ED.abs().max() == 0
    torch.testing.assert_close(bias_E, torch.full((3,), 2.0))


def test_mistakes_are_refused() -> None:
    fit = RidgeFit(4, 5)
    with pytest.raises(ModelError, match="at least one row"):
        fit.solve()
    with pytest.raises(ModelError, match="4 columns"):
        fit.add(torch.ones(2, 3), torch.ones(2, 5))
    with pytest.raises(ModelError, match="2 and 3"):
        fit.add(torch.ones(2, 4), torch.ones(3, 5))
    with pytest.raises(ModelError, match="Student activations must be finite"):
        fit.add(torch.ones(2, 4), torch.full((2, 5), float("nan")))
    assert fit.rows == 0
    fit.add(torch.ones(2, 4), torch.ones(2, 5))
    with pytest.raises(ModelError, match="negative"):
        fit.solve(penalty=-1)
    with pytest.raises(ModelError, match="widths 4 and 5"):
        fit.solve_procrustes()


def test_a_weight_counts_a_row_that_many_times() -> None:
    teacher, student = normal(20, 4), normal(20, 3, seed=1)
    counts = torch.arange(20) % 3
    weighted, repeated = RidgeFit(4, 3), RidgeFit(4, 3)
    weighted.add(teacher, student, counts.double())
    repeated.add(teacher.repeat_interleave(counts, 0), student.repeat_interleave(counts, 0))
    for ours, expected in zip(weighted.solve(penalty=0.1), repeated.solve(penalty=0.1), strict=True):
        torch.testing.assert_close(ours, expected)


def test_ridge_scores_tell_a_linear_image_from_noise() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(300, 6, generator=generator)
    image = x @ torch.randn(6, 4, generator=generator) + 2
    noise = torch.randn(300, 5, generator=generator)
    scores = ridge_scores(x, [image, noise], penalty=1e-6)
    assert scores[0] == pytest.approx(1.0, abs=1e-4) and abs(scores[1]) < 0.15
    # Each is fitted by itself: the same figures alone.
    assert scores == pytest.approx([ridge_scores(x, [y], penalty=1e-6)[0] for y in (image, noise)])
    with pytest.raises(ModelError, match="two thirds"):
        ridge_scores(x[:2], [image[:2]])


def test_a_map_s_unexplained_share_comes_from_the_sums_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=draw) + 2, torch.randn(40, 3, generator=draw) - 1
    matrix, bias = torch.randn(3, 5, generator=draw), torch.randn(3, generator=draw)
    fit = RidgeFit(5, 3)
    fit.add(x, y)
    expected = (y - x @ matrix.T - bias).square().sum() / (y - y.mean(0)).square().sum()
    assert fit.unexplained(matrix, bias) == pytest.approx(float(expected), rel=1e-5)
    assert fit.unexplained(torch.zeros(3, 5), y.mean(0)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(("noise", "rows"), [(0.01, 400), (3.0, 60)])
def test_the_penalty_is_the_one_that_tells_other_rows_best(noise: float, rows: int) -> None:
    """Little noise and many rows want a small penalty, much noise and few rows a large one."""
    draw = torch.Generator().manual_seed(1)
    matrix, x = torch.randn(4, 24, generator=draw), torch.randn(3 * rows, 24, generator=draw)
    y = x @ matrix.T / 5 + noise * torch.randn(3 * rows, 4, generator=draw)
    halves = [RidgeFit(24, 4) for _ in range(2)]
    for n, fit in enumerate(halves):
        fit.add(x[n * rows // 2 : (n + 1) * rows // 2], y[n * rows // 2 : (n + 1) * rows // 2])
    chosen = best_penalty(*halves)
    assert (chosen <= 1e-2) == (noise < 1)
    whole = RidgeFit(24, 4)
    whole.add(x[:rows], y[:rows])
    halves[0].absorb(halves[1])
    for one, two in zip(whole.solve(penalty=chosen), halves[0].solve(penalty=chosen), strict=True):
        torch.testing.assert_close(one, two)
    # On rows that neither half had.
    missed = {}
    for p in PENALTIES:
        m, b = whole.solve(penalty=p)
        missed[p] = float((y[rows:] - x[rows:] @ m.T - b).square().sum())
    assert missed[chosen] <= 1.1 * min(missed.values())
    assert best_penalty(RidgeFit(24, 4), whole) == 1e-2
