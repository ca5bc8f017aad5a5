"""Asking a model: prompts in; log-probabilities, ranks or answers out; batched, jitted, on the mesh."""

from __future__ import annotations

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
    close_all,
    draw_codes,
    path_scores,
    read,
    search_items,
)
from unimp_jax.evaluation.ranking import Ranked, ranks, seen_bitmap, seen_mask, top_items
from unimp_jax.model import UniMP
from unimp_jax.sharding import put_everywhere, put_rows

Seen = Callable[[int], np.ndarray]
"""The items that the user of a prompt, named by its number, has met: int [any]. It is asked batch by batch, so that
nothing is ever held of all users at once."""


class AskedBatch(Protocol):
    """What a data pipeline hands over (`data_pipelines.loader.QuestionBatch`)."""

    @property
    def arrays(self) -> dict[str, np.ndarray]: ...
    @property
    def prompts(self) -> np.ndarray: ...


class Examiner:
    """Asks prompts of one model's parameters, whichever they are at the time.

    Every way of asking takes `latents_ILC`: what the tower and the resampler make of each of I pictures. The images of
    batches are then their numbers, int32 [B, N], and no picture is encoded twice.
    """

    def __init__(self, graph: nnx.GraphDef, mesh: Mesh, to_device: Callable[[dict[str, np.ndarray]], Batch]):
        """`to_device` turns a process's share of a batch into global arrays."""
        self.graph, self.mesh, self._to_device = graph, mesh, to_device
        everywhere = NamedSharding(mesh, PartitionSpec())
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
        placed = put_everywhere(self.mesh, np.asarray(tokens, np.int32))

        def score(batch: AskedBatch) -> tuple[jax.Array, ...]:
            return self._log_probabilities(parameters, latents_ILC, *self._place(batch), placed)

        (result,) = self._gather(batches, score, num_prompts)
        return result

    def rank_items(
        self,
        parameters: tuple[Any, ...],
        batches: Iterable[AskedBatch],
        *,
        item_tokens: np.ndarray,
        targets: np.ndarray,
        seen: Seen,
        k: int = 10,
        latents_ILC: jax.Array | None = None,
    ) -> Ranked:
        """Ranks the catalogue for every prompt: one forward pass, one token an item.

        Args:
          item_tokens: int32 [I], the token of each item.
          targets: int32 [P], the right item of each prompt.
          seen: what each user has met.
        """
        placed = put_everywhere(self.mesh, item_tokens)

        def rank(batch: AskedBatch) -> tuple[jax.Array, ...]:
            told = self._told(batch, seen, len(item_tokens), targets)
            return self._rank(parameters, latents_ILC, *self._place(batch), placed, *told, k=k)

        return Ranked(*self._gather(batches, rank, len(targets)))

    def search_items(
        self,
        parameters: tuple[Any, ...],
        batches: Iterable[AskedBatch],
        *,
        trie: Trie,
        item_tokens: np.ndarray,
        targets: np.ndarray,
        seen: Seen,
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
        placed = put_everywhere(self.mesh, (trie, item_tokens))

        def search(batch: AskedBatch) -> tuple[jax.Array, ...]:
            told = self._told(batch, seen, len(item_tokens), targets)
            return self._find(parameters, latents_ILC, *self._place(batch), *placed, *told, k=k, beams=beams)

        return Ranked(*self._gather(batches, search, len(targets)))

    def find(
        self,
        parameters: tuple[Any, ...],
        batches: Iterable[AskedBatch],
        num_prompts: int,
        *,
        trie: Trie,
        excluded: Seen,
        k: int = 10,
        beams: int = 10,
        latents_ILC: jax.Array | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items for every prompt: (int32 [P, k], best first, -1 where there are no more; float32 scores).

        Args:
          excluded: the items that are not to be found.
        """
        placed, num_items = put_everywhere(self.mesh, trie), trie.items.shape[0]

        def find(batch: AskedBatch) -> tuple[jax.Array, ...]:
            told = self._told(batch, excluded, num_items)
            return self._best(parameters, latents_ILC, *self._place(batch), placed, *told, k=k, beams=beams)

        items, scores = self._gather(batches, find, num_prompts)
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

        def say(batch: AskedBatch) -> tuple[jax.Array, ...]:
            return self._say(parameters, latents_ILC, *self._place(batch), config=config, eos=eos, pad=pad)

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
        placed = put_everywhere(self.mesh, (tokens, bare, jax.random.key_data(jax.random.key(seed))))

        def draw(batch: AskedBatch) -> tuple[jax.Array, ...]:
            arrays = self._place(batch)
            return self._draw(parameters, latents_ILC, *arrays, *placed, length=length, config=config, samples=samples)

        codes, scores = self._gather(batches, draw, num_prompts)
        return codes, scores

    def _gather(
        self,
        batches: Iterable[AskedBatch],
        ask: Callable[[AskedBatch], tuple[jax.Array, ...]],
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
            with jax.set_mesh(self.mesh):  # by which kernels and activations are laid out, as in training
                now = ask(batch)
            if before is not None:
                keep(before)
            before = now
        if before is not None:
            keep(before)
        return wholes

    def _place(self, batch: AskedBatch) -> tuple[Batch, jax.Array]:
        return self._to_device(batch.arrays), put_rows(self.mesh, batch.prompts)

    def _told(
        self, batch: AskedBatch, seen: Seen, num_items: int, targets: np.ndarray | None = None
    ) -> tuple[jax.Array, ...]:
        """What is known of the prompts of a batch: the bitmaps of what their users have met, uint8 [B, A, w], before
        them the right items, int32 [B, A], where they are told; of empty slots nothing and 0."""
        prompts = batch.prompts
        nothing = np.empty(0, np.int32)
        met = [seen(prompt) if prompt >= 0 else nothing for prompt in prompts.ravel().tolist()]
        told = [seen_bitmap(met, num_items).reshape(*prompts.shape, -1)]
        if targets is not None:
            told = [np.where(prompts >= 0, targets[np.maximum(prompts, 0)], 0).astype(np.int32), *told]
        return tuple(put_rows(self.mesh, array) for array in told)

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
        targets_BA: jax.Array,
        seen_BAw: jax.Array,
        *,
        k: int,
    ) -> tuple[jax.Array, ...]:
        scores_MI, prompts_M = self._score(parameters, latents_ILC, batch, prompts_BA, item_tokens)
        targets_M, seen_Mw = targets_BA.reshape(-1), seen_BAw.reshape(-1, seen_BAw.shape[-1])
        kept_M, filtered_M = ranks(scores_MI, targets_M, seen_Mw)
        entropy_M = -jnp.take_along_axis(scores_MI, targets_M[:, None], axis=1)[:, 0]
        top_Mk = top_items(scores_MI, seen_Mw, k)
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
        targets_BA: jax.Array,
        seen_BAw: jax.Array,
        *,
        k: int,
        beams: int,
    ) -> tuple[jax.Array, ...]:
        model, latents_BNLC = self._open(parameters, latents_ILC, batch)
        seen_BAI = seen_mask(seen_BAw, item_tokens.shape[0])
        is_target_BAI = jnp.arange(item_tokens.shape[0]) == targets_BA[..., None]
        hidden_BAD, prompts = read(model, batch, latents_BNLC)
        others = close_all(trie, seen_BAI & ~is_target_BAI)  # the right item is never filtered
        kept = search_items(model, hidden_BAD, prompts, trie, None, k=k, beams=beams)
        found = search_items(model, hidden_BAD, prompts, trie, others, k=k + 1, beams=beams)  # one to spare
        path_BA1n = item_tokens[targets_BA][:, :, None]
        entropy_BA = -path_scores(model, hidden_BAD, prompts, path_BA1n)[..., 0]

        def place(items_BAk: jax.Array) -> jax.Array:
            hits_BAk = items_BAk[..., :k] == targets_BA[..., None]
            return jnp.where(hits_BAk.any(-1), hits_BAk.argmax(-1) + 1, jnp.inf).astype(jnp.float32)

        met_BA = (seen_BAI & is_target_BAI).any(-1)  # then the right item has a rank, and is not shown
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
        excluded_BAw: jax.Array,
        *,
        k: int,
        beams: int,
    ) -> tuple[jax.Array, ...]:
        model, latents_BNLC = self._open(parameters, latents_ILC, batch)
        hidden_BAD, prompts = read(model, batch, latents_BNLC)
        closed = close_all(trie, seen_mask(excluded_BAw, trie.items.shape[0]))
        found = search_items(model, hidden_BAD, prompts, trie, closed, k=k, beams=beams)
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
            model, batch, tokens_K, length, config, bare_T=bare_T, key=jax.random.wrap_key_data(key),
            numbers_BA=prompts_BA, samples=samples, latents_BNLC=latents_BNLC,
        )  # fmt: skip
        results = drawn.codes_BAWn, drawn.scores_BAW, prompts_BA
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
