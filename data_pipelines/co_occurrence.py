"""Which items the same users met near one another in training: sparse counts, and vectors of items made of them."""

from __future__ import annotations

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from data_pipelines.corpus import TRAIN, Corpus

WINDOW = 10
"""Interactions at most so many steps apart count."""
DECAY = 0.8
"""What one step more between two interactions makes of their weight."""
DAMPING = 30.0
"""Added to the counts of items, so that pairs of which each was met once or twice do not lead: what a model learns to
follow would otherwise be the very interactions that it is trained to predict."""


def transition_counts(corpus: Corpus, lag: int) -> scipy.sparse.csr_array:
    """How often one item was met exactly `lag` steps after another in training: float32 [I, I], from row to column."""
    events = np.flatnonzero(corpus.splits == TRAIN)
    user_of = np.repeat(np.arange(corpus.num_users), np.diff(corpus.offsets))
    before, after = events[:-lag], events[lag:]
    same = user_of[before] == user_of[after]  # a user's training events are neighbours, the held-out ones come last
    rows, columns = corpus.items[before[same]], corpus.items[after[same]]
    ones = np.ones(len(rows), np.float32)
    counts = scipy.sparse.coo_array((ones, (rows, columns)), shape=(corpus.num_items, corpus.num_items))
    return counts.tocsr()


def co_occurrence_vectors(corpus: Corpus, count: int, known: int | None = None) -> np.ndarray:
    """Eigenvectors of the items' co-occurrences, normalised as cosines are: float32 [I, count].

    Items that the same users met near one another have like vectors (Deerwester et al. 1990, with items for words).
    With C[i, j] the decayed number of times that i and j were met at most `WINDOW` steps apart, and n the sums of its
    rows, the matrix is C[i, j] / sqrt((n[i] + damping) (n[j] + damping)), and its diagonal is 0. The columns stand in
    the order of their eigenvalues' size, and the largest number of each is positive; columns beyond the number of items
    are 0, as are all where no two items were met together.

    Args:
      known: so many items, from the first on, are looked at; the rows of those behind them are 0. None: all.
    """
    size = corpus.num_items if known is None else known
    found = np.zeros((corpus.num_items, count), np.float32)
    directed = sum(DECAY ** (lag - 1) * transition_counts(corpus, lag) for lag in range(1, WINDOW + 1))
    near = scipy.sparse.csr_array(directed + directed.T, dtype=np.float64)
    near = near[:size, :size]
    near = (near - scipy.sparse.diags_array(near.diagonal())).tocsr()
    near.eliminate_zeros()
    if size < 3 or not near.nnz:
        return found
    scale = scipy.sparse.diags_array((near.sum(axis=1) + DAMPING) ** -0.5)
    values, vectors = scipy.sparse.linalg.eigsh(
        scale @ near @ scale, k=min(count, size - 1), which="LM", v0=np.ones(size)
    )
    vectors = vectors[:, np.argsort(-np.abs(values), kind="stable")]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    found[:size, : vectors.shape[1]] = vectors * np.where(largest < 0, -1, 1)
    return found
