"""The reference's rule for what a target is, in its plainest form; golden labels hold it to account."""

from collections.abc import Iterable

import numpy as np


def answer_mask(tokens: np.ndarray, *, answer: int, end_of_chunk: int, eos: int, never: Iterable[int]) -> np.ndarray:
    """Which tokens belong to an answer: those after `<answer>`, up to `<|endofchunk|>` (without) or eos (with it).

    Tokens in `never` (image markers, padding) and the first token are left out.

    Args:
      tokens: int [..., t].

    Returns:
      bool [..., t].
    """
    places = np.broadcast_to(np.arange(tokens.shape[-1]), tokens.shape)
    opened = np.maximum.accumulate(np.where(tokens == answer, places, -1), axis=-1)
    ends = (tokens == end_of_chunk) | (tokens == eos)
    closed = np.maximum.accumulate(np.where(ends, places, -1), axis=-1)
    closed_before = np.concatenate([np.full_like(closed[..., :1], -1), closed[..., :-1]], axis=-1)
    inside = (opened > closed_before) & (tokens != answer) & (tokens != end_of_chunk) & (places > 0)
    return inside & ~np.isin(tokens, list(never))
