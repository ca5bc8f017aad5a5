"""Training SASRec within a budget of steps or seconds, keeping what is best on the validation users."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from data_pipelines.corpus import VALIDATION, Corpus
from experiments.baselines.full_softmax import full_softmax
from experiments.baselines.ranker import evaluate_ranker
from experiments.baselines.sasrec import SASRecConfig, SASRecRanker
from experiments.baselines.sequences import training_batches
from unimp_jax.evaluation.metrics import ranking_metrics

Record = dict[str, float]


def train_sasrec(
    corpus: Corpus, config: SASRecConfig, log: Callable[[Record], None] = lambda record: None
) -> SASRecRanker:
    """Trains on the training interactions; without validation users the last parameters are kept.

    The clock starts when all is compiled.

    Args:
      log: is given each record of `SASRecRanker.curve` as it comes.

    Raises:
      DataError: the corpus has no transition to train on.
      ValueError: the loss is no longer finite.
    """
    ranker = SASRecRanker(corpus, config)
    batches = training_batches(corpus, config.model.max_length, config.batch_size, config.seed)
    optimizer = make_optimizer(config)
    parameters, key = ranker.parameters, jax.random.key(config.seed, impl="rbg")
    state = jax.jit(optimizer.init)(parameters)
    number, rate = np.int32(0), np.float32(0)
    step = make_step(ranker, optimizer).lower(parameters, state, next(batches), key, number, rate).compile()
    validate(ranker)

    best, losses = -math.inf, list[float]()
    start, spent = time.perf_counter(), 0.0
    while spent < 1:
        rate = np.float32(learning_rate(config, spent))
        parameters, state, loss = step(parameters, state, next(batches), key, number, rate)
        number += np.int32(1)
        losses.append(float(loss))
        spent = spent_part(config, int(number), time.perf_counter() - start)
        if math.floor(spent * config.validations) == len(ranker.curve):
            continue
        if not np.isfinite(losses).all():
            raise ValueError(f"SASRec's loss is {losses[-1]} at step {number}: choose a learning_rate below {rate}")
        kept, ranker.parameters = ranker.parameters, jax.tree.map(jnp.copy, parameters)
        score = validate(ranker)
        record = {
            "step": int(number),
            "seconds": time.perf_counter() - start,
            "learning_rate": float(rate),
            "loss": float(np.mean(losses)),
            "ndcg10": score,
        }
        log(record)
        ranker.curve += [record] * (math.floor(spent * config.validations) - len(ranker.curve))
        losses.clear()
        if score < best:
            ranker.parameters = kept
        best = max(best, score)
    return ranker


def make_step(ranker: SASRecRanker, optimizer: optax.GradientTransformation) -> Any:
    """(parameters, state, batch, key, number, rate) -> (parameters, state, loss), jitted, the first two donated."""

    def loss_of(parameters: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        model = nnx.merge(ranker.graph, parameters)
        hidden_BTD = model(batch["items"], batch["segments"], batch["positions"], nnx.Rngs(dropout=key))
        hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
        return full_softmax(hidden_ND, model.items[...], batch["targets"].reshape(-1))

    def step(
        parameters: Any, state: Any, batch: dict[str, jax.Array], key: jax.Array, number: jax.Array, rate: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(parameters, batch, jax.random.fold_in(key, number))
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, jax.tree.map(lambda x: -rate * x, updates)), state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def make_optimizer(config: SASRecConfig) -> optax.GradientTransformation:
    """AdamW without its rate, which the step multiplies by."""

    def matrices(parameters: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, parameters)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(config.weight_decay, mask=matrices),
    )


def learning_rate(config: SASRecConfig, spent: float) -> float:
    """Linear warm-up, then a cosine to 0, by the part of the budget that is spent."""
    if spent < config.warmup:
        return config.learning_rate * max(spent, 1e-3) / config.warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (spent - config.warmup) / (1 - config.warmup)))


def spent_part(config: SASRecConfig, steps: int, seconds: float) -> float:
    """How much of the tighter budget is spent, 1 at its end."""
    by_steps = steps / config.steps if config.steps is not None else 0.0
    by_seconds = seconds / config.seconds if config.seconds is not None else 0.0
    return min(max(by_steps, by_seconds), 1.0)


def validate(ranker: SASRecRanker) -> float:
    """NDCG@10 of the validation users, seen items filtered; NaN where there are none."""
    if not len(ranker.corpus.held_out(VALIDATION)[0]):
        return math.nan
    ranks = evaluate_ranker(ranker, ranker.corpus, "validation")["filtered"]
    return float(ranking_metrics(ranks)["NDCG@10"].mean())
