"""One training step as a pure function: state and batch in, state and metrics out."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from unimp_jax.batch import Batch
from unimp_jax.model.decoder import EmbeddingTables
from unimp_jax.objective import Head, ObjectiveConfig, chunked_loss, count_answers
from unimp_jax.sampled_softmax import draw_sample, sampled_head
from unimp_jax.training.guard import Guard, GuardConfig, judge
from unimp_jax.training.metrics import StepMetrics

FREE_ROWS = 2**32 - 1
"""Folded into a step's key for the dropout of free rows; no part of a batch and no layer has this number."""


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step.

    Attributes:
      step: int32 scalar, number of completed optimizer steps.
      trainable: The trained parameters.
      optimizer: The optimizer's state, for the trained parameters only.
      guard: The guard's state after the steps so far.
    """

    step: jax.Array
    trainable: Any
    optimizer: Any
    guard: Guard


def microbatches(batch: Any, count: int) -> Any:
    """Splits [B, …] into [count, B / count, …], each part with rows from the whole batch: devices keep their shares."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch)


def fold_in_all(key: jax.Array, count: int) -> jax.Array:
    """Returns a key for each number below `count`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def make_train_step(
    graph: nnx.GraphDef, optimizer: optax.GradientTransformation, *, objective: ObjectiveConfig, num_tasks: int,
    accumulate: int, seed: int, guard: GuardConfig, dropout_by_row: bool = False,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, StepMetrics]]:  # fmt: skip
    """Makes the function (state, frozen parameters, batch) -> (state, metrics), to be jitted with the state donated.

    Gradients are computed for `state.trainable` only. With `accumulate` > 1 the batch is processed in this number of
    parts, one after the other; the loss is still normalised over the whole batch. Dropout noise is drawn per part, or
    with `dropout_by_row` per row, which makes it independent of `accumulate`. A step that `guard` skips changes neither
    parameters nor optimizer state.
    """

    def losses(
        trainable: Any, frozen: Any, batch: Batch, num_answers: jax.Array, key: jax.Array, row_key: jax.Array
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        model = nnx.merge(graph, trainable, frozen)
        tables = model.embeddings.tables(row_key)
        hidden_BAD = model.answer_hidden(batch, dropout_key=key, tables=tables)
        targets_BA, weights_BA = batch.answer_targets, batch.answer_weights / num_answers
        gamma, chunk = objective.gamma, objective.chunk
        if objective.sampled_tokens:
            sample = draw_sample(jax.random.fold_in(row_key, 1), objective, tables)
            head, parameters, both_BAE = sampled_head(tables, hidden_BAD, targets_BA, sample)
            loss, plain_BA = chunked_loss(head, parameters, both_BAE, targets_BA, weights_BA, gamma, chunk, sample)
        else:
            head, parameters = whole_head(tables)
            loss, plain_BA = chunked_loss(head, parameters, hidden_BAD, targets_BA, weights_BA, gamma, chunk)
        return loss, per_task(plain_BA, batch, num_tasks)

    def train_step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, StepMetrics]:
        num_answers = count_answers(batch.answer_weights)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        row_key = jax.random.fold_in(key, jnp.uint32(FREE_ROWS))  # one per step, the same for all parts of the batch
        gradient_of = jax.value_and_grad(losses, has_aux=True)

        def part(total: Any, keyed: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            part_key, batch = keyed
            this = gradient_of(state.trainable, frozen, batch, num_answers, part_key, row_key)
            return jax.tree.map(jnp.add, total, this), None

        keys_B = fold_in_all(key, len(batch.tokens)) if dropout_by_row else None
        if accumulate == 1:
            noise = key if keys_B is None else keys_B
            (loss, tasks), gradient = gradient_of(state.trainable, frozen, batch, num_answers, noise, row_key)
        else:
            keys = fold_in_all(key, accumulate) if keys_B is None else microbatches(keys_B, accumulate)
            parts = (keys, microbatches(batch, accumulate))
            first = jax.tree.map(lambda x: x[0], parts)
            shapes = jax.eval_shape(gradient_of, state.trainable, frozen, first[1], num_answers, first[0], row_key)
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            ((loss, tasks), gradient), _ = jax.lax.scan(part, nothing, parts)
        norm = optax.global_norm(gradient)
        good, seen = judge(guard, state.guard, loss, norm)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.trainable)
        after = (optax.apply_updates(state.trainable, updates), optimizer_state)
        trainable, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), after, (state.trainable, state.optimizer)
        )
        entropy, answers = (jnp.where(good, x, 0) for x in tasks)
        metrics = StepMetrics(loss, norm, entropy, answers, ~good, seen.consecutive_skips)
        return TrainState(state.step + 1, trainable, optimizer_state, seen), metrics

    return train_step


def whole_head(tables: EmbeddingTables) -> tuple[Head, Any]:
    """Returns (a head over all tokens for `unimp_jax.objective.chunked_loss`, its parameters)."""
    graph, parameters = nnx.split(tables)
    return lambda state, hidden, targets, _: (nnx.merge(graph, state).logit_parts(hidden), targets), parameters


def per_task(values_BA: jax.Array, batch: Batch, num_tasks: int) -> tuple[jax.Array, jax.Array]:
    """Returns (sum of the values, number of answers) by task, float32 [tasks] each."""
    answers_BAK = jax.nn.one_hot(batch.answer_tasks, num_tasks) * (batch.answer_weights > 0)[..., None]
    values_BA = jnp.where(batch.answer_weights > 0, values_BA, 0.0)
    return jnp.einsum("ba,bak->k", values_BA, answers_BAK), answers_BAK.sum((0, 1))
