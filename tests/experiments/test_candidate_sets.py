"""Selection by Bayes' rule, against the enumeration of all that can have happened."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from experiments.evals.base import refuse_nan
from experiments.evals.selection import most_probable_sets


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
def test_the_chosen_set_is_the_most_probable_of_all(prior: dict[int, float]) -> None:
    rng = np.random.default_rng(0)
    p_PI = rng.dirichlet(np.full(12, 0.3), size=200)
    candidates_P3 = np.stack([rng.permutation(12)[:3] for _ in p_PI])
    chosen = most_probable_sets(np.log(np.take_along_axis(p_PI, candidates_P3, axis=1)), 12, prior)
    for p_I, candidates, places in zip(p_PI, candidates_P3, chosen, strict=True):
        found = enumerated(p_I, tuple(candidates.tolist()), prior)
        assert found[places] == pytest.approx(max(found.values()))


def test_an_even_chance_decides_by_the_prior() -> None:
    even = np.full((1, 3), -np.log(50.0))
    assert most_probable_sets(even, 50, {1: 0.6, 2: 0.4}) == [(0,)]
    assert most_probable_sets(even, 50, {1: 0.4, 2: 0.6}) == [(0, 1)]


def test_no_answer_is_drawn_from_scores_that_are_not_numbers() -> None:
    scores = np.array([[0.5, np.nan], [0.5, -np.inf]])
    with pytest.raises(ValueError, match="NaN for 1 of 2 prompts"):
        refuse_nan(scores)
    assert refuse_nan(scores[1:]) is not None
