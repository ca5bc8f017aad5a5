"""Asking a model: prompts in, log-probabilities or ranks out; batched, jitted, on the mesh."""

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
from unimp_jax.evaluation.ranking import ranks, top_items


class AskedBatch(Protocol):
    """What a data pipeline hands over (`data_pipelines.loader.QuestionBatch`)."""

    @property
    def arrays(self) -> dict[str, np.ndarray]: ...
    @property
    def prompts(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """The whole catalogue of I items ranked for each of P prompts, by exact scores.

    Attributes:
      kept, filtered: float32 [P], the right item's rank (1 is best, ties count half) among all items, and among those
        that the user has not met.
      top: int32 [P, k], the best items that the user has not met, best first.
      cross_entropy: float32 [P], of the right item's token among the whole vocabulary, in nats.
    """

    kept: np.ndarray
    filtered: np.ndarray
    top: np.ndarray
    cross_entropy: np.ndarray


class Examiner:
    """Asks prompts of one model's parameters, whichever they are at the time."""

    def __init__(self, graph: nnx.GraphDef, mesh: Mesh, to_device: Callable[[dict[str, np.ndarray]], Batch]):
        """`to_device` turns a process's share of a batch into global arrays."""
        self._graph, self._to_device = graph, to_device
        self._rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        everywhere = self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._log_probabilities = jax.jit(self._score, out_shardings=everywhere)
        self._rank = jax.jit(self._score_and_rank, static_argnames="k", out_shardings=everywhere)

    def log_probabilities(
        self, parameters: tuple[Any, Any], batches: Iterable[AskedBatch], tokens: np.ndarray, num_prompts: int
    ) -> np.ndarray:
        """Log-probabilities of `tokens` (int [n]) as the next one, over the whole vocabulary: float32 [P, n]."""
        result = np.full((num_prompts, len(tokens)), np.nan, np.float32)
        for batch in batches:
            scores, prompts = self._log_probabilities(parameters, *self._place(batch), jnp.asarray(tokens))
            prompts = np.asarray(prompts)
            result[prompts[prompts >= 0]] = np.asarray(scores)[prompts >= 0]
        return result

    def rank_items(
        self,
        parameters: tuple[Any, Any],
        batches: Iterable[AskedBatch],
        *,
        item_tokens: np.ndarray,
        targets: np.ndarray,
        seen: np.ndarray,
        k: int = 10,
    ) -> Ranked:
        """Ranks the catalogue for every prompt: one forward pass, one token an item.

        Args:
          item_tokens: int32 [I], the token of each item.
          targets: int32 [P], the right item of each prompt.
          seen: int32 [P, S], the items each user has met, padded with -1.
        """
        total = len(targets)
        kept, filtered, entropy = (np.full(total, np.nan, np.float32) for _ in range(3))
        top = np.full((total, k), -1, np.int32)
        item_tokens, targets, seen = jax.device_put((item_tokens, targets, seen), self._everywhere)
        for batch in batches:
            arrays, prompts = self._place(batch)
            results = self._rank(parameters, arrays, prompts, item_tokens, targets, seen, k=k)
            *results, asked = jax.device_get(results)
            used = asked >= 0
            for whole, part in zip((kept, filtered, top, entropy), results, strict=True):
                whole[asked[used]] = part[used]
        return Ranked(kept, filtered, top, entropy)

    def _place(self, batch: AskedBatch) -> tuple[Batch, jax.Array]:
        return self._to_device(batch.arrays), jax.make_array_from_process_local_data(self._rows, batch.prompts)

    def _score(
        self, parameters: tuple[Any, Any], batch: Batch, prompts_BA: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits_BAV = nnx.merge(self._graph, *parameters)(batch)
        scores_BAn = jax.nn.log_softmax(logits_BAV)[..., tokens]
        return scores_BAn.reshape(-1, tokens.shape[0]), prompts_BA.reshape(-1)

    def _score_and_rank(
        self,
        parameters: tuple[Any, Any],
        batch: Batch,
        prompts_BA: jax.Array,
        item_tokens: jax.Array,
        targets: jax.Array,
        seen: jax.Array,
        *,
        k: int,
    ) -> tuple[jax.Array, ...]:
        scores_MI, prompts_M = self._score(parameters, batch, prompts_BA, item_tokens)
        asked = jnp.maximum(prompts_M, 0)
        targets_M, seen_MS = targets[asked], seen[asked]
        kept_M, filtered_M = ranks(scores_MI, targets_M, seen_MS)
        entropy_M = -jnp.take_along_axis(scores_MI, targets_M[:, None], axis=1)[:, 0]
        return kept_M, filtered_M, top_items(scores_MI, seen_MS, k), entropy_M, prompts_M
