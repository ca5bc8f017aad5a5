"""Measures table size, loss and ranking of catalogues of millions of items, a token each, on eight devices of a host.

XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
    python -m experiments.benchmarks.catalogue_size --items 1000000 10000000
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks.gpu_step import timed
from unimp_jax.evaluation.chunked_ranking import rank_by_chunks
from unimp_jax.model.decoder import DecoderConfig, Embeddings, EmbeddingTables
from unimp_jax.model.layers import DTypes
from unimp_jax.objective import ObjectiveConfig, chunked_loss
from unimp_jax.sampled_softmax import draw_sample, sampled_head
from unimp_jax.sharding import MeshConfig, make_mesh, param_shardings
from unimp_jax.training.step import whole_head

BASE, ROWS, ANSWERS, CHUNK = 512, 4, 16, 4


def main(items: tuple[int, ...] = (1_000_000,), width: int = 16, sampled: int = 8192, whole: bool = True) -> None:
    """Measures each catalogue.

    Args:
      items: number of items in each catalogue.
      width: width of a row of its table.
      sampled: number of new tokens in the sampled softmax.
      whole: whether the loss on eight devices is compared with that on one.
    """
    for count in items:
        meshes = [make_mesh(MeshConfig(data=2, tensor=4)), *[make_mesh(MeshConfig(), jax.devices()[:1])] * whole]
        losses = [measure(mesh, count, width, sampled) for mesh in meshes]
        if whole:
            print(f"  loss on eight devices {losses[0]:.6f}, on one {losses[1]:.6f}")


def measure(mesh: Mesh, items: int, width: int, sampled: int) -> float:
    """Prints the measurements on a mesh, and returns the loss over all tokens."""
    with jax.set_mesh(mesh):
        graph, state = new_tables(mesh, items, width)
        rows = NamedSharding(mesh, PartitionSpec("data"))
        rng = np.random.default_rng(0)
        hidden_BAD = jax.device_put(rng.normal(size=(ROWS, ANSWERS, width)).astype(np.float32), rows)
        targets_BA = jax.device_put(rng.integers(BASE, BASE + items, (ROWS, ANSWERS)).astype(np.int32), rows)
        optimizer = optax.adam(1e-3)
        moments = jax.jit(optimizer.init)(state)

        def step(state: Any, moments: Any, objective: ObjectiveConfig) -> tuple[jax.Array, Any, Any]:
            def loss(state: Any) -> jax.Array:
                tables, weights = nnx.merge(graph, state).tables(), jnp.full((ROWS, ANSWERS), 1 / (ROWS * ANSWERS))
                if not objective.sampled_tokens:
                    head, parameters = whole_head(tables)
                    return chunked_loss(head, parameters, hidden_BAD, targets_BA, weights, 0.0, CHUNK)[0]
                sample = draw_sample(jax.random.key(0), objective, tables)
                head, parameters, both = sampled_head(tables, hidden_BAD, targets_BA, sample)
                return chunked_loss(head, parameters, both, targets_BA, weights, 0.0, CHUNK, sample)[0]

            value, gradient = jax.value_and_grad(loss)(state)
            updates, moments = optimizer.update(gradient, moments, state)
            return value, optax.apply_updates(state, updates), moments

        held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
        print(f"{items:,} items, {mesh.size} devices: {held / 1e6:,.1f} MB of tables per device")
        values = []
        for name, objective in {"all": ObjectiveConfig(), "sampled": ObjectiveConfig(sampled_tokens=sampled)}.items():
            one = jax.jit(functools.partial(step, objective=objective))
            seconds, (value, *_) = timed(one, state, moments, times=1)
            print(f"  loss, gradient and update, {name} tokens: {seconds:.2f} s, loss {float(value):.4f}")
            values.append(float(value))

        def ranked(state: Any) -> tuple[jax.Array, ...]:
            tables: EmbeddingTables = nnx.merge(graph, state).tables()
            hidden_MD, targets_M = hidden_BAD.reshape(-1, width), targets_BA.reshape(-1) - BASE
            seen_Mw = jnp.zeros((len(hidden_MD), -(-items // 8)), jnp.uint8)
            tokens_I = BASE + jnp.arange(items)
            return rank_by_chunks(tables, hidden_MD, tokens_I, targets_M, seen_Mw, k=10, chunk=2**18)

        seconds, _ = timed(jax.jit(ranked), state, times=1)
        print(f"  {ROWS * ANSWERS} prompts ranked: {seconds:.2f} s")
    return values[0]


def new_tables(mesh: Mesh, items: int, width: int) -> tuple[Any, Any]:
    """Returns the embeddings of a tied decoder, initialised directly in their shardings."""
    config = DecoderConfig(vocab_size=BASE, new_tokens=items, width=width, heads=1, tie_embeddings=True)

    def make() -> Any:
        return nnx.state(Embeddings(config, DTypes(), nnx.Rngs(0)))

    graph, shapes = nnx.split(nnx.eval_shape(lambda: Embeddings(config, DTypes(), nnx.Rngs(0))))
    return graph, jax.jit(make, out_shardings=param_shardings(shapes, mesh))()


if __name__ == "__main__":
    tyro.cli(main)
