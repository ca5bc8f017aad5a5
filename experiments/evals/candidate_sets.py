"""Which of some candidates are right, by Bayes' rule from the probabilities of items alone.

A question offers the right items among others that are drawn evenly from the catalogue of I items. With p(i) the
probability that item i comes next, a set S of candidates is right in proportion to

    prior(|S|) / (number of sets of this size) * product over i in S of  I p(i)

where I p(i) is how much more likely i is to come next than to be drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np


def most_probable_sets(log_p: np.ndarray, num_items: int, prior: Mapping[int, float]) -> list[tuple[int, ...]]:
    """The most probable set of right candidates of each question, as places among its candidates.

    Args:
      log_p: [P, c], of each candidate, the logarithm of the probability that it comes next.
      num_items: of the catalogue.
      prior: how often a question has so many right candidates.
    """
    candidates = log_p.shape[1]
    sets = [places for size in prior for places in itertools.combinations(range(candidates), size)]
    gains = log_p.astype(np.float64) + math.log(num_items)
    scores = [
        gains[:, list(places)].sum(axis=1) + math.log(prior[len(places)] / math.comb(candidates, len(places)))
        for places in sets
    ]
    return [sets[number] for number in np.argmax(np.stack(scores, axis=1), axis=1).tolist()]
