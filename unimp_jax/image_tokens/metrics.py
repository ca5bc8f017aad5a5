"""The metrics of a VQGAN's steps, and the rows of the log that sum them up."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import numpy as np

from unimp_jax.training.window import Window


@flax.struct.dataclass
class VQGANMetrics:
    """What one step measures: scalars, float32 but for the last four.

    Attributes:
      loss: of the autoencoder, all terms with their weights, but for the discriminator's.
      squared: the mean squared difference of pixels, from -1 to 1.
      perceptual: the distance between features.
      codes: the loss of the codebook.
      perplexity: of the codes of the batch.
      verdict: the discriminator's mean logit for reconstructions.
      discriminator: its own loss.
      scale: the factor by which its verdict was multiplied.
      gradient_norm: the autoencoder's, before clipping.
      skipped: bool, whether the step was skipped.
      consecutive_skips: int32, how many steps were skipped in succession, up to and with this one.
      discriminator_skipped, discriminator_consecutive_skips: likewise, of the discriminator's steps, where the
        autoencoder's was not skipped.
    """

    loss: jax.Array
    squared: jax.Array
    perceptual: jax.Array
    codes: jax.Array
    perplexity: jax.Array
    verdict: jax.Array
    discriminator: jax.Array
    scale: jax.Array
    gradient_norm: jax.Array
    skipped: jax.Array
    consecutive_skips: jax.Array
    discriminator_skipped: jax.Array
    discriminator_consecutive_skips: jax.Array


class VQGANWindow(Window):
    """Sums a VQGAN's steps up."""

    step_metrics = VQGANMetrics

    def row(self, seconds: float, waited: float) -> dict[str, float]:
        """Means over the steps; of skipped ones their number, and how many of them were the last ones in succession."""
        columns = {
            field.name: np.array([np.asarray(getattr(one, field.name)) for one in self.metrics], np.float64)
            for field in dataclasses.fields(VQGANMetrics)
        }
        counted = {}
        for whose in ("", "discriminator_"):
            counted[f"{whose}steps_left_out"] = float(columns.pop(f"{whose}skipped").sum())
            counted[f"{whose}left_out_in_a_row"] = float(columns.pop(f"{whose}consecutive_skips")[-1])
        return {name: float(values.mean()) for name, values in columns.items()} | counted

    def progress(self, row: dict[str, float]) -> dict[str, str]:
        return {name: f"{row[name]:.4f}" for name in ("loss", "squared", "codes")}

    def consecutive_skips(self) -> dict[str, int]:
        last = self.metrics[-1]
        return {
            "": int(last.consecutive_skips),
            " of the discriminator": int(last.discriminator_consecutive_skips),
        }
