"""The metrics of a VQGAN's training steps, and the log rows that aggregate them."""

import dataclasses

import flax.struct
import jax
import numpy as np

from unimp_jax.training.window import Window


@flax.struct.dataclass
class VQGANMetrics:
    """Metrics of one step: scalars, float32 except for the last four.

    Attributes:
      loss: Weighted sum of all terms of the autoencoder's loss except the discriminator's.
      squared: Mean squared difference of pixels, which are from -1 to 1.
      verdict: The discriminator's mean logit for reconstructions.
      scale: Factor by which the adversarial loss was multiplied.
      gradient_norm: The autoencoder's gradient norm before clipping.
      skipped: bool, whether the step was skipped.
      consecutive_skips: int32, number of consecutive skipped steps up to and including this one.
      discriminator_skipped, discriminator_consecutive_skips: The same for the discriminator's steps, where the
        autoencoder's step was not skipped.
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
    """Aggregates a VQGAN's training steps."""

    step_metrics = VQGANMetrics

    def row(self, seconds: float, waited: float) -> dict[str, float]:
        """Returns means over the steps, and the total and consecutive numbers of skipped steps."""
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
