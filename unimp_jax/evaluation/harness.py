"""Asking a model: prompts in; log-probabilities, ranks or answers out; batched, jitted, on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unimp_jax.batch import Batch
from unimp_jax.decoding import (
    BeamConfig,
    DrawingConfig,
    Trie,
    beam_search,
    draw_codes,
    find_items,
    path_scores,
    read,
    search_items,
)
from unimp_jax.evaluation.ranking import ranks, top_items
from unimp_jax.model import UniMP
from unimp_jax.sharding import put_rows


class AskedBatch(Protocol):
    """What a data pipeline hands over (`data_pipelines.loader.QuestionBatch`)."""

    @property
    def arrays(self) -> dict[str, np.ndarray]: ...
    @property
    def prompts(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """The best of a catalogue of I items for each of P prompts.

    Attributes:
      kept, filtered: float32 [P], the right item's rank (1 is best) among all items, and among those that the user has
        not met. By exact scores of all items, ties counted half; or, where items were searched for, their place among
        the k found, infinite where the right one is not found.
      top: int32 [P, k], the best items that the user has not met, best first; -1 where there are no more.
      scores: float32 [P, k], their log-probabilities.
      cross_entropy: float32 [P], of the right item's tokens among the whole vocabulary, in nats.
    """

    kept: np.ndarray
    filtered: np.ndarray
    top: np.ndarray
    scores: np.ndarray
    cross_entropy: np.ndarray


class Examiner:
    """Asks prompts of one model's parameters, whichever they are at the time.

    Every way of asking takes `latents_ILC`: what the tower and the resampler make of each of I pictures. The images of
    batches are then their numbers, int32 [B, N], and no picture is encoded twice.
    """

    def __init__(self, graph: nnx.GraphDef, mesh: Mesh, to_device: Callable[[dict[str, np.ndarray]], Batch]):
        """`to_device` turns a process's share of a batch into global arrays."""
        self.graph, self._to_device = graph, to_device
        self._mesh = mesh
        everywhere = self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._log_probabilities = jax.jit(self._score, out_shardings=everywhere)
        self._rank = jax.jit(self._score_and_rank, static_argnames="k", out_shardings=everywhere)
        self._find = jax.jit(self._search, static_argnames=("k", "beams"), out_shardings=everywhere)
        self._best = jax.jit(self._find_best, static_argnames=("k", "beams"), out_shardings=everywhere)
        self._say = jax.jit(self._answer, static_argnames=("config", "eos", "pad"), out_shardings=everywhere)
        self._draw = jax.jit(self._codes, static_argnames=("length", "config", "samples"), out_shardings=everywhere)

    def log_probabilities(
        self,
        parameters: tuple[Any, ...],
        batches: Iterable[AskedBatch],
        tokens: np.ndarray,
        num_prompts: int,
        *,
        latents_ILC: jax.Array | None = None,
    ) -> np.ndarray:
        """Log-probabilities of `tokens` (int [n]) as the next one, over the whole vocabulary: float32 [P, n]."""
        result = np.full((num_prompts, len(tokens)), np.nan, np.float32)
        for batch in batches:
            scores, prompts = self._log_probabilities(parameters, latents_ILC, *self._place(batch), jnp.asarray(tokens))
            prompts = np.asarray(prompts)
            result[prompts[prompts >= 0]] = np.asarray(scores)[prompts >= 0]
        return result

    def rank_items(
        self,
        parameters: tuple[Any, ...],
        batches: Iterable[AskedBatch],
        *,
        item_tokens: np.ndarray,
        targets: np.ndarray,
        seen: np.ndarray,
        k: int = 10,
        latents_ILC: jax.Array | None = None,
    ) -> Ranked:
        """Ranks the catalogue for every prompt: one forward pass, one token an item.

        Args:
          item_tokens: int32 [I], the token of each item.
          targets: int32 [P], the right item of each prompt.
          seen: int32 [P, S], the items each user has met, padded with -1.
        """
        item_tokens, targets, seen = jax.device_put((item_tokens, targets, seen), self._everywhere)

        def rank(arrays: Batch, prompts: jax.Array) -> tuple[jax.Array, ...]:
            return self._rank(parameters, latents_ILC, arrays, prompts, item_tokens, targets, seen, k=k)

        return Ranked(*self._gather(batches, rank, len(targets)))

    def search_items(
        self,
        parameters: tuple[Any, ...],
        batches: Iterable[AskedBatch],
        *,
        trie: Trie,
        item_tokens: np.ndarray,
        targets: np.ndarray,
        seen: np.ndarray,
        k: int = 10,
        beams: int = 10,
        latents_ILC: jax.Array | None = None,
    ) -> Ranked:
        """Searches the catalogue for every prompt, for ids of several tokens: one pass, then a step for each token.

        Args:
          trie: of the items' tokens.
          item_tokens: int32 [I, depth].
          targets, seen: as of `rank_items`.

        Raises:
          ValueError: `k` is not 1 to `beams`.
        """
        if not 1 <= k <= beams:
            raise ValueError(f"{beams} beams do not find the {k} best items: as many beams or more, and 1 or more, do")
        placed = jax.device_put((trie, item_tokens, targets, seen), self._everywhere)

        def search(arrays: Batch, prompts: jax.Array) -> tuple[jax.Array, ...]:
            return self._find(parameters, latents_ILC, arrays, prompts, *placed, k=k, beams=beams)

        return Ranked(*self._gather(batches, search, len(targets)))

    def find(
        self,
        parameters: tuple[Any, ...],
        batches: Iterable[AskedBatch],
        *,
        trie: Trie,
        excluded: np.ndarray,
        k: int = 10,
        beams: int = 10,
        latents_ILC: jax.Array | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items for every prompt: (int32 [P, k], best first, -1 where there are no more; float32 scores).

        Args:
          excluded: int32 [P, S], the items that are not to be found, padded with -1.
        """
        placed = jax.device_put((trie, excluded), self._everywhere)

        def find(arrays: Batch, prompts: jax.Array) -> tuple[jax.Array, ...]:
            return self._best(parameters, latents_ILC, arrays, prompts, *placed, k=k, beams=beams)

        items, scores = self._gather(batches, find, len(excluded))
        return items, scores

    def answers(
        self,
        parameters: tuple[Any, ...],
        batches: Iterable[AskedBatch],
        num_prompts: int,
        config: BeamConfig,
        *,
        eos: int,
        pad: int,
        latents_ILC: jax.Array | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best answer to every prompt by beam search: (int32 [P, n] tokens, float32 [P] scores)."""

        def say(arrays: Batch, prompts: jax.Array) -> tuple[jax.Array, ...]:
            return self._say(parameters, latents_ILC, arrays, prompts, config=config, eos=eos, pad=pad)

        tokens, scores = self._gather(batches, say, num_prompts)
        return tokens, scores

    def codes(
        self,
        parameters: tuple[Any, ...],
        batches: Iterable[AskedBatch],
        num_prompts: int,
        config: DrawingConfig,
        *,
        tokens: np.ndarray,
        length: int,
        bare: np.ndarray,
        samples: int = 1,
        seed: int = 0,
        latents_ILC: jax.Array | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pictures for every prompt: (int32 [P, samples, length] codes, float32 [P, samples] scores).

        What is drawn hangs on the seed and on the number of a prompt, not on how prompts lie in batches.

        Args:
          tokens: int32 [K], of each code.
          bare: int32 [t], the question without history and query.
        """
        placed = jax.device_put((tokens, bare), self._everywhere)
        key = jax.random.key(seed)

        def draw(arrays: Batch, prompts: jax.Array) -> tuple[jax.Array, ...]:
            return self._draw(
                parameters, latents_ILC, arrays, prompts, *placed, key, length=length, config=config, samples=samples
            )

        codes, scores = self._gather(batches, draw, num_prompts)
        return codes, scores

    def _gather(
        self,
        batches: Iterable[AskedBatch],
        ask: Callable[[Batch, jax.Array], tuple[jax.Array, ...]],
        num_prompts: int,
    ) -> list[np.ndarray]:
        """What `ask` says of every prompt, in their order; its last result is which prompts those were.

        While a batch is answered, the next one is on its way.
        """
        wholes: list[np.ndarray] = []

        def keep(answered: tuple[jax.Array, ...]) -> None:
            *results, asked = jax.device_get(answered)
            if not wholes:
                blank = [np.nan if part.dtype == np.float32 else -1 for part in results]
                shapes = [(num_prompts, *part.shape[1:]) for part in results]
                wholes.extend(np.full(s, b, p.dtype) for s, b, p in zip(shapes, blank, results, strict=True))
            used = asked >= 0
            for whole, part in zip(wholes, results, strict=True):
                whole[asked[used]] = part[used]

        before = None
        for batch in batches:
            now = ask(*self._place(batch))
            if before is not None:
                keep(before)
            before = now
        if before is not None:
            keep(before)
        return wholes

    def _place(self, batch: AskedBatch) -> tuple[Batch, jax.Array]:
        return self._to_device(batch.arrays), put_rows(self._mesh, batch.prompts)

    def _open(
        self, parameters: tuple[Any, ...], latents_ILC: jax.Array | None, batch: Batch
    ) -> tuple[UniMP, jax.Array | None]:
        """The model, and the latents of the batch's images, [B, N, L, C], where they are known."""
        return nnx.merge(self.graph, *parameters), None if latents_ILC is None else latents_ILC[batch.images]

    def _score(
        self,
        parameters: tuple[Any, ...],
        latents_ILC: jax.Array | None,
        batch: Batch,
        prompts_BA: jax.Array,
        tokens: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        model, latents_BNLC = self._open(parameters, latents_ILC, batch)
        logits_BAV = model.logits(read(model, batch, latents_BNLC)[0])
        scores_BAn = jax.nn.log_softmax(logits_BAV)[..., tokens]
        return scores_BAn.reshape(-1, tokens.shape[0]), prompts_BA.reshape(-1)

    def _score_and_rank(
        self,
        parameters: tuple[Any, ...],
        latents_ILC: jax.Array | None,
        batch: Batch,
        prompts_BA: jax.Array,
        item_tokens: jax.Array,
        targets: jax.Array,
        seen: jax.Array,
        *,
        k: int,
    ) -> tuple[jax.Array, ...]:
        scores_MI, prompts_M = self._score(parameters, latents_ILC, batch, prompts_BA, item_tokens)
        asked = jnp.maximum(prompts_M, 0)
        targets_M, seen_MS = targets[asked], seen[asked]
        kept_M, filtered_M = ranks(scores_MI, targets_M, seen_MS)
        entropy_M = -jnp.take_along_axis(scores_MI, targets_M[:, None], axis=1)[:, 0]
        top_Mk = top_items(scores_MI, seen_MS, k)
        best_Mk = jnp.take_along_axis(scores_MI, jnp.maximum(top_Mk, 0), axis=1)
        return kept_M, filtered_M, top_Mk, jnp.where(top_Mk >= 0, best_Mk, -jnp.inf), entropy_M, prompts_M

    def _search(
        self,
        parameters: tuple[Any, ...],
        latents_ILC: jax.Array | None,
        batch: Batch,
        prompts_BA: jax.Array,
        trie: Trie,
        item_tokens: jax.Array,
        targets: jax.Array,
        seen: jax.Array,
        *,
        k: int,
        beams: int,
    ) -> tuple[jax.Array, ...]:
        model, latents_BNLC = self._open(parameters, latents_ILC, batch)
        asked_BA = jnp.maximum(prompts_BA, 0)
        targets_BA, seen_BAS = targets[asked_BA], seen[asked_BA]
        hidden_BAD, prompts = read(model, batch, latents_BNLC)
        others_BAS = jnp.where(seen_BAS == targets_BA[..., None], -1, seen_BAS)  # the right item is never filtered
        kept = search_items(model, hidden_BAD, prompts, trie, None, k=k, beams=beams)
        found = search_items(model, hidden_BAD, prompts, trie, others_BAS, k=k + 1, beams=beams)  # one to spare
        path_BA1n = item_tokens[targets_BA][:, :, None]
        entropy_BA = -path_scores(model, hidden_BAD, prompts, path_BA1n)[..., 0]

        def place(items_BAk: jax.Array) -> jax.Array:
            hits_BAk = items_BAk[..., :k] == targets_BA[..., None]
            return jnp.where(hits_BAk.any(-1), hits_BAk.argmax(-1) + 1, jnp.inf).astype(jnp.float32)

        met_BA = (seen_BAS == targets_BA[..., None]).any(-1)  # then the right item has a rank, and is not shown
        shown_BAk = (found.items_BAk >= 0) & ~(met_BA[..., None] & (found.items_BAk == targets_BA[..., None]))
        order_BAk = jnp.argsort(~shown_BAk, axis=-1, stable=True)[..., :k]

        def best(x_BAk: jax.Array, blank: float) -> jax.Array:
            return jnp.take_along_axis(jnp.where(shown_BAk, x_BAk, blank), order_BAk, axis=-1)

        top_BAk, scores_BAk = best(found.items_BAk, -1), best(found.scores_BAk, -jnp.inf)
        results = place(kept.items_BAk), place(found.items_BAk), top_BAk, scores_BAk, entropy_BA, prompts_BA
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)

    def _find_best(
        self,
        parameters: tuple[Any, ...],
        latents_ILC: jax.Array | None,
        batch: Batch,
        prompts_BA: jax.Array,
        trie: Trie,
        excluded: jax.Array,
        *,
        k: int,
        beams: int,
    ) -> tuple[jax.Array, ...]:
        model, latents_BNLC = self._open(parameters, latents_ILC, batch)
        excluded_BAS = excluded[jnp.maximum(prompts_BA, 0)]
        found = find_items(model, batch, trie, excluded_BAS, k=k, beams=beams, latents_BNLC=latents_BNLC)
        results = found.items_BAk, found.scores_BAk, prompts_BA
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)

    def _answer(
        self,
        parameters: tuple[Any, ...],
        latents_ILC: jax.Array | None,
        batch: Batch,
        prompts_BA: jax.Array,
        *,
        config: BeamConfig,
        eos: int,
        pad: int,
    ) -> tuple[jax.Array, ...]:
        model, latents_BNLC = self._open(parameters, latents_ILC, batch)
        answers = beam_search(model, batch, config, eos=eos, pad=pad, latents_BNLC=latents_BNLC)
        results = answers.tokens_BAWn[:, :, 0], answers.scores_BAW[:, :, 0], prompts_BA
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)

    def _codes(
        self,
        parameters: tuple[Any, ...],
        latents_ILC: jax.Array | None,
        batch: Batch,
        prompts_BA: jax.Array,
        tokens_K: jax.Array,
        bare_T: jax.Array,
        key: jax.Array,
        *,
        length: int,
        config: DrawingConfig,
        samples: int,
    ) -> tuple[jax.Array, ...]:
        model, latents_BNLC = self._open(parameters, latents_ILC, batch)
        drawn = draw_codes(
            model, batch, tokens_K, length, config, bare_T=bare_T, key=key, numbers_BA=prompts_BA, samples=samples,
            latents_BNLC=latents_BNLC,
        )  # fmt: skip
        results = drawn.codes_BAWn, drawn.scores_BAW, prompts_BA
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
