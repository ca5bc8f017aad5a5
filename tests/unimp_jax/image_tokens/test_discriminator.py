"""PatchGAN against one of torch with the same weights, in training mode."""

import jax
import numpy as np
import pytest
from flax import nnx

from unimp_jax.image_tokens.discriminator import Discriminator, DiscriminatorConfig, hinge

torch = pytest.importorskip("torch")


def torch_patch_gan(width, layers):
    """As pix2pix describes it (arXiv:1611.07004, section 6.1.2), with biases where no norm follows."""
    widths = [width * min(2**n, 8) for n in range(layers + 1)]
    parts = [torch.nn.Conv2d(3, widths[0], 4, 2, 1), torch.nn.LeakyReLU(0.2)]
    for number in range(layers):
        stride = 2 if number < layers - 1 else 1
        parts += [
            torch.nn.Conv2d(widths[number], widths[number + 1], 4, stride, 1, bias=False),
            torch.nn.BatchNorm2d(widths[number + 1]),
            torch.nn.LeakyReLU(0.2),
        ]
    return torch.nn.Sequential(*parts, torch.nn.Conv2d(widths[-1], 1, 4, 1, 1)).train()


@pytest.mark.parametrize(("width", "layers"), [(4, 1), (2, 3), (1, 4)])
def test_logits_and_gradients_are_those_of_torch(width, layers):
    ours = nnx.jit(lambda: Discriminator(DiscriminatorConfig(width, layers), rngs=nnx.Rngs(0)))()
    theirs = torch_patch_gan(width, layers)
    convs = [part for part in theirs if isinstance(part, torch.nn.Conv2d)]
    norms = [part for part in theirs if isinstance(part, torch.nn.BatchNorm2d)]
    for own, other in zip([ours.conv_in, *ours.convs, ours.conv_out], convs, strict=True):
        other.weight.data = torch.tensor(np.array(own.kernel[...])).permute(3, 2, 0, 1)
        if other.bias is not None:
            other.bias.data = torch.tensor(np.array(own.bias[...]))
    for own, other in zip(ours.norms, norms, strict=True):
        other.weight.data = torch.tensor(np.array(own.scale[...]))
    images = np.random.default_rng(0).uniform(-1, 1, (3, 48, 48, 3)).astype(np.float32)
    shown = torch.tensor(images).permute(0, 3, 1, 2).requires_grad_()
    logits = theirs(shown)
    logits.mean().backward()

    def mean(images):
        found = ours(images)
        return found.mean(), found

    (_, found), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(images)
    np.testing.assert_allclose(found, logits.detach().numpy()[:, 0], atol=1e-5)
    np.testing.assert_allclose(gradient, shown.grad.permute(0, 2, 3, 1).numpy(), atol=1e-6)


def test_the_hinge_wants_logits_beyond_one():
    assert hinge(np.array([2.0, 1.0]), np.array([-1.0, -3.0])) == 0
    assert hinge(np.array([0.5]), np.array([0.0])) == pytest.approx(0.5 * (0.5 + 1))
