"""open-flamingo 2.0.1's own class, put together as its factory does, but for a tower that is named like open_clip's."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

torch = pytest.importorskip("torch")
# Its factory asks for open_clip when it is imported; nothing here calls it.
stub = "open_clip" not in sys.modules
if stub:
    sys.modules["open_clip"] = types.ModuleType("open_clip")
try:
    pytest.importorskip("open_flamingo", reason="needs the package open-flamingo: pip install --no-deps open-flamingo")
    from open_flamingo.src.flamingo import Flamingo
    from open_flamingo.src.flamingo_lm import FlamingoLMMixin
    from open_flamingo.src.utils import extend_instance
finally:
    if stub:
        del sys.modules["open_clip"]

EOC, MEDIA = 1, 2


class Block(torch.nn.Module):
    """open_clip's ResidualAttentionBlock."""

    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = torch.nn.Sequential()
        self.mlp.add_module("c_fc", torch.nn.Linear(width, mlp_width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", torch.nn.Linear(mlp_width, width))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class QuickGELU(torch.nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Tower(torch.nn.Module):
    """open_clip's VisionTransformer with output_tokens: (pooled, patch tokens before the last norm)."""

    def __init__(self, config):
        super().__init__()
        width, patches = config.width, config.patches
        self.conv1 = torch.nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.randn(width))
        self.positional_embedding = torch.nn.Parameter(torch.randn(patches + 1, width))
        self.ln_pre, self.ln_post = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.transformer = torch.nn.Module()
        blocks = [Block(width, config.heads, config.mlp_width) for _ in range(config.layers)]
        self.transformer.resblocks = torch.nn.ModuleList(blocks)
        self.proj = torch.nn.Parameter(torch.randn(width, 7))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, x], 1) + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj, x[:, 1:]


def flamingo(language: Any, tower: Any, width: int, every: int, layers: str) -> Any:
    """`layers`: where the language model keeps its layers, as the factory's table says."""
    extend_instance(language, FlamingoLMMixin)
    language.set_decoder_layers_attr_name(layers)
    clip = torch.nn.Module()
    clip.visual = tower
    return Flamingo(clip, language, EOC, MEDIA, vis_dim=width, cross_attn_every_n_layers=every)
