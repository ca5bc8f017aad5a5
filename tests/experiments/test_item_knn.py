"""Item-kNN against its formula written out, and calibrated scores against the likelihood that chose them."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from data_pipelines.corpus import TRAIN, VALIDATION
from experiments.baselines import ranker
from experiments.baselines.calibration import EVEN, TEMPERATURES, Calibration, calibrate
from experiments.baselines.item_knn import ItemKNN, ItemKNNConfig, choose_item_knn
from experiments.baselines.markov import Markov
from experiments.baselines.ranker import Popularity
from tests.data_pipelines.small import small_corpus

CORPUS = dataclasses.replace(small_corpus(), times=small_corpus().times * 8 * 60 * 60)
"""Three interactions a day."""


def plain_scores(config: ItemKNNConfig, user: int, position: int) -> np.ndarray:
    """The formula of the module, by loops."""
    by_user, by_day = collections.defaultdict(set), collections.defaultdict(set)
    days = CORPUS.times // 86400
    for one, (a, b) in enumerate(itertools.pairwise(CORPUS.offsets)):
        for event in range(a, b):
            if CORPUS.splits[event] == TRAIN:
                by_user[one].add(int(CORPUS.items[event]))
                by_day[one, days[event]].add(int(CORPUS.items[event]))
    scores = np.zeros(CORPUS.num_items)
    events = range(CORPUS.offsets[user], CORPUS.offsets[user] + position)
    for groups, weight in ((by_user, 1.0), (by_day, config.same_day)):
        met = list(groups.values())
        count = np.array([sum(item in one for one in met) for item in range(CORPUS.num_items)]) + config.damping
        for back, event in enumerate(reversed(events)):
            one = int(CORPUS.items[event])
            kept = weight * config.decay**back * (config.earlier_days if days[event] < days[events[-1]] else 1)
            for item in set(range(CORPUS.num_items)) - {one}:
                both = sum(one in items and item in items for items in met)
                scores[item] += kept * both / count[one] ** config.of_history / count[item] ** config.of_items
    return scores


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("of_days", [{}, {"same_day": 0.7, "earlier_days": 0.3}])
def test_scores_are_those_of_the_formula_with_popularity_below(
    of_days: dict[str, float], dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not dense:
        monkeypatch.setattr("experiments.baselines.item_knn.SCORES", 1)
    config = ItemKNNConfig(decay=0.7, of_history=0.5, of_items=0.3, **of_days)
    users, positions = CORPUS.held_out(VALIDATION)
    scores = ItemKNN(CORPUS, config).scores(users, positions)
    popularity = Popularity(CORPUS).scores(users, positions)
    for user, position, found, popular in zip(users, positions, scores, popularity, strict=True):
        expected = plain_scores(config, user, position)
        # Popularity adds at most a thousandth of the smallest cosine, of which a history's weights leave a part.
        np.testing.assert_allclose(found[expected > 0], expected[expected > 0], rtol=1e-2)
        alone = expected == 0
        assert found[alone].max(initial=0) < found[~alone].min(initial=np.inf)
        assert (np.argsort(found[alone], kind="stable") == np.argsort(popular[alone], kind="stable")).all()


def test_the_best_of_the_grid_is_chosen_and_held_out_items_are_not_counted() -> None:
    ranker = choose_item_knn(CORPUS)
    users, positions = CORPUS.held_out(VALIDATION)
    again = ItemKNN(CORPUS, ranker.config).scores(users, positions)
    np.testing.assert_array_equal(ranker.scores(users, positions), again)


def test_calibrated_scores_are_probabilities_and_the_likeliest_of_the_grid() -> None:
    ranker = Markov(CORPUS)
    chosen = calibrate(ranker, CORPUS)
    users, positions = CORPUS.held_out(VALIDATION)
    scores, targets = ranker.scores(users, positions), CORPUS.targets(users, positions)
    np.testing.assert_allclose(np.exp(chosen.log_probabilities(scores)).sum(axis=1), 1, rtol=1e-9)

    def likelihood(calibration: Calibration) -> float:
        return float(np.take_along_axis(calibration.log_probabilities(scores), targets[:, None], axis=1).mean())

    grid = [Calibration(t, e, chosen.logits) for t, e in itertools.product(TEMPERATURES, EVEN)]
    assert not chosen.logits
    assert likelihood(chosen) == max(map(likelihood, grid))


def test_of_many_validation_users_some_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Noted(ItemKNN):
        def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
            asked.extend(users.tolist())
            return super().scores(users, positions)

    users, _ = CORPUS.held_out(VALIDATION)
    monkeypatch.setattr(ranker, "VALIDATED", len(users) // 3)
    ranker.validation_ndcg(Noted(CORPUS), CORPUS)
    assert set(asked) == set(users[:: -(-len(users) // (len(users) // 3))].tolist())
