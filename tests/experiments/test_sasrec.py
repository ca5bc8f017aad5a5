"""SASRec, eSASRec and HSTU: blocks against formulas written out, losses against plain ones, and what they learn."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from data_pipelines.corpus import TRAIN, VALIDATION, Corpus
from experiments.baselines import sasrec_training
from experiments.baselines.ranker import evaluate_ranker
from experiments.baselines.sasrec import SASRecConfig, SASRecRanker, rival_config
from experiments.baselines.sasrec_model import SASRec, SASRecModelConfig
from experiments.baselines.sasrec_training import (
    learning_rate,
    spent_part,
    train_sasrec,
    trained_or_saved,
    training_batches,
    training_rows,
)
from experiments.baselines.softmax import full_softmax, sampled_softmax
from tests.data_pipelines.small import circle, small_corpus

RIVALS = ("sasrec", "esasrec", "hstu")
SMALL = SASRecModelConfig(max_length=8, width=16, layers=1, dropout=0.1)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return small_corpus(num_items=20, num_users=40)


def small(rival: str, **changes) -> SASRecConfig:
    return rival_config(rival, SASRecConfig(model=dataclasses.replace(SMALL, **changes)))


def test_rows_hold_every_training_transition_once_and_no_padding_but_the_last(corpus: Corpus) -> None:
    rows = training_rows(corpus, 8, np.random.default_rng(0))
    used = rows["targets"] >= 0
    assert used.ravel()[: used.sum()].all()
    assert used.size - used.sum() < 8
    found = sorted(zip(rows["items"][used].tolist(), rows["targets"][used].tolist(), strict=True))
    right = []
    for user in range(corpus.num_users):
        events = range(corpus.offsets[user], corpus.offsets[user + 1])
        train = [int(corpus.items[event]) for event in events if corpus.splits[event] == TRAIN]
        right += itertools.pairwise(train)
    assert found == sorted(right)
    for items, targets, segments, positions, _ in zip(*rows.values(), strict=True):
        for place in range(1, len(items)):
            if targets[place] < 0:
                continue
            if segments[place] == segments[place - 1]:
                assert positions[place] == positions[place - 1] + 1
                assert items[place] == targets[place - 1]
            else:
                assert positions[place] == 0
        assert positions[0] == 0


def test_batches_are_of_one_shape_and_repeatable(corpus: Corpus) -> None:
    one, other = training_batches(corpus, 8, 16, seed=3), training_batches(corpus, 8, 16, seed=3)
    for _ in range(6):
        batch = next(one)
        assert {x.shape for x in batch.values()} == {(16, 8)}
        assert all((x == y).all() for x, y in zip(batch.values(), next(other).values(), strict=True))


@pytest.mark.parametrize("positions", [1024, 16 * 50, 521])
def test_full_softmax_is_the_plain_cross_entropy_with_its_gradients(positions: int) -> None:
    """Against optax over whole logits, in float32: 1e-5; of any number of positions."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, items = jax.random.normal(keys[0], (positions, 8)), 3 * jax.random.normal(keys[1], (30, 8))
    targets = jax.random.randint(keys[2], (positions,), -1, 30)

    def plain(hidden: jax.Array, items: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ items.T, jnp.maximum(targets, 0))
        return jnp.where(targets >= 0, losses, 0).sum() / (targets >= 0).sum()

    loss, gradients = jax.jit(jax.value_and_grad(lambda *x: 2 * full_softmax(*x, targets), argnums=(0, 1)))(
        hidden, items
    )
    right, right_gradients = jax.jit(jax.value_and_grad(lambda *x: 2 * plain(*x), argnums=(0, 1)))(hidden, items)
    np.testing.assert_allclose(loss, right, rtol=1e-5)
    for one, other in zip(gradients, right_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def softmax_example(positions: int = 12) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(hidden [2, T, 8], items [30, 8], targets [2, T], some of which are missing)."""
    keys = jax.random.split(jax.random.key(1), 3)
    hidden, items = jax.random.normal(keys[0], (2, positions, 8)), jax.random.normal(keys[1], (30, 8))
    return hidden, items, jax.random.randint(keys[2], (2, positions), -1, 30)


def test_sampled_softmax_is_its_formula() -> None:
    hidden, items, targets = softmax_example()
    all_scores = np.asarray(hidden, np.float64) @ np.asarray(items, np.float64).T
    negatives = jax.random.randint(jax.random.key(2), (2, 9), 0, 30)
    for corrected, weight in ((True, 30 / 9), (False, 1.0)):
        losses = []
        for row, place in zip(*np.nonzero(np.asarray(targets) >= 0), strict=True):
            scores, target = all_scores[row, place], int(targets[row, place])
            others = sum(weight * np.exp(scores[one]) for one in np.asarray(negatives)[row].tolist() if one != target)
            losses.append(-np.log(np.exp(scores[target]) / (np.exp(scores[target]) + others)))
        found = jax.jit(sampled_softmax, static_argnames="corrected")(
            hidden, items, targets, negatives, corrected=corrected
        )
        np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)


def test_sampled_softmax_with_every_item_is_the_full_one_with_its_gradients() -> None:
    hidden, items, targets = softmax_example()
    everything = jnp.tile(jnp.arange(30), (2, 1))

    def full(hidden: jax.Array, items: jax.Array) -> jax.Array:
        return full_softmax(hidden.reshape(-1, 8), items, targets.reshape(-1))

    def sampled(hidden: jax.Array, items: jax.Array) -> jax.Array:
        return sampled_softmax(hidden, items, targets, everything, corrected=True)

    right, right_gradients = jax.jit(jax.value_and_grad(full, argnums=(0, 1)))(hidden, items)
    loss, gradients = jax.jit(jax.value_and_grad(sampled, argnums=(0, 1)))(hidden, items)
    np.testing.assert_allclose(loss, right, rtol=1e-5)
    for one, other in zip(gradients, right_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_corrected_loss_and_its_gradient_are_the_full_ones_on_average() -> None:
    """Over 2,000 draws of 64 negatives; what remains is chance and the bias of a logarithm."""
    hidden, items, targets = softmax_example()
    items = 0.5 * items

    def full(items: jax.Array) -> jax.Array:
        return full_softmax(hidden.reshape(-1, 8), items, targets.reshape(-1))

    def mean_sampled(items: jax.Array, corrected: bool) -> jax.Array:
        draws = jax.random.randint(jax.random.key(3), (2000, 2, 64), 0, 30)
        losses = jax.vmap(lambda one: sampled_softmax(hidden, items, targets, one, corrected=corrected))(draws)
        return losses.mean()

    right, right_gradient = jax.jit(jax.value_and_grad(full))(items)
    loss, gradient = jax.jit(jax.value_and_grad(mean_sampled), static_argnums=1)(items, True)
    assert abs(loss - right) < 0.03
    assert jnp.linalg.norm(gradient - right_gradient) < 0.05 * jnp.linalg.norm(right_gradient)
    assert mean_sampled(items, False) > right + 0.3, "64 of 30 items weigh too much where nothing corrects for it"


def test_the_parameters_of_a_transformer_have_the_names_that_saved_ones_have() -> None:
    model = nnx.eval_shape(lambda: SASRec(SMALL, 20, rngs=nnx.Rngs(0)))
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))}
    layers = {"norm_attention": "scale bias", "norm_mlp": "scale bias", "qkv": "kernel", "out": "kernel"}
    layers |= {"up": "kernel bias", "down": "kernel bias"}
    block = {f"['blocks'][0]['{layer}']['{part}']" for layer, parts in layers.items() for part in parts.split()}
    assert {name.removesuffix(".value") for name in names} == {
        "['items']", "['positions']", "['norm']['scale']", "['norm']['bias']", *block
    }  # fmt: skip


def norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def affine_norm(x: np.ndarray, layer) -> np.ndarray:
    return norm(x) * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])


def linear(x: np.ndarray, layer) -> np.ndarray:
    return x @ np.asarray(layer.kernel[...]) + (0 if layer.bias is None else np.asarray(layer.bias[...]))


def plain_ligr(block, x: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The equations of a gated transformer block for one history [T, D], a position and a head after the other."""
    T, D = x.shape
    h = D // block.heads
    qkv = [np.split(linear(affine_norm(row, block.norm_attention), block.qkv), 3) for row in x]
    out = []
    for t in range(T):
        attended = []
        for head in range(block.heads):
            part = slice(head * h, (head + 1) * h)
            logits = np.array([qkv[t][0][part] @ qkv[s][1][part] / np.sqrt(h) for s in range(t + 1)])
            weights = np.exp(logits) / np.exp(logits).sum()
            attended.append(sum(weight * qkv[s][2][part] for s, weight in enumerate(weights)))
        y = x[t] + sigmoid(linear(x[t], block.gate_attention)) * linear(np.concatenate(attended), block.out)
        inner = affine_norm(y, block.norm_mlp)
        up = linear(inner, block.up)
        swiglu = linear(up * sigmoid(up) * linear(inner, block.up_linear), block.down)
        out.append(y + sigmoid(linear(y, block.gate_mlp)) * swiglu)
    return np.array(out)


def plain_hstu(block, x: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Equations 1 to 3 of HSTU's paper for one history [T, D], a position and a head after the other."""
    T, D = x.shape
    h = D // block.heads
    uvqk = [linear(norm(row), block.uvqk) for row in x]
    uvqk = [np.split(row * sigmoid(row), 4) for row in uvqk]
    distance_bias, time_bias = np.asarray(block.distance_bias[...]), np.asarray(block.time_bias[...])
    out = []
    for t in range(T):
        attended = np.zeros(D)
        for head, s in itertools.product(range(block.heads), range(t + 1)):
            part = slice(head * h, (head + 1) * h)
            bucket = int(np.log(max(abs(int(times[t]) - int(times[s])), 1)) / 0.301)
            score = uvqk[t][2][part] @ uvqk[s][3][part] + distance_bias[t - s] + time_bias[bucket]
            attended[part] += score * sigmoid(score) / block.max_length * uvqk[s][1][part]
        out.append(x[t] + linear(uvqk[t][0] * norm(attended), block.out))
    return np.array(out)


@pytest.mark.parametrize(("rival", "plain"), [("esasrec", plain_ligr), ("hstu", plain_hstu)])
def test_a_block_is_its_formula(rival: str, plain) -> None:
    """In float32: 1e-5. Parameters are random, so that no gate is a half and no bias is nothing."""
    model = SASRec(small(rival).model, 20, rngs=nnx.Rngs(0))
    block = model.blocks[0]
    rng = np.random.default_rng(0)
    for _, leaf in nnx.iter_graph(block):
        if isinstance(leaf, nnx.Param):
            leaf[...] = jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), jnp.float32)
    x = rng.normal(size=(2, 6, 16)).astype(np.float32)
    times = np.array([[0, 1, 50, 3_000, 3_000, 900_000_000], [5, 5, 5, 6, 9, 1_500_000_000]], np.int32)
    mask = np.broadcast_to(np.tri(6, dtype=bool), (2, 6, 6))
    found = nnx.jit(block)(jnp.asarray(x), jnp.asarray(mask), jnp.asarray(times), None)
    for row in range(2):
        np.testing.assert_allclose(found[row], plain(block, x[row].astype(np.float64), times[row]), atol=1e-5)


