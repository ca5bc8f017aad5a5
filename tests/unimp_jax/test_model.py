"""What the model must do whatever its weights: who sees whom, what trains, how large its program is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unimp_jax.batch import Batch
from unimp_jax.model import (
    DecoderConfig,
    GatedCrossAttentionConfig,
    ModelConfig,
    ProjectorConfig,
    ResamplerConfig,
    UniMP,
    VisionConfig,
    part_of,
)
from unimp_jax.model.attention import attend, segment_mask
from unimp_jax.model.cpu import attend_in_blocks
from unimp_jax.model.flops import training_step_flops
from unimp_jax.model.presets import PRESETS

MEDIA = 1


FORMS = ["last_image", "all_earlier_images", "interleaved"]
"""How text sees images: by gated blocks, the last one or all; or as tokens."""


def small_config(form="last_image", groups=2, **decoder) -> ModelConfig:
    """Few channels, every kind of part; all sizes multiples of 8 so that they split over eight devices.

    With one group of decoder layers, the tower and the resampler are of one layer too.
    """
    layers = min(groups, 2)
    attend_to = "last_image" if form == "interleaved" else form
    decoder = {"vocab_size": 40, "new_tokens": 8, "width": 32, "heads": 4, "mlp_width": 48} | decoder
    return ModelConfig(
        vision=VisionConfig(image_size=8, patch_size=4, width=16, layers=layers, heads=4, mlp_width=32),
        resampler=ResamplerConfig(layers=layers, heads=4, head_dim=8, latents=3, mlp_ratio=2),
        gated=GatedCrossAttentionConfig(every=2, heads=4, head_dim=8, mlp_ratio=2, attend=attend_to),
        decoder=DecoderConfig(layers=2 * groups, **decoder),
        fusion="interleaved" if form == "interleaved" else "cross_attention",
        projector=ProjectorConfig("resampler"),
        compute_dtype="float32",
    )


DECODERS = {
    "rotary": {"rotary_fraction": 0.5, "parallel_residual": True},
    "alibi": {"position": "alibi", "bias": False, "qk_norm": True, "tie_embeddings": True},
    "llama": {"norm": "rms_norm", "bias": False, "mlp": "swiglu", "kv_heads": 2},
    "qwen3": {
        "norm": "rms_norm", "bias": False, "mlp": "swiglu", "kv_heads": 2, "head_width": 4, "qk_norm": True,
        "qk_norm_per_head": True, "tie_embeddings": True,
    },
}  # fmt: skip
CASES = [(kind, form) for kind in ("rotary", "alibi", "llama") for form in FORMS[:2]]
CASES += [("alibi", "interleaved"), ("qwen3", "interleaved")]


def random_batch(rng, config, rows=2, segments=((7, 2), (9, 3)), padding=4, answers=5, spare_images=1) -> Batch:
    """Rows of segments of (tokens, images), each with its markers at random places, then padding.

    Where images are tokens, segments are longer by those that an image has more than its marker.
    """
    L = config.image_tokens
    segments = [(length + count * (L - 1), count) for length, count in segments]
    columns = {"tokens": [], "segment_ids": [], "positions": [], "image_index": [], "image_segment_ids": []}
    for _ in range(rows):
        row, images = {name: [] for name in columns}, 0
        for number, (length, count) in enumerate(segments, start=1):
            tokens = rng.integers(2, config.decoder.vocab_size + config.decoder.new_tokens, length)
            begins = np.sort(rng.choice(length - count * (L - 1), count, replace=False)) + np.arange(count) * (L - 1)
            tokens[(begins[:, None] + np.arange(L)).ravel()] = MEDIA
            seen = np.cumsum(np.isin(np.arange(length), begins))
            row["tokens"] += [*tokens]
            row["segment_ids"] += [number] * length
            row["positions"] += range(length)
            row["image_index"] += [*np.where(seen > 0, images + seen - 1, -1)]
            row["image_segment_ids"] += [number] * count
            images += count
        for name in ("tokens", "segment_ids", "positions"):
            row[name] += [0] * padding
        row["image_index"] += [-1] * padding
        row["image_segment_ids"] += [0] * spare_images
        for name, values in row.items():
            columns[name].append(values)
    arrays = {name: np.array(values, np.int32) for name, values in columns.items()}
    size, used = config.vision.image_size, sum(length for length, _ in segments)
    return Batch(
        **arrays,
        images=rng.integers(0, 256, (*arrays["image_segment_ids"].shape, size, size, 3)).astype(np.uint8),
        answer_positions=rng.integers(0, used, (rows, answers)).astype(np.int32),
        answer_targets=rng.integers(2, config.decoder.vocab_size, (rows, answers)).astype(np.int32),
        answer_weights=rng.choice([0.0, 1.0, 2.0], (rows, answers)).astype(np.float32),
        answer_tasks=np.zeros((rows, answers), np.int32),
    )


@functools.cache
def structure(config) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: UniMP(config, rngs=nnx.Rngs(0))))


def random_model(config, seed=0) -> UniMP:
    """Open gates, and scales and biases that are not 1 and 0; the same numbers for the same parameters."""
    graph, shapes = structure(config)
    rng = np.random.default_rng(seed)

    def draw(path, variable):
        mean = {"scale": 1.0, "attention_gate": 0.7, "mlp_gate": 0.7}.get(path[-1], 0.0)
        return variable.replace(jnp.asarray(mean + 0.25 * rng.normal(size=variable.shape), jnp.float32))

    return nnx.merge(graph, nnx.map_state(draw, shapes))


hidden = nnx.jit(lambda model, batch: model.hidden(batch))
answer_logits = nnx.jit(lambda model, batch: model(batch))


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_no_token_sees_another_segment_or_what_follows(kind, form):
    config = small_config(form, **DECODERS[kind])
    model, rng = random_model(config), np.random.default_rng(1)
    batch, other = random_batch(rng, config, rows=1), random_batch(rng, config, rows=1)
    before = np.asarray(hidden(model, batch))
    first, second = batch.segment_ids == 1, batch.segment_ids == 2

    # Other tokens and images in segment 1, in spare slots and in padding: segment 2 does not move.
    elsewhere = dataclasses.replace(
        batch,
        tokens=np.where(second | (batch.tokens == MEDIA), batch.tokens, other.tokens),
        images=np.where((batch.image_segment_ids == 2)[..., None, None, None], batch.images, other.images),
    )
    after = np.asarray(hidden(model, elsewhere))
    np.testing.assert_array_equal(after[second], before[second])
    assert np.abs(after[first] - before[first]).max() > 0.01

    # Other tokens from the middle of segment 2 on: what lies before does not move.
    middle = np.flatnonzero(second[0])[4]
    later = np.arange(batch.tokens.shape[1])[None] >= middle
    after = np.asarray(hidden(model, dataclasses.replace(batch, tokens=np.where(later, 3, batch.tokens))))
    np.testing.assert_array_equal(after[~later], before[~later])
    assert np.abs(after[later] - before[later]).max() > 0.01

    # Another last image of segment 2: tokens before it do not move, those after it do.
    last = batch.image_index[second].max()
    images = batch.images.copy()
    images[0, last] = 255 - images[0, last]
    after = np.asarray(hidden(model, dataclasses.replace(batch, images=images)))
    follows = batch.image_index == last
    np.testing.assert_array_equal(after[~follows], before[~follows])
    assert np.abs(after[follows] - before[follows]).max() > 1e-3


def test_all_earlier_images_are_seen_or_the_last_alone():
    """Another first image of a segment moves the tokens after its second image in one mode only."""
    for attend_to, moves in (("last_image", False), ("all_earlier_images", True)):
        config = small_config(attend_to, groups=1)
        config = dataclasses.replace(config, gated=dataclasses.replace(config.gated, every=1))
        config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, layers=1))
        model, rng = random_model(config), np.random.default_rng(2)
        batch = random_batch(rng, config, rows=1, segments=((8, 0),), spare_images=2)
        batch = dataclasses.replace(
            batch,
            image_index=np.array([[-1, 0, 0, 0, 1, 1, 1, 1, -1, -1, -1, -1]], np.int32),
            image_segment_ids=np.array([[1, 1]], np.int32),
        )

        def blocks_alone(images, model=model, batch=batch):
            """One block without a decoder layer, so that tokens do not pass on what they saw."""
            return hidden(model, dataclasses.replace(batch, images=images))

        model.decoder.layers.attention.value.kernel[...] *= 0
        model.decoder.layers.attention.value.bias[...] *= 0
        images = batch.images.copy()
        images[0, 0] = 255 - images[0, 0]
        change = np.abs(np.asarray(blocks_alone(images) - blocks_alone(batch.images)))[0].max(-1)
        assert (change[1:4] > 1e-5).all()
        assert (change[4:8] > 1e-5).all() if moves else (change[4:8] == 0).all(), (attend_to, change)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_packed_equals_a_row_each(kind, form):
    config = small_config(form, **DECODERS[kind])
    model = random_model(config)
    batch = random_batch(np.random.default_rng(3), config, rows=1)
    together = np.asarray(hidden(model, batch))
    for number in (1, 2):
        tokens, images = batch.segment_ids[0] == number, batch.image_segment_ids[0] == number
        alone = Batch(
            tokens=batch.tokens[:, tokens],
            segment_ids=np.ones((1, tokens.sum()), np.int32),
            positions=batch.positions[:, tokens],
            image_index=np.where(batch.image_index >= 0, batch.image_index - np.flatnonzero(images)[0], -1)[:, tokens],
            images=batch.images[:, images],
            image_segment_ids=np.ones((1, images.sum()), np.int32),
            answer_positions=batch.answer_positions,
            answer_targets=batch.answer_targets,
            answer_weights=batch.answer_weights,
            answer_tasks=batch.answer_tasks,
        )
        np.testing.assert_allclose(hidden(model, alone), together[:, tokens], atol=1e-5)


def test_without_images_the_blocks_add_no_attention():
    """No images, and images that no token looks at, are the same: gated blocks add their MLP alone."""
    config = small_config()
    model = random_model(config)
    batch = random_batch(np.random.default_rng(4), config, segments=((7, 0),), spare_images=2)
    none = dataclasses.replace(batch, images=batch.images[:, :0], image_segment_ids=batch.image_segment_ids[:, :0])
    np.testing.assert_allclose(hidden(model, none), hidden(model, batch), atol=1e-6)


def test_answers_are_the_logits_at_their_positions_over_base_and_new_tokens():
    config = small_config(tie_embeddings=True)
    model = random_model(config)
    batch = random_batch(np.random.default_rng(5), config)
    answers = np.asarray(answer_logits(model, batch))
    assert answers.dtype == np.float32
    assert answers.shape == (2, 5, 48)
    vectors = np.asarray(hidden(model, batch))[np.arange(2)[:, None], batch.answer_positions]
    table = np.concatenate([model.embeddings.base[...], model.embeddings.new[...]])
    np.testing.assert_allclose(answers, vectors @ table.T, atol=1e-4)
    tokens = np.array([[0, 39, 40, 47]])
    np.testing.assert_array_equal(model.embed(jnp.asarray(tokens)), table[tokens])


def test_attention_equals_numpy_and_unseen_rows_are_zero_with_finite_gradients():
    rng = np.random.default_rng(6)
    q, k, v = (rng.normal(size=(2, n, heads, 5)).astype(np.float32) for n, heads in ((3, 4), (6, 2), (6, 2)))
    mask = rng.random((2, 3, 6)) < 0.5
    mask[:, 1] = False
    expected = np.zeros((2, 3, 4, 5))
    for b, t, head in np.ndindex(2, 3, 4):
        keys = np.flatnonzero(mask[b, t])
        if len(keys):
            scores = k[b, keys, head // 2] @ q[b, t, head] / np.sqrt(5)
            weights = np.exp(scores - scores.max())
            expected[b, t, head] = weights @ v[b, keys, head // 2] / weights.sum()
    np.testing.assert_allclose(jax.jit(attend)(q, k, v, mask), expected, atol=1e-6)
    gradients = jax.jit(jax.grad(lambda *x: attend(*x, mask).sum(), argnums=(0, 1, 2)))(q, k, v)
    assert all(np.isfinite(g).all() for g in gradients)
    assert (np.asarray(gradients[0])[:, 1] == 0).all()


def test_blocks_of_queries_change_nothing():
    rng = np.random.default_rng(11)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 256, heads, 4)), jnp.float32) for heads in (2, 1, 1))
    ids = jnp.asarray(np.repeat([1, 2, 3, 0], [100, 90, 50, 16])[None])
    bias = jnp.asarray(rng.normal(size=(1, 2, 256, 256)), jnp.float32)
    mask = segment_mask(ids, ids, "xla", causal=True).mask_BTS
    np.testing.assert_allclose(attend_in_blocks(attend, q, k, v, mask, bias), attend(q, k, v, mask, bias), atol=1e-5)


@pytest.mark.parametrize(
    ("form", "trains"),
    [
        ("last_image", {"resampler", "gated", "embeddings"}),
        ("last_image", {"vision"}),
        ("last_image", set(small_config().parts)),
        ("interleaved", {"projector"}),
        ("interleaved", set(small_config("interleaved").parts)),
    ],
)
def test_gradients_exist_for_what_trains_alone(form, trains):
    config = small_config(form, groups=1)
    batch = random_batch(np.random.default_rng(7), config)
    graph, trainable, frozen = nnx.split(random_model(config), lambda path, _: part_of(path) in trains, ...)
    assert {part_of(path) for path, _ in nnx.to_flat_state(frozen)} == set(config.parts) - trains
    gradients = jax.jit(jax.grad(lambda x: jnp.square(nnx.merge(graph, x, frozen)(batch)).sum()))(trainable)
    assert {part_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(gradients)} == trains
    for path, gradient in nnx.to_flat_state(gradients):
        # Softmax does not see a bias that all keys share.
        if path[-2:] != ("key", "bias"):
            assert np.abs(gradient[...]).max() > 1e-6, path


def test_dropout_is_a_function_of_its_key():
    config = small_config(dropout=0.5)
    model = random_model(config)
    batch = random_batch(np.random.default_rng(8), config)
    run = nnx.jit(lambda model, seed: model.hidden(batch, dropout_key=jax.random.key(seed)))
    np.testing.assert_array_equal(run(model, 1), run(model, 1))
    assert np.abs(np.asarray(run(model, 1) - run(model, 2))).max() > 0.1
    still = random_model(small_config())
    np.testing.assert_allclose(hidden(model, batch), run(still, 1), atol=1e-5)  # two programs


def lowered(config) -> str:
    graph, state = structure(config)
    batch = random_batch(np.random.default_rng(0), config)
    step = jax.grad(lambda state, batch: nnx.merge(graph, state)(batch).sum())
    return jax.jit(step).lower(state, batch).as_text()


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_program_does_not_grow_with_depth(remat):
    four, eight = (dataclasses.replace(small_config(groups=groups), remat=remat) for groups in (4, 8))
    assert len(lowered(four).splitlines()) == len(lowered(eight).splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"remat": "full"}, {"remat": "dots"}, {"remat": "dots_with_batch"}, {"unroll": 2}, {"unroll": 9, "remat": "full"}],
    ids=str,
)
def test_neither_remat_nor_unrolling_changes_a_gradient(changes):
    config = small_config()
    batch = random_batch(np.random.default_rng(9), config)
    state = nnx.state(random_model(config))

    def gradient(config):
        graph, _ = structure(config)
        return jax.jit(jax.grad(lambda state: jnp.square(nnx.merge(graph, state)(batch)).mean()))(state)

    plain, again = gradient(config), gradient(dataclasses.replace(config, **changes))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def test_bfloat16_stays_close_to_float32():
    config = small_config()
    batch = random_batch(np.random.default_rng(10), config)
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    model, half = random_model(config), random_model(half)
    assert hidden(half, batch).dtype == jnp.bfloat16
    found, expected = answer_logits(half, batch), answer_logits(model, batch)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.05 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(
    ("name", "billions"),
    [("openflamingo_3b", (2.4, 3.2)), ("openflamingo_4b", (3.8, 5.2)), ("openflamingo_9b", (7.7, 9.5))],
)
def test_presets_have_the_size_of_their_name(name, billions):
    state = structure(PRESETS[name])[1]
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(state)) / 1e9
    print(f"{name}: {count:.3f} billion parameters")
    assert billions[0] < count < billions[1]


@pytest.mark.parametrize(
    ("trains", "kind"),
    [
        (("resampler", "gated", "embeddings"), None),
        (("vision",), None),
        (("gated",), None),
        (ModelConfig().parts, None),
        (("projector",), "mlp"),
        (("projector", "decoder"), "pixel_shuffle"),
        (("vision", "projector", "decoder", "embeddings"), "resampler"),
    ],
)
def test_flops_agree_with_the_compiler(trains, kind):
    """One group, one layer of each scan, for the compiler counts a loop's body once; elementwise work is the rest."""
    config = ModelConfig(
        vision=VisionConfig(image_size=32, patch_size=8, width=128, layers=1, heads=2, mlp_width=512),
        resampler=ResamplerConfig(layers=1, heads=2, head_dim=64, latents=16),
        gated=GatedCrossAttentionConfig(every=2, heads=2, head_dim=64),
        decoder=DecoderConfig(vocab_size=512, width=256, layers=2, heads=2, mlp_width=1024),
        compute_dtype="float32",
    )
    if kind is not None:
        projector, decoder = ProjectorConfig(kind), dataclasses.replace(config.decoder, layers=1)
        config = dataclasses.replace(config, fusion="interleaved", projector=projector, decoder=decoder)
    rng = np.random.default_rng(0)
    batch = random_batch(rng, config, rows=2, segments=((60, 3), (60, 4)), padding=8, answers=32)
    graph, state = structure(config)
    trainable, frozen = nnx.split_state(state, lambda path, _: part_of(path) in trains, ...)
    step = jax.value_and_grad(lambda x, frozen, batch: nnx.merge(graph, x, frozen)(batch).sum())
    counted = jax.jit(step).lower(trainable, frozen, batch).compile().cost_analysis()["flops"]
    shape = (2, batch.tokens.shape[1], 8, 32)
    assert training_step_flops(config, shape, set(trains)) == pytest.approx(counted, rel=0.12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionConfig(image_size=10), "patch_size 14 must be at most image_size 10"),
        (lambda: DecoderConfig(width=100), "heads 32 must divide width 100"),
        (lambda: DecoderConfig(kv_heads=5), "kv_heads 5 must divide heads 32"),
        (lambda: DecoderConfig(rotary_fraction=1.5), "rotary_fraction 1.5"),
        (lambda: DecoderConfig(dropout=1.0), "dropout 1.0"),
        (lambda: ModelConfig(gated=GatedCrossAttentionConfig(every=3)), "every 3 must divide decoder.layers 32"),
        (lambda: ModelConfig(compute_dtype="half"), "compute_dtype 'half'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
