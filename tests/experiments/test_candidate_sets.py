"""Selection by Bayes' rule, against the enumeration of all that can have happened."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from data_pipelines.tasks.selection import PRIOR
from experiments.evals.base import refuse_nan
from experiments.evals.selection import best_sets, probable_sets
from unimp_jax.evaluation.metrics import selection_counts


def enumerated(p_I: np.ndarray, candidates: tuple[int, ...], prior: dict[int, float]) -> dict[tuple[int, ...], float]:
    """The probability that each set of places is right, given the candidates, by summing over what may have been drawn.

    A size is drawn by the prior; so many items by p, one by one; the rest evenly from the catalogue; then all are put
    in a random order. Joint probabilities of these candidates in this order, normalised.
    """
    count, joint = len(candidates), {}
    for size, weight in prior.items():
        for right in itertools.combinations(range(count), size):
            drawn = np.prod([p_I[candidates[place]] for place in right])
            others = (1 / len(p_I)) ** (count - size)
            orders = len(list(itertools.combinations(range(count), size)))  # the places that the right ones may have
            joint[right] = weight / orders * drawn * others
    total = sum(joint.values())
    return {right: value / total for right, value in joint.items()}


@pytest.mark.parametrize("prior", [{1: 0.5, 2: 0.5}, {1: 0.9, 2: 0.1}, {1: 0.2, 2: 0.5, 3: 0.3}])
def test_sets_have_their_probabilities_and_the_one_with_the_best_f1_is_chosen(prior: dict[int, float]) -> None:
    """Chosen is what maximises twice the expected hits less 0.8 of the items that are named and of those expected to be
    right, whose sum is 0 where the F1 of many questions is 0.8 (Dinkelbach 1967)."""
    rng = np.random.default_rng(0)
    p_PI = rng.dirichlet(np.full(12, 0.3), size=200)
    candidates_P3 = np.stack([rng.permutation(12)[:3] for _ in p_PI])
    log_p = np.log(np.take_along_axis(p_PI, candidates_P3, axis=1))
    sets, found_PS = probable_sets(log_p, 12, prior)
    differs = 0
    for p_I, candidates, places, row in zip(p_PI, candidates_P3, best_sets(log_p, 12, prior), found_PS, strict=True):
        right = enumerated(p_I, tuple(candidates.tolist()), prior)
        assert dict(zip(sets, row.tolist(), strict=True)) == pytest.approx(right)

        def gain(chosen: tuple[int, ...], right: dict[tuple[int, ...], float] = right) -> float:
            return sum(p * (2 * len({*one} & {*chosen}) - 0.8 * (len(chosen) + len(one))) for one, p in right.items())

        assert gain(places) == pytest.approx(max(map(gain, right)), abs=1e-12)
        differs += right[places] < max(right.values()) - 1e-6
    assert differs  # from the most probable set


def test_an_even_chance_decides_by_the_prior() -> None:
    """Each of three is right with a third of 1.4 or 1.1: two are named above 0.4, else one."""
    even = np.full((1, 3), -np.log(50.0))
    assert best_sets(even, 50, {1: 0.9, 2: 0.1}) == [(0,)]
    assert best_sets(even, 50, {1: 0.6, 2: 0.4}) == [(0, 1)]


def test_naming_more_than_the_most_probable_set_has_a_higher_f1() -> None:
    """Questions are drawn as assumed; 20,000 of them have a standard error of 0.002."""
    rng = np.random.default_rng(1)
    p_I = rng.dirichlet(np.full(12, 0.3))
    size = rng.integers(1, 3, 20_000)
    right, offered = [], []
    for number in size.tolist():
        items = rng.choice(12, number, replace=False, p=p_I)
        others = rng.choice(np.setdiff1d(np.arange(12), items), 3 - number, replace=False)
        right.append(set(items.tolist()))
        offered.append(rng.permutation([*items, *others]))
    candidates = np.array(offered)
    sets, p_PS = probable_sets(np.log(p_I[candidates]), 12, PRIOR)

    def f1(chosen: list[tuple[int, ...]]) -> float:
        counts = selection_counts([candidates[row, list(places)].tolist() for row, places in enumerate(chosen)], right)
        return float(2 * counts["hits"].sum() / (counts["chosen"].sum() + counts["right"].sum()))

    most_probable = [sets[number] for number in p_PS.argmax(axis=1).tolist()]
    assert f1(best_sets(np.log(p_I[candidates]), 12, PRIOR)) > f1(most_probable)


def test_no_answer_is_drawn_from_scores_that_are_not_numbers() -> None:
    scores = np.array([[0.5, np.nan], [0.5, -np.inf]])
    with pytest.raises(ValueError, match="NaN for 1 of 2 prompts"):
        refuse_nan(scores)
    with pytest.raises(ValueError, match="NaN for 1 of 2 prompts"):
        best_sets(scores, 12, PRIOR)
    assert refuse_nan(scores[1:]) is not None