@pytest.mark.parametrize("rival", RIVALS)
def test_neither_the_future_nor_other_segments_are_seen(corpus: Corpus, rival: str) -> None:
    ranker = SASRecRanker(corpus, small(rival))
    model = nnx.jit(nnx.merge(ranker.graph, ranker.parameters))
    items = np.arange(8, dtype=np.int32)[None]
    segments = np.array([[0, 0, 0, 1, 1, 1, 1, 1]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 4]], np.int32)
    times = 1000 * items
    before = np.asarray(model(items, segments, positions, times))
    for changed, unmoved in ((6, [0, 1, 2, 3, 4, 5]), (1, [0, 3, 4, 5, 6, 7])):
        others, later = items.copy(), times.copy()
        others[0, changed], later[0, changed] = 15, times[0, changed] + 500
        after = np.asarray(model(others, segments, positions, later))
        np.testing.assert_array_equal(after[0, unmoved], before[0, unmoved])
        moved = [place for place in range(8) if place not in unmoved]
        assert (np.abs(after - before)[0, moved].max(axis=1) > 1e-4).all()


@pytest.mark.parametrize("rival", RIVALS)
def test_scores_do_not_depend_on_padding(corpus: Corpus, rival: str) -> None:
    """A short history scores as the row of just its items, 1e-5 for the order of sums."""
    ranker = SASRecRanker(corpus, small(rival, embedding_std=0.3))
    users, positions = corpus.held_out(VALIDATION)
    found = ranker.scores(users, positions)
    model = nnx.jit(nnx.merge(ranker.graph, ranker.parameters))
    items = ranker.parameters["items"][...]
    for row, user, position in list(zip(found, users, positions, strict=True))[:2]:
        history = corpus.history(user, position)[None, -8:]
        start = corpus.offsets[user]
        times = corpus.times[start : start + position][None, -8:].astype(np.int32)
        steps = np.arange(history.shape[1])[None]
        hidden = model(history, np.zeros_like(history), steps, times)[0, -1]
        np.testing.assert_allclose(row, items @ hidden, atol=1e-5)


