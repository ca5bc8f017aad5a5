"""Which users validation asks."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.tasks import Query
from data_pipelines.tasks.queries import held_out_queries
from experiments.config import TrainingConfig
from experiments.evals.queries import evenly_spaced
from tests.data_pipelines.small import small_corpus


@given(st.integers(0, 500), st.integers(1, 200))
def test_they_are_spread_evenly_over_all(users, count):
    queries = [Query("recommendation", user, 3, (0,)) for user in range(users)]
    asked = np.array([query.user for query in evenly_spaced(queries, count)], int)
    assert len(asked) == min(users, count)
    gaps = np.diff([*asked, users])
    assert not len(asked) or (asked[0] == 0 and gaps.min() >= 1 and np.ptp(gaps) <= 1)


def test_somebody_must_be_asked():
    with pytest.raises(ValueError, match="validation_users 0 must be above 0"):
        dataclasses.replace(TrainingConfig(), validation_users=0)


@pytest.mark.parametrize("most", [1, 7, 20, 10_000])
def test_only_those_who_are_asked_get_a_question(most):
    corpus = small_corpus()
    everybody = held_out_queries(corpus, "validation", "recommendation")
    assert held_out_queries(corpus, "validation", "recommendation", most=most) == evenly_spaced(everybody, most)
