"""The table of search by free words, for which held-out users are asked with words from the titles of their items.

All rankers, ours included, rank items by BM25 of their texts and, where that is equal, by their own scores.
"""

from collections.abc import Callable

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks import Query
from experiments.baselines.bm25 import BM25, word_counter
from experiments.baselines.query_match import QueryMatch
from experiments.baselines.ranker import Ranker, rank_in_batches
from experiments.evals.base import Outcome, Setting, moments, question_columns
from experiments.evals.ranking import rank_metrics

WORDS = 2
"""Number of words of a title that make a query."""


def text_search_table(setting: Setting) -> dict[str, Outcome]:
    """Returns the table `text-search`; none if no held-out item has a title."""
    corpus, everybody = setting.data.corpus, setting.questions.queries
    words_of_title = word_counter().build_analyzer()
    words = {(query.user, query.position): drawn_words(corpus, query, words_of_title) for query in everybody}
    queries = [query for query in everybody if words[query.user, query.position]]
    if not queries:
        return {}
    bm25 = BM25(corpus, lambda *moment: words[moment])
    rankers: list[Ranker] = [*(QueryMatch(ranker, bm25.matches) for ranker in setting.rankers), bm25]
    targets = np.array([query.right[0] for query in queries], np.int32)
    ranks = {ranker.name: rank_in_batches(ranker, corpus, *moments(queries), targets) for ranker in rankers}
    answers = question_columns(corpus, queries) | {"query": [words[query.user, query.position] for query in queries]}
    for name, (unfiltered, filtered) in ranks.items():
        answers |= {f"{name}: rank, unfiltered": unfiltered, f"{name}: rank, filtered": filtered}
    note = (
        f"What comes next, given {WORDS} words of its title as a query? Items are ranked by BM25 of title, attributes "
        "and categories, those that match equally by what comes next. Seen items are filtered, except in the last "
        f"columns.{setting.questions.note}"
    )
    return {"text-search": Outcome(note, {name: rank_metrics(*both) for name, both in ranks.items()}, answers)}


def drawn_words(corpus: Corpus, query: Query, words_of_title: Callable[[str], list[str]]) -> str:
    """Returns words of the title of a held-out item, drawn by its user and position; "" if the title has no word, or
    is the item's id."""
    item = query.right[0]
    title = corpus.titles[item]
    words = [] if title == corpus.item_ids[item] else [word for word in words_of_title(title) if not word.isdigit()]
    found = sorted(set(words))
    drawn = np.random.default_rng([query.user, query.position]).permutation(len(found))[:WORDS]
    return " ".join(found[place] for place in sorted(drawn.tolist()))
