"""Numbers and sentences."""

import math

import pytest

from semalign.report import words


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.000"), (0.0795, "0.080"), (-1.5, "−1.500"), (123.456, "123.5"), (4e-5, "4.0e−05"), (None, "–")],
)
def test_numbers_keep_their_size(value: float | None, shown: str) -> None:
    assert words.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.02, "0.02 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (245, "4 min 05 s"),
        (7799, "2 h 09 min"),
        (None, "–"),
    ],
)
def test_durations(value: float | None, shown: str) -> None:
    assert words.seconds(value).replace(words.NBSP, " ") == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0 bytes"), (12_400_000, "12.4 MB"), (1.84e9, "1.84 GB"), (2e12, "2,000 GB")]
)
def test_sizes(value: float, shown: str) -> None:
    assert words.size(value).replace(words.NBSP, " ") == shown


def test_what_is_not_a_finite_number_is_unknown() -> None:
    assert [words.finite(v) for v in (1, 0.5, None, True, "3", math.nan, math.inf)] == [
        1.0,
        0.5,
        None,
        None,
        None,
        None,
        None,
    ]


def test_runs_of_layers_are_joined() -> None:
    assert words.layers([3, 4]) == "3 and 4"
    assert words.layers([9, 3, 4, 5]) == "3–5 and 9"
    assert words.layers([]) == "none"


def test_share_closed_is_linear_between_student_and_teacher_and_undefined_without_a_gap() -> None:
    assert words.share_closed(0.4, 0.5, 0.8) == pytest.approx(0.25)
    assert words.share_closed(0.4, 0.9, 0.8) == pytest.approx(1.25)
    assert words.share_closed(0.8, 0.9, 0.8) is None
    assert words.share_closed(None, 0.9, 0.8) is None


@pytest.mark.parametrize(
    ("share", "baselines", "sentence"),
    [
        (
            0.61,
            {"cosine": -0.06, "cross_entropy": 0.44},
            "Aligned training closed 61% of the accuracy gap between student and teacher, "
            "more than any baseline (best: cross-entropy, 44%).",
        ),
        (
            0.61,
            {"cosine": 0.2, "cross_entropy": 0.7},
            "Aligned training closed 61% of the accuracy gap between student and teacher; "
            "the cross-entropy baseline did better and closed 70%.",
        ),
        (
            0.612,
            {"kl": 0.614},
            "Aligned training closed 61% of the accuracy gap between student and teacher; "
            "the full KL baseline came out level, at 61%.",
        ),
        (
            -0.12,
            {"cosine": -0.3},
            "Aligned training widened the accuracy gap between student and teacher by 12%; "
            "the best baseline, cosine, widened it by 30%.",
        ),
        (
            1.1,
            {},
            "Aligned training closed 110% of the accuracy gap between student and teacher "
            "(the student passed its teacher); no baseline was measured beside it.",
        ),
        (None, {}, "The run was evaluated, but no gap between student and teacher was measured."),
    ],
)
def test_headline_says_who_won(share: float | None, baselines: dict[str, float], sentence: str) -> None:
    assert words.headline("aligned", "accuracy gap", share, baselines).sentence == sentence


def test_times_are_shown_to_the_minute_and_other_text_as_it_is() -> None:
    assert words.moment("2026-11-24T14:45:18+0000") == "2026-11-24 14:45 UTC"
    assert words.moment("2026-11-24T14:45:18+02:00") == "2026-11-24 14:45 +0200"
    assert words.moment("2026-05-11 09:30") == "2026-05-11 09:30"
    assert words.moment("yesterday <b>") == "yesterday <b>"


def test_names_keep_their_capitals() -> None:
    assert words.capital("MMLU") == "MMLU" and words.capital("") == ""
    assert words.recipe_name("kl") == "Full KL" and words.in_sentence("kl") == "full KL"
    assert words.recipe_name("my_own") == "My own"


def test_changes_are_called_by_their_direction() -> None:
    assert words.moved(0.284, 0.08) == "fell from 0.284 to 0.080"
    assert words.moved(0.1, 0.5, shown=words.number_2) == "rose from 0.10 to 0.50"
    assert words.moved(0.1, 0.1) == "stayed at 0.100"
    assert words.moved(None, 0.5) == "is 0.500"
    assert words.moved(None, None) == "was not measured"
