"""taming-transformers' VQGAN as its checkpoints name it: the forward pass, read off a state dict by its own names."""

import torch
import torch.nn.functional as F

State = dict[str, torch.Tensor]
GROUPS = 32


def random_state(widths: tuple[int, ...], blocks: int, attends: tuple[int, ...], latents: int, codes: int, width: int):
    """Random weights of a small model, and a loss's arrays beside them."""
    draw = torch.Generator().manual_seed(0)
    state: State = {}

    def matrix(name: str, *shape: int) -> None:
        fan = shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1)
        state[f"{name}.weight"] = torch.randn(shape, generator=draw) * fan**-0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=draw)

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(channels, generator=draw)
        state[f"{name}.bias"] = 0.1 * torch.randn(channels, generator=draw)

    def block(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        matrix(f"{name}.conv1", outputs, inputs, 3, 3)
        norm(f"{name}.norm2", outputs)
        matrix(f"{name}.conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            matrix(f"{name}.nin_shortcut", outputs, inputs, 1, 1)

    def attention(name: str, channels: int) -> None:
        norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            matrix(f"{name}.{part}", channels, channels, 1, 1)

    def level(name: str, number: int, inputs: int, count: int) -> None:
        for n in range(count):
            block(f"{name}.block.{n}", inputs if n == 0 else widths[number], widths[number])
            if number in attends:
                attention(f"{name}.attn.{n}", widths[number])

    for part in ("encoder", "decoder"):
        block(f"{part}.mid.block_1", widths[-1], widths[-1])
        attention(f"{part}.mid.attn_1", widths[-1])
        block(f"{part}.mid.block_2", widths[-1], widths[-1])
    matrix("encoder.conv_in", widths[0], 3, 3, 3)
    for number in range(len(widths)):
        level(f"encoder.down.{number}", number, widths[max(number - 1, 0)], blocks)
        level(f"decoder.up.{number}", number, widths[min(number + 1, len(widths) - 1)], blocks + 1)
        if number < len(widths) - 1:
            matrix(f"encoder.down.{number}.downsample.conv", widths[number], widths[number], 3, 3)
        if number > 0:
            matrix(f"decoder.up.{number}.upsample.conv", widths[number], widths[number], 3, 3)
    norm("encoder.norm_out", widths[-1])
    matrix("encoder.conv_out", latents, widths[-1], 3, 3)
    matrix("quant_conv", width, latents, 1, 1)
    state["quantize.embedding.weight"] = torch.randn(codes, width, generator=draw)
    matrix("post_quant_conv", latents, width, 1, 1)
    matrix("decoder.conv_in", widths[-1], latents, 3, 3)
    norm("decoder.norm_out", widths[0])
    matrix("decoder.conv_out", 3, widths[0], 3, 3)
    matrix("loss.discriminator.main.0", 4, 3, 4, 4)
    return state


class Taming:
    """Images are [B, 3, H, W]."""

    def __init__(self, state: State):
        self.state = state
        self.levels = len({key.split(".")[2] for key in state if key.startswith("encoder.down.")})

    def conv(self, name: str, x: torch.Tensor, **how: int) -> torch.Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **how)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, GROUPS, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), padding=1)
        y = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", y)), padding=1)
        return y + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        B, C, H, W = x.shape
        y = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", y).reshape(B, C, H * W) for part in "qkv")
        attends = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) * C**-0.5, dim=2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bck,bqk->bcq", v, attends).reshape(B, C, H, W))

    def level(self, name: str, x: torch.Tensor) -> torch.Tensor:
        number = 0
        while f"{name}.block.{number}.conv1.weight" in self.state:
            x = self.block(f"{name}.block.{number}", x)
            if f"{name}.attn.{number}.q.weight" in self.state:
                x = self.attention(f"{name}.attn.{number}", x)
            number += 1
        return x

    def middle(self, part: str, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(f"{part}.mid.attn_1", self.block(f"{part}.mid.block_1", x))
        return self.block(f"{part}.mid.block_2", x)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv("encoder.conv_in", x, padding=1)
        for number in range(self.levels):
            x = self.level(f"encoder.down.{number}", x)
            if number < self.levels - 1:
                x = self.conv(f"encoder.down.{number}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        x = F.silu(self.norm("encoder.norm_out", self.middle("encoder", x)))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x, padding=1))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        x = self.state["quantize.embedding.weight"][codes].permute(0, 3, 1, 2)
        x = self.middle("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", x), padding=1))
        for number in reversed(range(self.levels)):
            x = self.level(f"decoder.up.{number}", x)
            if number > 0:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = self.conv(f"decoder.up.{number}.upsample.conv", x, padding=1)
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)), padding=1)
