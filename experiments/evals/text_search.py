"""The table of search by free words, for which held-out users are asked with a word from the title of their item.

BM25 stands for the logarithm of the odds that a text is what was meant, and the probability of what comes next is known
before the words are. So all recommenders, ours and the baselines, rank items by the sum of its logarithm and BM25.
"""

from collections.abc import Callable

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks import Query
from experiments.baselines.bm25 import BM25, word_counter
from experiments.baselines.calibration import Calibration
from experiments.baselines.ranker import Ranker, rank_in_batches
from experiments.evals.base import Outcome, Setting, moments, question_columns
from experiments.evals.ranking import rank_metrics
from experiments.evals.recommender import calibration_of


class WithText:
    """A recommender that reads the words of a query."""

    def __init__(self, base: Ranker, calibration: Calibration, bm25: BM25):
        self.base, self.calibration, self.bm25 = base, calibration, bm25
        self.name = f"{base.name} + {bm25.name}"

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        log_p_MI = self.calibration.log_probabilities(self.base.scores(users, positions))
        return (log_p_MI + self.bm25.scores(users, positions)).astype(np.float32)


def text_search_table(setting: Setting) -> dict[str, Outcome]:
    """Returns the table `text-search`; none if no held-out item has a title."""
    corpus, everybody = setting.data.corpus, setting.questions.queries
    words_of = word_counter().build_analyzer()
    words = {(query.user, query.position): drawn_word(corpus, query, words_of) for query in everybody}
    queries = [query for query in everybody if words[query.user, query.position]]
    if not queries:
        return {}
    bm25 = BM25(corpus, lambda *moment: words[moment])
    rankers: list[Ranker] = [
        *(WithText(ranker, calibration_of(ranker, corpus), bm25) for ranker in setting.rankers),
        bm25,
    ]
    targets = np.array([query.right[0] for query in queries], np.int32)
    ranks = {ranker.name: rank_in_batches(ranker, corpus, *moments(queries), targets) for ranker in rankers}
    answers = question_columns(corpus, queries) | {"query": [words[query.user, query.position] for query in queries]}
    for name, (unfiltered, filtered) in ranks.items():
        answers |= {f"{name}: rank, unfiltered": unfiltered, f"{name}: rank, filtered": filtered}
    note = (
        "What comes next, given a word of its title as a query? By the logarithm of the next-item probability and BM25 "
        "of title, attributes and categories, or by BM25 alone. Seen items are filtered, except in the last columns."
        f"{setting.questions.note}"
    )
    return {"text-search": Outcome(note, {name: rank_metrics(*both) for name, both in ranks.items()}, answers)}


def drawn_word(corpus: Corpus, query: Query, words_of: Callable[[str], list[str]]) -> str:
    """Returns a word of the title of a held-out item, drawn by its user and position; "" if the title has no word, or
    is the item's id."""
    item = query.right[0]
    title = corpus.titles[item]
    words = [] if title == corpus.item_ids[item] else [word for word in words_of(title) if not word.isdigit()]
    return str(np.random.default_rng([query.user, query.position]).choice(sorted(set(words)))) if words else ""
