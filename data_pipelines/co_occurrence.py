"""Item co-occurrence in users' training histories: sparse counts, and item vectors derived from them."""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from data_pipelines.corpus import TRAIN, Corpus

WINDOW = 10
"""The largest distance, in interactions, at which two items count as co-occurring."""
DECAY = 0.8
"""The factor on a pair's weight for each additional step between its interactions."""
DAMPING = 30.0
"""Added to the counts of items, so that pairs of items with one or two interactions each do not dominate. The model
would otherwise learn to follow the very interactions that it is trained to predict."""


def transition_counts(corpus: Corpus, lag: int) -> scipy.sparse.csr_array:
    """Returns how often an item (column) comes exactly `lag` steps after another (row) in training: float32 [I, I]."""
    events = np.flatnonzero(corpus.splits == TRAIN)
    user_of = np.repeat(np.arange(corpus.num_users), np.diff(corpus.offsets))
    before, after = events[:-lag], events[lag:]
    same = user_of[before] == user_of[after]  # a user's training events are contiguous, as held-out events come last
    rows, columns = corpus.items[before[same]], corpus.items[after[same]]
    ones = np.ones(len(rows), np.float32)
    counts = scipy.sparse.coo_array((ones, (rows, columns)), shape=(corpus.num_items, corpus.num_items))
    return counts.tocsr()


def co_occurrence_vectors(corpus: Corpus, count: int, known: int | None = None) -> np.ndarray:
    """Returns eigenvectors of the cosine-normalised co-occurrence matrix of items: float32 [I, count].

    Items that the same users interacted with near one another have similar vectors (Deerwester et al. 1990, with items
    for words). With C[i, j] the decayed number of times that i and j occur at most `WINDOW` steps apart, and n the row
    sums of C, the matrix is C[i, j] / sqrt((n[i] + damping) (n[j] + damping)) with a zero diagonal. The columns are in
    descending order of the absolute eigenvalues, and the entry of largest absolute value in each is positive; columns
    beyond the number of items are 0, and everything is 0 if no two items co-occur.

    Args:
      known: the number of leading items that are used; the rows of later ones are 0. None means all.
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
        scale @ near @ scale, k=min(count, size - 1), which="LM", v0=np.ones(size), rng=0
    )
    vectors = vectors[:, np.argsort(-np.abs(values), kind="stable")]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    found[:size, : vectors.shape[1]] = vectors * np.where(largest < 0, -1, 1)
    return found
