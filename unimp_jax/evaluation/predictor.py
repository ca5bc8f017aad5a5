"""The predictor: maps batches of prompts to log-probabilities, ranks or answers, given a model's parameters.

`Predictor` maps one function of `unimp_jax.evaluation.answering` over the batches, on the mesh.
"""

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unimp_jax.batch import Batch
from unimp_jax.compiling import compiler_options
from unimp_jax.decoding import BeamConfig, CodeSamplingConfig, Trie
from unimp_jax.evaluation import answering
from unimp_jax.evaluation.mapping import padded_batches
from unimp_jax.evaluation.ranking import Ranked, seen_bitmap
from unimp_jax.model import UniMP
from unimp_jax.sharding import put_everywhere, put_rows

Seen = Callable[[int], np.ndarray]
"""The items that the user of a prompt, given by its number, has interacted with, int [any]. It is called batch by
batch, so that nothing is held for all users at once."""


class PromptBatch(Protocol):
    """A batch from a data pipeline (`data_pipelines.loader.QuestionBatch`)."""

    @property
    def arrays(self) -> dict[str, np.ndarray]: ...
    @property
    def prompts(self) -> np.ndarray: ...


class Predictor:
    """A model bound to parameters, optionally with the encoded latents of the catalogue's images.

    Attributes:
      parameters: Its states (trainable, frozen), which `nnx.merge` combines.
      latents_ILC: Latents of the image of each of I items; None: batches contain the images. If set, the images of
        batches are item numbers, int32 [B, N].
    """

    def __init__(
        self, graph: nnx.GraphDef, mesh: Mesh, to_device: Callable[[dict[str, np.ndarray]], Batch],
        parameters: tuple[Any, ...],
    ):  # fmt: skip
        """Binds a model to parameters.

        Args:
          to_device: Converts a process's share of a batch to global arrays.
        """
        self.graph, self.mesh, self.parameters, self._to_device = graph, mesh, parameters, to_device
        self.latents_ILC: jax.Array | None = None

    def with_parameters(self, parameters: tuple[Any, ...]) -> Self:
        """Returns the same model with other parameters, without compiling anything again."""
        other = copy.copy(self)
        other.parameters, other.latents_ILC = parameters, None
        return other

    def model(self) -> UniMP:
        """Returns the model itself."""
        return nnx.merge(self.graph, *self.parameters)

    @property
    def needs_images(self) -> bool:
        """Whether batches must contain images instead of item numbers."""
        return self.latents_ILC is None

    def encode_catalogue(self, has_image: np.ndarray, image: Callable[[int], np.ndarray]) -> Self:
        """Returns a predictor with the latents of all images of the catalogue, replicated on each device.

        Args:
          has_image: bool [I], the items that have an image.
          image: Returns the image of an item, uint8 [H, W, 3].
        """
        graph, config, everywhere = self.graph, self.model().config, NamedSharding(self.mesh, PartitionSpec())
        shape = (len(has_image), *config.latents_shape)

        def encode(latents_ILC: jax.Array, parameters: Any, items_N: jax.Array, images_NHW3: jax.Array) -> jax.Array:
            encoded_NLC = nnx.merge(graph, *parameters).encode_images(images_NHW3[:, None])[:, 0]
            return latents_ILC.at[items_N].set(encoded_NLC)

        add = jax.jit(encode, donate_argnums=0, out_shardings=everywhere, compiler_options=compiler_options(self.mesh))
        with jax.set_mesh(self.mesh):
            latents_ILC = jax.jit(lambda: jnp.zeros(shape, config.compute_dtype), out_shardings=everywhere)()
            for items, _ in padded_batches(np.flatnonzero(has_image).astype(np.int32)):
                images = np.stack([image(int(item)) for item in items])
                latents_ILC = add(latents_ILC, self.parameters, *put_everywhere(self.mesh, (items, images)))
        other = copy.copy(self)
        other.latents_ILC = latents_ILC
        return other

    def next_token(self, batches: Iterable[PromptBatch], tokens: np.ndarray, num_prompts: int) -> np.ndarray:
        """Returns log-probabilities of `tokens` (int [n]) as next token, over the whole vocabulary: float32 [P, n]."""
        (scores,) = self._map(answering.next_token, batches, num_prompts, np.asarray(tokens, np.int32))
        return scores

    def among(self, batches: Iterable[PromptBatch], tokens: np.ndarray, num_prompts: int) -> np.ndarray:
        """Returns log-probabilities of `tokens` (int [n]) as next token, if it is one of them: float32 [P, n]."""
        (scores,) = self._map(answering.among, batches, num_prompts, np.asarray(tokens, np.int32))
        return scores

    def score(self, batches: Iterable[PromptBatch], answers: np.ndarray) -> np.ndarray:
        """Returns log-probabilities of W given answers to every prompt: float32 [P, W].

        Args:
          answers: int32 [P, W, n] tokens; shorter answers are padded with `unimp_jax.decoding.PAST`.
        """

        def facts(batch: PromptBatch) -> tuple[np.ndarray, ...]:
            return (answers[np.maximum(batch.prompts, 0)].astype(np.int32),)

        (scores,) = self._map(answering.score, batches, len(answers), facts=facts)
        return scores

    def rank(
        self, batches: Iterable[PromptBatch], *, item_tokens: np.ndarray, targets: np.ndarray, seen: Seen, k: int = 10
    ) -> Ranked:
        """Ranks the catalogue for every prompt in one forward pass, for ids of one token.

        Args:
          item_tokens: int32 [I], the token of each item.
          targets: int32 [P], the right item of each prompt.
          seen: The items that each user has interacted with.
        """

        def facts(batch: PromptBatch) -> tuple[np.ndarray, ...]:
            return targets_of(batch, targets), seen_of(batch, seen, len(item_tokens))

        lowest = int(item_tokens.min())
        return Ranked(
            *self._map(answering.rank, batches, len(targets), item_tokens, facts=facts, k=k, lowest_token=lowest)
        )

    def search(
        self, batches: Iterable[PromptBatch], *, trie: Trie, item_tokens: np.ndarray, targets: np.ndarray, seen: Seen,
        k: int = 10, beams: int = 10,
    ) -> Ranked:  # fmt: skip
        """Searches the catalogue for every prompt, for ids of several tokens: one pass, then a step per token.

        Args:
          item_tokens: int32 [I, depth].
          targets, seen: See `rank`.

        Raises:
          ValueError: `k` is not 1 to `beams`.
        """
        if not 1 <= k <= beams:
            raise ValueError(
                f"{beams} beams cannot find the {k} best items; k must be at least 1 and at most the number of beams"
            )

        def facts(batch: PromptBatch) -> tuple[np.ndarray, ...]:
            return targets_of(batch, targets), seen_of(batch, seen, len(item_tokens))

        constants = trie, item_tokens
        return Ranked(*self._map(answering.search, batches, len(targets), *constants, facts=facts, k=k, beams=beams))

    def best_items(
        self, batches: Iterable[PromptBatch], num_prompts: int, *, trie: Trie, excluded: Seen, k: int = 10,
        beams: int = 10,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Returns the best items for every prompt: (int32 [P, k], best first, padded with -1; float32 scores)."""

        def facts(batch: PromptBatch) -> tuple[np.ndarray, ...]:
            return (seen_of(batch, excluded, trie.items.shape[0]),)

        items, scores = self._map(answering.best_items, batches, num_prompts, trie, facts=facts, k=k, beams=beams)
        return items, scores

    def generate(
        self, batches: Iterable[PromptBatch], num_prompts: int, config: BeamConfig, *, eos: int, pad: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the best answer to every prompt by beam search: (int32 [P, n] tokens, float32 [P] scores)."""
        tokens, scores = self._map(answering.generate, batches, num_prompts, config=config, eos=eos, pad=pad)
        return tokens, scores

    def sample_codes(
        self, batches: Iterable[PromptBatch], num_prompts: int, config: CodeSamplingConfig, *, tokens: np.ndarray,
        length: int, unconditional: np.ndarray, samples: int = 1, seed: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Samples images for every prompt: (int32 [P, samples, length] codes, float32 [P, samples] log-probabilities).

        The samples depend on the seed and a prompt's number, not on how prompts are batched.

        Args:
          tokens: int32 [K], the token of each code.
          unconditional: int32 [t], the question without history and query.
        """
        key = jax.random.key_data(jax.random.key(seed))
        codes, scores = self._map(
            answering.sample_codes, batches, num_prompts, tokens, unconditional, key, length=length, config=config,
            samples=samples,
        )  # fmt: skip
        return codes, scores

    def _map(
        self,
        function: Callable[..., tuple[jax.Array, ...]],
        batches: Iterable[PromptBatch],
        num_prompts: int,
        *constants: Any,
        facts: Callable[[PromptBatch], tuple[np.ndarray, ...]] = lambda _: (),
        **static: Any,
    ) -> tuple[np.ndarray, ...]:
        """Returns the results of `function` for all prompts in order. The next batch is sent while one is computed.

        Args:
          function: Takes the model, `answering.Prompts`, then `constants`, then `facts`; returns arrays [B, A, …].
          facts: Returns arrays [B, A, …] for a batch that it does not contain itself.
        """
        program = self._program(function, tuple(static.items()))
        constants = put_everywhere(self.mesh, constants)
        wholes: list[np.ndarray] = []

        def gather(answered: list[jax.Array]) -> None:
            *results, prompts = jax.device_get(answered)
            if not wholes:
                blank = [np.nan if part.dtype == np.float32 else -1 for part in results]
                shapes = [(num_prompts, *part.shape[1:]) for part in results]
                wholes.extend(np.full(s, b, p.dtype) for s, b, p in zip(shapes, blank, results, strict=True))
            used = prompts >= 0
            for whole, part in zip(wholes, results, strict=True):
                whole[prompts[used]] = part[used]

        before = None
        for batch in batches:
            arrays, prompts = self._to_device(batch.arrays), put_rows(self.mesh, batch.prompts)
            placed = tuple(put_rows(self.mesh, fact) for fact in facts(batch))
            with jax.set_mesh(self.mesh):  # determines kernels and sharding, as in training
                now = program(self.parameters, self.latents_ILC, arrays, prompts, constants, placed)
            if before is not None:
                gather(before)
            before = now
        if before is not None:
            gather(before)
        return tuple(wholes)

    def _program(self, function: Callable[..., Any], static: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        return program(self.graph, self.mesh, function, static)


@functools.lru_cache(maxsize=32)
def program(
    graph: nnx.GraphDef, mesh: Mesh, function: Callable[..., Any], static: tuple[tuple[str, Any], ...]
) -> Callable[..., list[jax.Array]]:
    """Compiles `function`; its results are flattened to [B * A, …], followed by the prompts' numbers. Predictors of
    models with one structure share the program, so that reopening a run does not compile again."""

    def run(
        parameters: tuple[Any, ...], latents_ILC: jax.Array | None, batch: Batch, prompts_BA: jax.Array,
        constants: tuple[Any, ...], facts: tuple[jax.Array, ...],
    ) -> list[jax.Array]:  # fmt: skip
        model = nnx.merge(graph, *parameters)
        latents_BNLC = None if latents_ILC is None else latents_ILC[batch.images]
        prompts = answering.Prompts(batch, latents_BNLC, prompts_BA)
        results = function(model, prompts, *constants, *facts, **dict(static))
        return [x.reshape(-1, *x.shape[2:]) for x in (*results, prompts_BA)]

    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(run, out_shardings=everywhere, compiler_options=compiler_options(mesh))


def targets_of(batch: PromptBatch, targets: np.ndarray) -> np.ndarray:
    """Returns the right items of a batch's prompts, 0 for empty slots: int32 [B, A]."""
    return np.where(batch.prompts >= 0, targets[np.maximum(batch.prompts, 0)], 0).astype(np.int32)


def seen_of(batch: PromptBatch, seen: Seen, num_items: int) -> np.ndarray:
    """Returns bitmaps of the items that a batch's users have seen, empty for empty slots: uint8 [B, A, w]."""
    nothing = np.empty(0, np.int32)
    rows = [seen(prompt) if prompt >= 0 else nothing for prompt in batch.prompts.ravel().tolist()]
    return seen_bitmap(rows, num_items).reshape(*batch.prompts.shape, -1)
