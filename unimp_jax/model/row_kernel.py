"""Attention over whole rows as a Pallas kernel for TPUs; all keys of a row are in the chip's on-chip memory at once.

Arrays are read and written in the layout of the linear layers, [rows, tokens, channels], with a few heads side by side
in each block, so that nothing is transposed in main memory. Scores have keys along the rows and queries along the
columns: the softmax reduces over rows, and none of the five products of a backward pass has a large operand to
transpose.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from unimp_jax.model.axes import Name, fitting_spec, platform, splits

LANES = 128
"""Channels or queries that a TPU processes at a time; narrower ones take as long."""
TILES = (512, 256, 128)
"""Tile sizes for queries and keys of rows that are longer than the first."""
MASKED = -1e30
VMEM_BYTES = 64 * 2**20
"""On-chip memory that a kernel may use; TPUs v5e, v5p and v6e have more."""


class Segments(NamedTuple):
    """Int32 segment ids: a query attends to the keys with its id, and to none if its id is 0."""

    queries_BT: jax.Array
    keys_BS: jax.Array


class Alibi(NamedTuple):
    """ALiBi, which adds slope times key position to the scores; the softmax is invariant to the query's own position.

    Attributes:
      positions_BS: int32, positions of keys.
      slopes_H: float32, slopes of heads.
    """

    positions_BS: jax.Array
    slopes_H: jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class _Form:
    """Static parameters that a kernel is compiled for; `shared` is the number of query heads that share a key head."""

    width: int
    shared: int
    causal: bool
    masked: bool
    alibi: bool


def fits(q_BTHh: jax.Array, k_BSKh: jax.Array) -> bool:
    """Whether rows can be tiled and are not split over devices, and heads fill all lanes if they share a key head."""
    (T, H, h), (S, K) = q_BTHh.shape[1:], k_BSKh.shape[1:3]
    return splits("sequence") == 1 and _tile(T) * _tile(S) > 0 and (H == K or h % LANES == 0)


def _tile(length: int) -> int:
    """Returns the number of queries or keys processed at a time; 0 if there is no valid tile size."""
    return length if length <= TILES[0] else next((size for size in TILES if length % size == 0), 0)


def row_attention(
    q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, segments: Segments | None = None,
    alibi: Alibi | None = None, *, causal: bool = False, rows: Name = "batch",
) -> jax.Array:  # fmt: skip
    """Computes `attention.attend` on each device's rows and heads.

    Args:
      q_BTHh, k_BSKh, v_BSKh: Unscaled queries, keys and values for which `fits` holds.
      segments: None: queries attend to all keys.
      causal: With segments: queries and keys are the same tokens, and none attends to a later one.
      rows: Logical name of the first axis.

    Returns:
      [B, T, H, h], in the dtype of the queries.
    """
    (B, T, H, h), (S, K) = q_BTHh.shape, k_BSKh.shape[1:3]
    form = _Form(h, H // K, causal, segments is not None, alibi is not None)
    query, key = (rows, None, "heads"), (rows, None, "kv_heads")
    specs = [fitting_spec(*one) for one in (((B, T, H), query), ((B, S, K), key), ((B, S, K), key))]
    inputs = [x.reshape(*x.shape[:2], math.prod(x.shape[2:])) for x in (q_BTHh, k_BSKh, v_BSKh)]
    if segments is not None:  # no key has the id -1
        inputs += [jnp.where(segments.queries_BT > 0, segments.queries_BT, -1)[:, None], segments.keys_BS[..., None]]
    if alibi is not None:
        inputs += [alibi.positions_BS[..., None].astype(jnp.float32)]
    specs += [fitting_spec(x.shape, (rows, None, None)) for x in inputs[3:]]
    if alibi is not None:
        inputs += [jnp.asarray(alibi.slopes_H)]
        specs += [fitting_spec((H,), ("heads",))]
    each = functools.partial(_attention, form)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        each = jax.shard_map(each, in_specs=tuple(specs), out_specs=specs[0], check_vma=False)
    return each(*inputs).reshape(B, T, H, h)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(form: _Form, *inputs: jax.Array) -> jax.Array:
    (out_BTC,) = _call(form, _forward_kernel, inputs, 1, 2)
    return out_BTC


def _attention_forward(form: _Form, *inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _attention(form, *inputs), inputs


def _attention_backward(form: _Form, inputs: tuple[jax.Array, ...], of_out_BTC: jax.Array) -> tuple[Any, ...]:
    gradients = _call(form, _backward_kernel, (*inputs, of_out_BTC), 3, 5)
    return (*gradients, *[None] * (len(inputs) - 3))


_attention.defvjp(_attention_forward, _attention_backward)


def _call(form: _Form, kernel: Any, inputs: tuple[jax.Array, ...], outputs: int, products: int) -> list[jax.Array]:
    """Runs a kernel, of `products` products of the size of all scores, on a device's arrays; a grid step takes a tile
    of a row's queries, all its keys, and a few heads. Each of the first `outputs` inputs has an output of its shape and
    dtype."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    (B, T, C), S = inputs[0].shape, inputs[1].shape[1]
    width = math.lcm(form.width, LANES)
    width, tile = C if C % width else width, _tile(T)
    of_queries = pl.BlockSpec((1, tile, width), lambda b, c, t: (b, t, c))
    of_keys = pl.BlockSpec((1, S, width), lambda b, c, t: (b, 0, c // form.shared))
    every_key = pl.BlockSpec((1, S, 1), lambda b, c, t: (b, 0, 0))
    blocks = [of_queries, of_keys, of_keys]
    if form.masked:
        blocks += [pl.BlockSpec((1, 1, tile), lambda b, c, t: (b, 0, t)), every_key]
    if form.alibi:
        blocks += [every_key, pl.BlockSpec(memory_space=pltpu.SMEM)]
    blocks += [of_queries] * (len(inputs) - len(blocks))
    scores = pltpu.VMEM((S, tile), jnp.float32)
    sums = pltpu.VMEM((S, width), jnp.float32)
    return pl.pallas_call(
        functools.partial(kernel, form),
        grid=(B, C // width, T // tile),
        in_specs=blocks,
        out_specs=blocks[:outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs[:outputs]],
        scratch_shapes=[scores] if outputs == 1 else [scores, scores, sums, sums],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel" if form.shared == 1 else "arbitrary", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES,
        ),
        cost_estimate=pl.CostEstimate(
            flops=products * _product_flops(form, B * C // form.width, T, S),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *inputs[:outputs])),
            transcendentals=B * C // form.width * T * S,
        ),
        name="row_attention" if outputs == 1 else "row_attention_backward",
        interpret=platform() != "tpu",
    )(*inputs)


def _product_flops(form: _Form, heads: int, tokens: int, keys: int) -> int:
    """Returns the operations of one product of the size of all scores as executed by the matrix units: widths are
    padded to their lanes, and tiles of later keys are skipped."""
    queries, tile = _tile(tokens), _tile(keys)
    tiles = [-(-end // tile) if form.causal else keys // tile for end in range(queries, tokens + 1, queries)]
    filled = -(-queries // LANES) * LANES * max(form.width, LANES)
    return 2 * heads * sum(tiles) * tile * filled


class _Step:
    """The blocks of a grid step, and what the forward and backward passes have in common."""

    def __init__(self, form: _Form, q: Any, k: Any, v: Any, *rest: Any):
        from jax.experimental import pallas as pl

        self.form, self.q, self.k, self.v = form, q, k, v
        ids, after = 2 * form.masked, 2 * form.masked + 2 * form.alibi
        self.query_ids, self.key_ids = rest[:ids] if form.masked else (None, None)
        self.positions, self.slopes = rest[ids:after] if form.alibi else (None, None)
        self.rest = rest[after:]
        self.heads, self.tile = q.shape[-1] // form.width, _tile(k.shape[1])
        self.first_head, self.first_query = pl.program_id(1) * self.heads, pl.program_id(2) * q.shape[1]

    def over_keys(self, body: Any, carry: Any) -> Any:
        """Runs carry = body(keys, carry) for each tile of the keys that the queries may attend to."""
        from jax.experimental import pallas as pl

        tiles = self.k.shape[1] // self.tile
        if tiles == 1:
            return body(slice(None), carry)
        if self.form.causal:
            tiles = (self.first_query + self.q.shape[1] + self.tile - 1) // self.tile
        return jax.lax.fori_loop(0, tiles, lambda i, carry: body(pl.ds(i * self.tile, self.tile), carry), carry)

    def channels(self, head: int) -> slice:
        return slice(head * self.form.width, (head + 1) * self.form.width)

    def scores(self, head: int, keys: Any, q_wt: jax.Array) -> jax.Array:
        """Returns the scores of these keys, [s, t]."""
        scores = _dot(self.k[0, keys, self.channels(head)], q_wt[self.channels(head)])
        if self.positions is not None:
            scores += self.slopes[self.first_head + head] * self.positions[0, keys]
        if self.key_ids is not None:
            seen = self.key_ids[0, keys] == self.query_ids[0]
            if self.form.causal:
                first_key = 0 if isinstance(keys, slice) else keys.start
                ahead = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0) + (first_key - self.first_query)
                seen &= ahead <= jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
            scores = jnp.where(seen, scores, MASKED)
        return scores

    def inverse(self, most: jax.Array, total: jax.Array) -> jax.Array:
        """Returns the normaliser of the weights: 1 / total, or 0 for a query without keys."""
        return 1 / total if self.key_ids is None else jnp.where(most > MASKED, 1 / total, 0)


def _forward_kernel(form: _Form, *refs: Any) -> None:
    step = _Step(form, *refs)
    out, kept = step.rest
    q_wt, outs_ht = _scaled(step.q[0], form).T, []
    t = q_wt.shape[1]
    for head in range(step.heads):

        def score(keys: Any, most: jax.Array, head: int = head) -> jax.Array:
            kept[keys] = scores = step.scores(head, keys, q_wt)
            return jnp.maximum(most, scores.max(0, keepdims=True))

        most = step.over_keys(score, jnp.full((1, t), MASKED))

        def add(keys: Any, sums: Any, head: int = head, most: jax.Array = most) -> Any:
            total, out_ht = sums
            weights = jnp.exp(kept[keys] - most)
            values_hs = step.v[0, keys, step.channels(head)].T
            out_ht += _dot(values_hs, weights.astype(values_hs.dtype))
            return total + weights.sum(0, keepdims=True), out_ht

        total, out_ht = step.over_keys(add, (jnp.zeros((1, t)), jnp.zeros((form.width, t))))
        outs_ht.append(out_ht * step.inverse(most, total))
    out[0] = jnp.concatenate(outs_ht).T.astype(out.dtype)


def _backward_kernel(form: _Form, *refs: Any) -> None:
    from jax.experimental import pallas as pl

    step = _Step(form, *refs)
    of_out, of_q, of_k, of_v, kept, of_kept, sum_k, sum_v = step.rest
    q_tw = _scaled(step.q[0], form)
    q_wt, of_out_wt, of_qs_ht = q_tw.T, of_out[0].T, []
    t = q_wt.shape[1]
    of_shared = pl.program_id(1) % form.shared

    @pl.when((pl.program_id(2) == 0) & (of_shared == 0))
    def _() -> None:
        sum_k[...], sum_v[...] = jnp.zeros_like(sum_k), jnp.zeros_like(sum_v)

    for head in range(step.heads):
        channels = step.channels(head)

        def score(keys: Any, most: jax.Array, head: int = head, channels: slice = channels) -> jax.Array:
            kept[keys] = scores = step.scores(head, keys, q_wt)
            of_kept[keys] = _dot(step.v[0, keys, channels], of_out_wt[channels])
            return jnp.maximum(most, scores.max(0, keepdims=True))

        most = step.over_keys(score, jnp.full((1, t), MASKED))

        def weigh(keys: Any, sums: Any, most: jax.Array = most) -> Any:
            kept[keys] = weights = jnp.exp(kept[keys] - most)
            total, mean = sums
            return total + weights.sum(0, keepdims=True), mean + (weights * of_kept[keys]).sum(0, keepdims=True)

        total, mean = step.over_keys(weigh, (jnp.zeros((1, t)), jnp.zeros((1, t))))
        inverse = step.inverse(most, total)

        def add(
            keys: Any, of_q_ht: jax.Array, channels: slice = channels, inverse: jax.Array = inverse,
            mean: jax.Array = mean * inverse,
        ) -> jax.Array:  # fmt: skip
            weights = kept[keys] * inverse
            of_scores = (weights * (of_kept[keys] - mean)).astype(q_tw.dtype)
            sum_k[keys, channels] += _dot(of_scores, q_tw[:, channels])
            sum_v[keys, channels] += _dot(weights.astype(q_tw.dtype), of_out[0, :, channels])
            return of_q_ht + _dot(step.k[0, keys, channels].T, of_scores)

        of_qs_ht.append(step.over_keys(add, jnp.zeros((form.width, t))))
    of_q[0] = (jnp.concatenate(of_qs_ht).T * form.width**-0.5).astype(of_q.dtype)

    @pl.when((pl.program_id(2) == pl.num_programs(2) - 1) & (of_shared == form.shared - 1))
    def _() -> None:
        of_k[0], of_v[0] = sum_k[...].astype(of_k.dtype), sum_v[...].astype(of_v.dtype)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _scaled(q: jax.Array, form: _Form) -> jax.Array:
    return (q * form.width**-0.5).astype(q.dtype)
