"""Trains SASRec, eSASRec and HSTU within a budget of steps or seconds, and keeps the best parameters by validation."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx

from data_pipelines.atomic import write_json
from data_pipelines.corpus import TEST, TRAIN, VALIDATION, Corpus
from data_pipelines.errors import DataError
from experiments.baselines.ranker import evaluate_ranker, validation_ndcg
from experiments.baselines.sasrec import SASRecConfig, SASRecRanker
from experiments.baselines.softmax import full_softmax, sampled_softmax
from experiments.config import DataConfig
from experiments.data import load_records
from unimp_jax.compiling import compiler_options
from unimp_jax.evaluation.bootstrap import interval
from unimp_jax.evaluation.metrics import ranking_metrics

Record = dict[str, float]


def train_sasrec(
    corpus: Corpus, config: SASRecConfig, log: Callable[[Record], None] = lambda record: None
) -> SASRecRanker:
    """Trains on the training interactions; without validation users, the last parameters are kept.

    The clock starts after compilation, and stops during validation.

    Args:
      log: called with each record of `SASRecRanker.curve`.

    Raises:
      DataError: the corpus has no transition to train on.
      ValueError: the loss is not finite.
    """
    ranker = SASRecRanker(corpus, config)
    batches = training_batches(corpus, config.model.max_length, config.batch_size, config.seed)
    optimizer = make_optimizer(config)
    parameters, key = ranker.parameters, jax.random.key(config.seed, impl="rbg")
    state = jax.jit(optimizer.init)(parameters)
    number, rate = np.int32(0), np.float32(0)
    step = make_step(ranker, optimizer).lower(parameters, state, next(batches), key, number, rate).compile()
    validate(ranker)

    best, stale, losses = -math.inf, 0, list[float]()
    now = time.process_time if config.clock == "processor" else time.perf_counter
    start, spent = now(), 0.0
    while spent < 1:
        rate = np.float32(learning_rate(config, spent))
        parameters, state, loss = step(parameters, state, next(batches), key, number, rate)
        number += np.int32(1)
        losses.append(float(loss))
        spent = spent_part(config, int(number), now() - start)
        if math.floor(spent * config.validations) == len(ranker.curve):
            continue
        if not np.isfinite(losses).all():
            raise ValueError(
                f"the loss of {ranker.name} is {losses[-1]} at step {number}; choose a learning_rate below {rate}"
            )
        kept, ranker.parameters = ranker.parameters, jax.tree.map(jnp.copy, parameters)
        seconds = now() - start
        score = validate(ranker)
        start = now() - seconds  # validation on the whole catalogue is not timed
        record = {
            "step": int(number),
            "seconds": seconds,
            "learning_rate": float(rate),
            "loss": float(np.mean(losses)),
            "ndcg10": score,
        }
        log(record)
        ranker.curve += [record] * (math.floor(spent * config.validations) - len(ranker.curve))
        losses.clear()
        if score < best:
            ranker.parameters = kept
        stale = stale + 1 if score <= best else 0
        if stale == config.patience:
            break
        best = max(best, score)
    return ranker


def trained_or_saved(corpus: Corpus, config: SASRecConfig, path: Path) -> SASRecRanker:
    """Returns the ranker that `path` holds if its training was the same one; otherwise trains it and saves it there.

    Raises:
      DataError, ValueError: as `train_sasrec`.
    """
    ranker = SASRecRanker(corpus, config)
    if not ranker.load(path):
        ranker = train_sasrec(corpus, config)
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            ranker.save(path)
    return ranker


def make_step(ranker: SASRecRanker, optimizer: optax.GradientTransformation) -> Any:
    """Returns the jitted step (parameters, state, batch, key, number, rate) -> (parameters, state, loss)."""

    config = ranker.config

    def loss_of(parameters: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        model = nnx.merge(ranker.graph, parameters)
        rngs = nnx.Rngs(dropout=key)
        hidden_BTD = model(batch["items"], batch["segments"], batch["positions"], batch["times"], rngs)
        if config.loss == "full":
            hidden_ND = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
            return full_softmax(hidden_ND, model.items[...], batch["targets"].reshape(-1))
        shape = len(hidden_BTD), config.negatives
        negatives_BK = jax.random.randint(rngs.dropout(), shape, 0, ranker.corpus.num_items)
        return sampled_softmax(
            hidden_BTD, model.items[...], batch["targets"], negatives_BK, corrected=config.logq_correction
        )

    def step(
        parameters: Any, state: Any, batch: dict[str, jax.Array], key: jax.Array, number: jax.Array, rate: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(parameters, batch, jax.random.fold_in(key, number))
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, jax.tree.map(lambda x: -rate * x, updates)), state, loss

    return jax.jit(step, donate_argnums=(0, 1), compiler_options=compiler_options())


def make_optimizer(config: SASRecConfig) -> optax.GradientTransformation:
    """Returns AdamW without a learning rate, which the step applies."""

    def matrices(parameters: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, parameters)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(config.weight_decay, mask=matrices),
    )


def learning_rate(config: SASRecConfig, spent: float) -> float:
    """Returns the learning rate for the used part of the budget: linear warm-up, then a cosine decay to 0."""
    if spent < config.warmup:
        return config.learning_rate * max(spent, 1e-3) / config.warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (spent - config.warmup) / (1 - config.warmup)))


def spent_part(config: SASRecConfig, steps: int, seconds: float) -> float:
    """Returns the used part of the tighter budget, 1 at its end."""
    by_steps = steps / config.steps if config.steps is not None else 0.0
    by_seconds = seconds / config.seconds if config.seconds is not None else 0.0
    return min(max(by_steps, by_seconds), 1.0)


def validate(ranker: SASRecRanker) -> float:
    """Returns the `validation_ndcg`; NaN if there are no validation users."""
    has_users = len(ranker.corpus.held_out(VALIDATION)[0]) > 0
    return validation_ndcg(ranker, ranker.corpus) if has_users else math.nan


# --- batches ---------------------------------------------------------------------------------------------------------


def training_rows(corpus: Corpus, length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns one epoch: every transition from a training item to the next, once, in rows without padding. All users
    follow one another, cut every `length` transitions.

    Users are in random order, so each epoch cuts their histories at other places. A piece of a history is a segment of
    its row and attends only to itself.

    Returns:
      `items`, `targets` (-1 in the last row's padding), `segments`, `positions` (from 0 in each piece), `times` (of the
      items, in seconds since 1970): int32 [R, T].

    Raises:
      DataError: no user has two training interactions.
    """
    num_train = np.add.reduceat(corpus.splits == TRAIN, corpus.offsets[:-1])
    users = rng.permutation(np.flatnonzero(num_train >= 2))
    if not len(users):
        raise DataError("no user has two training interactions, so there are no transitions to learn")
    lengths = num_train[users] - 1
    ends = np.cumsum(lengths)
    events = np.arange(ends[-1]) + np.repeat(corpus.offsets[users] - (ends - lengths), lengths)
    segments = np.repeat(np.arange(len(users)), lengths)

    def rows(values: np.ndarray, padding: int) -> np.ndarray:
        return np.pad(values, (0, -len(values) % length), constant_values=padding).reshape(-1, length).astype(np.int32)

    segments_RT = rows(segments, -1)
    steps = np.arange(length)
    begins_RT = np.diff(segments_RT, axis=1, prepend=-2) != 0
    positions_RT = steps - np.maximum.accumulate(np.where(begins_RT, steps, 0), axis=1)
    return {
        "items": rows(corpus.items[events], 0),
        "targets": rows(corpus.items[events + 1], -1),
        "segments": segments_RT,
        "positions": positions_RT.astype(np.int32),
        "times": rows(corpus.times[events], 0),
    }