def test_sasrec_learns_the_circle_by_steps_and_by_seconds() -> None:
    corpus = circle()
    config = SASRecConfig(model=SMALL, steps=150, seconds=60.0, batch_size=8, learning_rate=0.02, validations=15)
    ranker = train_sasrec(corpus, config)
    assert (evaluate_ranker(ranker, corpus, "test")["unfiltered"] == 1).mean() > 0.9
    assert [record["step"] for record in ranker.curve] == [*range(10, 151, 10)]
    ranks = evaluate_ranker(ranker, corpus, "validation")["filtered"]
    ndcg = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0).mean()
    assert ndcg == pytest.approx(max(record["ndcg10"] for record in ranker.curve))
    short = train_sasrec(corpus, dataclasses.replace(config, steps=None, seconds=0.5))
    assert short.curve[-1]["learning_rate"] < 0.1 * config.learning_rate
    assert 0.5 <= short.curve[-1]["seconds"] < 30


def test_a_rival_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another evaluation reads it, unless the options, the interactions or the file are other ones."""
    corpus, config, file = (
        circle(),
        SASRecConfig(model=SMALL, steps=4, batch_size=8, validations=2),
        tmp_path / "a/b.npz",
    )
    first = trained_or_saved(corpus, config, file)
    users, positions = corpus.held_out(VALIDATION)
    with monkeypatch.context() as patch:
        patch.setattr(sasrec_training, "train_sasrec", lambda *_: pytest.fail("trained again"))
        again = trained_or_saved(corpus, config, file)
    assert again.curve == first.curve
    np.testing.assert_array_equal(again.scores(users, positions), first.scores(users, positions))

    times = dataclasses.replace(corpus, times=corpus.times + 1)
    for other in (SASRecRanker(corpus, dataclasses.replace(config, steps=5)), SASRecRanker(times, config)):
        before = other.scores(users, positions)
        assert not other.load(file)
        np.testing.assert_array_equal(other.scores(users, positions), before)
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-30], whole.replace(b"interactions", b"interchanged")):
        file.write_bytes(damaged)
        again = trained_or_saved(corpus, config, file)
        assert [one["loss"] for one in again.curve] == [one["loss"] for one in first.curve]  # the same seed
        assert SASRecRanker(corpus, config).load(file)


@pytest.mark.parametrize("rival", ["esasrec", "hstu"])
def test_successors_learn_the_circle(rival: str) -> None:
    corpus = circle()
    config = SASRecConfig(model=SMALL, steps=100, batch_size=8, negatives=8, learning_rate=0.02, validations=2)
    ranker = train_sasrec(corpus, rival_config(rival, config))
    assert ranker.name == {"esasrec": "eSASRec", "hstu": "HSTU"}[rival]
    assert (evaluate_ranker(ranker, corpus, "test")["unfiltered"] == 1).mean() > 0.9


def test_training_ends_after_validations_without_a_better_one() -> None:
    """With a rate of nearly nothing all validations are alike."""
    config = SASRecConfig(model=SMALL, steps=50, batch_size=8, learning_rate=1e-12, validations=10, patience=3)
    assert [record["step"] for record in train_sasrec(circle(), config).curve] == [5, 10, 15, 20]


def test_the_rate_follows_the_tighter_budget() -> None:
    config = SASRecConfig(steps=100, seconds=10.0, learning_rate=1.0, warmup=0.1)
    assert spent_part(config, 50, 1.0) == 0.5
    assert spent_part(config, 10, 8.0) == 0.8
    assert spent_part(config, 10, 80.0) == 1
    assert learning_rate(config, 0.1) == 1
    assert learning_rate(config, 0.05) == pytest.approx(0.5)
    assert learning_rate(config, 0.55) == pytest.approx(0.5)
    assert learning_rate(config, 1.0) == pytest.approx(0)
