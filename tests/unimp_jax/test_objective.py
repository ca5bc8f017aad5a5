"""The loss against the reference's own numbers and against its plainest version."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data_pipelines.answers import answer_mask
from unimp_jax.objective import chunked_loss, count_answers, token_losses

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "unimp_loss.npz"


def itself(_, logits, targets, constants):
    """A head whose logits are what it is given."""
    return logits, targets


def loss_of(logits, targets, weights, gamma):
    """The mean of weighted losses over the answers of a batch."""
    return chunked_loss(itself, {}, logits, targets, weights / count_answers(weights), gamma, 4)[0]


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN))


def test_labels_equal_the_reference(golden):
    tokens = golden["input_ids"]
    mask = answer_mask(
        tokens,
        answer=golden["answer_id"],
        end_of_chunk=golden["endofchunk_id"],
        eos=golden["eos_id"],
        never=(golden["media_id"], golden["pad_id"]),
    )
    np.testing.assert_array_equal(np.where(mask, tokens, -100), golden["labels"])


@pytest.mark.parametrize(("name", "gamma"), [("plain", 0.0), ("gamma_0.5", 0.5), ("gamma_2.0", 2.0)])
def test_losses_and_gradients_equal_the_reference(golden, name, gamma):
    labels = golden["labels"][:, 1:]
    weights = np.where(labels != -100, golden["task_weights"][:, None], 0).astype(np.float32)

    def loss(logits):
        return loss_of(logits[:, :-1], np.maximum(labels, 0), weights, gamma)

    value, gradient = jax.jit(jax.value_and_grad(loss))(golden["logits"])
    np.testing.assert_allclose(value, golden[f"loss_{name}"], rtol=1e-5)
    np.testing.assert_allclose(gradient, golden[f"grad_{name}"], rtol=1e-5, atol=1e-5)


def test_micro_batches_add_up_to_the_whole(golden):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 5, 11)).astype(np.float32)
    targets = rng.integers(11, size=(8, 5))
    weights = rng.choice([0.0, 1.0, 2.0], size=(8, 5)).astype(np.float32)
    shares = weights / count_answers(weights)
    loss = jax.jit(lambda *batch: chunked_loss(itself, {}, *batch, 2.0, 4)[0])
    parts = [loss(logits[i : i + 2], targets[i : i + 2], shares[i : i + 2]) for i in range(0, 8, 2)]
    np.testing.assert_allclose(sum(parts), loss(logits, targets, shares), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_certain_answers_cost_nothing_and_pull_nowhere(gamma):
    logits = jnp.array([[100.0, 0.0, 0.0]])
    value, gradient = jax.jit(jax.value_and_grad(lambda x: token_losses(x, jnp.array([0]), gamma)[0].sum()))(logits)
    assert abs(value) < 1e-6
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 1e-6


def test_an_empty_slot_counts_nothing_even_if_its_logits_are_not_finite():
    logits = jnp.array([[[0.0, 1.0], [jnp.inf, jnp.nan]]])
    weights = jnp.array([[1.0, 0.0]])
    value = jax.jit(lambda logits: loss_of(logits, jnp.array([[1, 0]]), weights, 2.0))(logits)
    assert np.isfinite(value)


@pytest.mark.parametrize("chunk", [1, 4, 5, 12, 100])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("parts", [1, 3])
def test_chunks_and_parts_give_the_loss_and_gradients_of_the_whole(chunk, gamma, parts):
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(3, 12, 7)), jnp.float32)
    head = {"table": jnp.asarray(rng.normal(size=(17, 7)), jnp.float32), "bias": jnp.zeros(17)}
    targets = jnp.asarray(rng.integers(17, size=(3, 12)))
    weights = jnp.asarray(rng.choice([0.0, 1.0, 2.0], size=(3, 12)), jnp.float32)

    def logits(head, hidden):
        return hidden @ head["table"].T + head["bias"]

    def scored(head, hidden, targets, _):
        whole = logits(head, hidden)
        return (whole if parts == 1 else jnp.split(whole, [3, 11], axis=-1)), targets

    def plain(head, hidden):
        return (weights * token_losses(logits(head, hidden), targets, gamma)[0]).sum() / count_answers(weights)

    def chunked(head, hidden):
        return chunked_loss(scored, head, hidden, targets, weights / count_answers(weights), gamma, chunk)[0]

    @jax.jit
    def both(head, hidden):
        whole = jax.value_and_grad(plain, argnums=(0, 1))(head, hidden)
        in_chunks = jax.value_and_grad(lambda *x: 1.0 * chunked(*x), argnums=(0, 1))(head, hidden)
        entropy = chunked_loss(scored, head, hidden, targets, weights, gamma, chunk)[1]
        return whole, in_chunks, entropy, token_losses(logits(head, hidden), targets, 0.0)[1]

    whole, in_chunks, entropy, whole_entropy = both(head, hidden)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(in_chunks), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(entropy, whole_entropy, rtol=1e-5, atol=1e-6)
