"""Item-kNN against its formula written out, and calibrated scores against the likelihood that chose them."""

from __future__ import annotations

import itertools

import numpy as np

from data_pipelines.corpus import TRAIN, VALIDATION
from experiments.baselines.calibration import EVEN, TEMPERATURES, Calibration, calibrate
from experiments.baselines.item_knn import ItemKNN, ItemKNNConfig, choose_item_knn
from experiments.baselines.markov import Markov
from experiments.baselines.ranker import Popularity
from tests.data_pipelines.small import small_corpus

CORPUS = small_corpus()


def plain_scores(config: ItemKNNConfig, history: list[int]) -> np.ndarray:
    """The formula of the module, by loops."""
    met = [
        {int(item) for item, split in zip(CORPUS.items[a:b], CORPUS.splits[a:b], strict=True) if split == TRAIN}
        for a, b in itertools.pairwise(CORPUS.offsets)
    ]
    users = np.array([sum(item in one for one in met) for item in range(CORPUS.num_items)]) + config.damping
    scores = np.zeros(CORPUS.num_items)
    for back, one in enumerate(reversed(history)):
        for item in range(CORPUS.num_items):
            both = sum(one in items and item in items for items in met) if item != one else 0
            scores[item] += config.decay**back * both / users[one] ** config.of_history / users[item] ** config.of_items
    return scores


def test_scores_are_those_of_the_formula_with_popularity_below() -> None:
    config = ItemKNNConfig(decay=0.7, of_history=0.5, of_items=0.3)
    users, positions = CORPUS.held_out(VALIDATION)
    scores = ItemKNN(CORPUS, config).scores(users, positions)
    popularity = Popularity(CORPUS).scores(users, positions)
    for user, position, found, popular in zip(users, positions, scores, popularity, strict=True):
        expected = plain_scores(config, CORPUS.history(user, position).tolist())
        np.testing.assert_allclose(found[expected > 0], expected[expected > 0], rtol=2e-3)
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