def training_batches(corpus: Corpus, length: int, rows: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of `rows` random rows, epoch after epoch; an epoch's last batch is filled with its first rows."""
    rng = np.random.default_rng(seed)
    while True:
        epoch = training_rows(corpus, length, rng)
        num_rows = len(epoch["items"])
        order = np.resize(rng.permutation(num_rows), -(-num_rows // rows) * rows).reshape(-1, rows)
        for chosen in order:
            yield {name: values[chosen] for name, values in epoch.items()}


def sasrec_command(
    folder: tyro.conf.Positional[Path],
    data: DataConfig = DataConfig("movielens_1m"),
    config: tyro.conf.OmitArgPrefixes[SASRecConfig] = SASRecConfig(),
) -> None:
    """Train a sequential baseline alone, for a comparison with equal training time.

    SASRec by default; other values of `--block` and `--loss` make eSASRec or HSTU of it.

    Args:
      folder: folder for the training curve, the parameters and the test ranks.
      data: the data to train on.
    """
    corpus = load_records(data).corpus
    if not len(corpus.held_out(TEST)[0]):
        raise DataError(f"{data.source} has no test questions, so nothing can be ranked")
    folder.mkdir(parents=True, exist_ok=True)  # reports an unusable folder before the training

    def say(record: Record) -> None:
        print(", ".join(f"{name} {value:.4g}" for name, value in record.items()), flush=True)

    ranker = train_sasrec(corpus, config, say)
    ranker.save(folder / "parameters.npz")
    write_json(folder / "trained.json", ranker.trained)
    outcome: dict[str, Any] = evaluate_ranker(ranker, corpus, "test")
    np.savez_compressed(folder / "test.npz", **outcome)
    for kind in ("filtered", "unfiltered"):
        metrics = {name: interval(values) for name, values in ranking_metrics(outcome[kind]).items()}
        print(f"seen {kind}: " + ", ".join(f"{n} {i.mean:.4f} [{i.bounds(', ')}]" for n, i in metrics.items()))
