"""Images as tokens: which places of a row they take, and how many."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unimp_jax.test_model import random_model, small_config
from unimp_jax.model import ModelConfig, ProjectorConfig, UniMP, VisionConfig
from unimp_jax.model.unimp import image_slots


@given(st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=3), st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_image_slots_are_counted_through_a_row(segments, tokens):
    """Segments of images, each followed by some text; ids are not looked at."""
    index, slots, image = [], [], 0
    for texts in segments:
        index, slots = [*index, -1], [*slots, -1]
        for text in texts:
            index += [image] * (tokens + text)
            slots += [*range(image * tokens, (image + 1) * tokens), *[-1] * text]
            image += 1
    padding = [-1] * (128 - len(index))
    found = image_slots(jnp.asarray([index + padding], jnp.int32), tokens)
    assert found[0].tolist() == slots + padding


@pytest.mark.parametrize("kind", ["mlp", "pixel_shuffle", "resampler"])
def test_an_image_becomes_as_many_tokens_as_its_configuration_says(kind):
    config = dataclasses.replace(small_config("interleaved"), projector=ProjectorConfig(kind))
    model = random_model(config)
    images = np.random.default_rng(12).integers(0, 256, (2, 3, 8, 8, 3)).astype(np.uint8)
    encode, see = nnx.jit(UniMP.encode_images), nnx.jit(UniMP.see)
    found = encode(model, images)
    assert (
        found.shape == (2, 3, *config.latents_shape) == (2, 3, {"mlp": 4, "pixel_shuffle": 1, "resampler": 3}[kind], 32)
    )
    np.testing.assert_allclose(encode(model, see(model, images[0])[None]), found[:1], atol=1e-5)


def shuffled(scale: int = 2, **vision) -> ModelConfig:
    projector = ProjectorConfig("pixel_shuffle", scale)
    return ModelConfig(vision=VisionConfig(**vision), fusion="interleaved", projector=projector)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProjectorConfig(scale=0), "scale 0 must be at least 1"),
        (lambda: shuffled(scale=3), "squares of 3 x 3 patches do not cover the 16 x 16 patches of the tower"),
        (lambda: shuffled(class_token_out=True), "and its class token"),
    ],
)
def test_projectors_that_do_not_fit_the_tower_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
