"""The vision tower: a ViT as in CLIP (arXiv:2103.00020) or SigLIP (arXiv:2303.15343), up to its last hidden state."""

import dataclasses
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimp_jax.model import tpu
from unimp_jax.model.attention import attend, attend_to_all
from unimp_jax.model.axes import constrain
from unimp_jax.model.layers import DTypes, Linear, Loop, Norm, normal, scan, stack

if TYPE_CHECKING:
    from unimp_jax.feature_extractors import TextConfig  # its text encoder has the same blocks

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
SIGLIP_MEAN = SIGLIP_DEVIATION = np.full(3, 0.5, np.float32)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Architecture of the tower; the defaults are CLIP ViT-L/14."""

    image_size: int = 224
    """Height and width in pixels."""
    patch_size: int = 14
    """Patch side in pixels; pixels right of and below the last whole patch are ignored."""
    width: int = 1024
    layers: int = 24
    heads: int = 16
    """Number of attention heads; must divide width."""
    mlp_width: int = 4096
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"] = "quick_gelu"
    """quick_gelu is x sigmoid(1.702 x), as in OpenAI's CLIP; gelu is exact; gelu_tanh is its approximation (SigLIP)."""
    patch_bias: bool = False
    """Whether the patch embedding has a bias (SigLIP)."""
    norm: Literal["first", "last", "none"] = "first"
    """Layer norm before all blocks (CLIP), after them (SigLIP), or none (SigLIP, as LLaVA reads it)."""
    colours: Literal["clip", "siglip"] = "clip"
    """Mean and standard deviation for normalising pixels: CLIP's, or 0.5 for both."""
    class_token: bool = True
    """Whether a learned token precedes the patches and takes part in attention."""
    class_token_out: bool = False
    """Whether the output includes the class token, before the patches (Idefics), or only the patches (OpenFlamingo)."""
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if min(self.image_size, self.patch_size, self.width, self.heads, self.mlp_width) < 1 or self.layers < 0:
            raise ValueError(f"vision: every size must be at least 1, not {self}")
        if self.image_size < self.patch_size:
            raise ValueError(f"vision: patch_size {self.patch_size} must be at most image_size {self.image_size}")
        if self.width % self.heads:
            raise ValueError(f"vision: heads {self.heads} must divide width {self.width}")
        if self.class_token_out and not self.class_token:
            raise ValueError("vision: class_token_out needs class_token")

    @property
    def patches(self) -> int:
        """Number of patch tokens per image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens_out(self) -> int:
        """Number of output vectors per image."""
        return self.patches + self.class_token_out

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def mean_and_deviation(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the colours in the images that the tower was trained on, float32 [3] each."""
        return (SIGLIP_MEAN, SIGLIP_DEVIATION) if self.colours == "siglip" else (CLIP_MEAN, CLIP_DEVIATION)


class VisionBlock(nnx.Module):
    """Pre-norm self-attention and MLP with residual connections."""

    def __init__(self, config: "VisionConfig | TextConfig", dtypes: DTypes, rngs: nnx.Rngs):
        width, heads = {"vision_embed": config.width}, {"heads": config.heads, "head_dim": config.head_dim}
        mlp, norm = {"mlp": config.mlp_width}, {"norm": config.width}
        scale = (2 * config.layers) ** -0.5
        self.activation = config.activation
        self.attention_norm = Norm("layer_norm", norm, eps=config.norm_eps, bias=True, dtypes=dtypes)
        self.query = Linear(width, heads, bias=True, dtypes=dtypes, rngs=rngs)
        self.key = Linear(width, heads, bias=True, dtypes=dtypes, rngs=rngs)
        self.value = Linear(width, heads, bias=True, dtypes=dtypes, rngs=rngs)
        self.out = Linear(heads, width, bias=True, dtypes=dtypes, rngs=rngs, scale=scale)
        self.mlp_norm = Norm("layer_norm", norm, eps=config.norm_eps, bias=True, dtypes=dtypes)
        self.up = Linear(width, mlp, bias=True, dtypes=dtypes, rngs=rngs)
        self.down = Linear(mlp, width, bias=True, dtypes=dtypes, rngs=rngs, scale=scale)

    def __call__(self, x_BPC: jax.Array, mask_BPS: jax.Array | None = None) -> jax.Array:
        """Applies the block; `mask_BPS` says which tokens each token attends to, None: all."""
        y = self.attention_norm(x_BPC)
        qkv = self.query(y), self.key(y), self.value(y)
        x_BPC = x_BPC + self.out(attend_to_all(*qkv, "images") if mask_BPS is None else attend(*qkv, mask_BPS))
        y = self.up(self.mlp_norm(x_BPC))
        if self.activation == "quick_gelu":
            y = y * jax.nn.sigmoid(1.702 * y)
        else:
            y = jax.nn.gelu(y) if self.activation == "gelu_tanh" else tpu.gelu(y)
        return constrain(x_BPC + self.down(y), "images", None, None)


class VisionTower(nnx.Module):
    """Maps images to one vector per patch."""

    def __init__(self, config: VisionConfig, dtypes: DTypes, loop: Loop, rngs: nnx.Rngs):
        self.config, self.dtype, self.loop = config, dtypes.compute, loop
        width = {"vision_embed": config.width}
        patch = {"patch_rows": config.patch_size, "patch_columns": config.patch_size, "colours": 3}
        self.patch_embedding = Linear(patch, width, bias=config.patch_bias, dtypes=dtypes, rngs=rngs)
        tokens = {"patches": config.patches + config.class_token}
        self.positions = normal(rngs, tokens | width, 0.02, dtypes)
        self.class_embedding = normal(rngs, width, 0.02, dtypes) if config.class_token else None
        norm = Norm("layer_norm", {"norm": config.width}, eps=config.norm_eps, bias=True, dtypes=dtypes)
        self.norm = None if config.norm == "none" else norm
        self.blocks = stack(lambda rngs: VisionBlock(config, dtypes, rngs), config.layers, rngs)

    def __call__(self, images_BHW3: jax.Array) -> jax.Array:
        """Returns the last hidden state, [B, P, C], for uint8 images, or float ones that are already normalised;
        patches are in row-major order, after the class token if `class_token_out` is set."""
        config = self.config
        B, size, p = images_BHW3.shape[0], config.image_size, config.patch_size
        side = size // p
        if images_BHW3.shape[1:] != (size, size, 3):
            raise ValueError(f"images have shape {images_BHW3.shape[1:]}, but the vision tower reads {(size, size, 3)}")
        pixels = normalise(images_BHW3[:, : side * p, : side * p], *config.mean_and_deviation).astype(self.dtype)
        patches = pixels.reshape(B, side, p, side, p, 3).swapaxes(2, 3)
        x_BPC = self.patch_embedding(patches).reshape(B, config.patches, config.width)
        if self.class_embedding is not None:
            first = jnp.broadcast_to(self.class_embedding[...].astype(self.dtype), (B, 1, config.width))
            x_BPC = jnp.concatenate([first, x_BPC], axis=1)
        x_BPC = x_BPC + self.positions[...].astype(self.dtype)
        if self.norm is not None and config.norm == "first":
            x_BPC = self.norm(x_BPC)
        x_BPC, _ = scan(lambda x, block: (block(x), None), x_BPC, self.blocks, loop=self.loop)
        if self.norm is not None and config.norm == "last":
            x_BPC = self.norm(x_BPC)
        return x_BPC[:, 1:] if config.class_token and not config.class_token_out else x_BPC


def normalise(images: jax.Array, mean: np.ndarray, deviation: np.ndarray) -> jax.Array:
    """Normalises uint8 [..., 3] to float32, with mean and deviation [3] for colours of 0 to 1; returns floats as is."""
    if images.dtype != jnp.uint8:
        return images
    return (images.astype(jnp.float32) / 255 - mean) / deviation
