"""The metrics of UniMP's training steps, and the log rows that aggregate them."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import numpy as np

from unimp_jax.training.window import Window


@flax.struct.dataclass
class StepMetrics:
    """Metrics of one step, kept as arrays so that nothing waits for them.

    Attributes:
      loss: float32 scalar, the objective.
      gradient_norm: float32 scalar, before clipping.
      task_cross_entropy: float32 [tasks], sum of unweighted cross entropies (nats) of each task's answer tokens.
      task_answers: float32 [tasks], number of those tokens.
      skipped: bool scalar, whether the step was skipped (its `task_*` are then 0).
      consecutive_skips: int32 scalar, number of consecutive skipped steps up to and including this one.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    task_cross_entropy: jax.Array
    task_answers: jax.Array
    skipped: jax.Array
    consecutive_skips: jax.Array


class UniMPWindow(Window):
    """Aggregates UniMP's training steps.

    A batch's counts are `num_examples`, `num_images`, `fill` (share of token slots that hold a token) and `left_out`
    (number of examples that could not be used as drawn, by reason).
    """

    step_metrics = StepMetrics

    def __init__(
        self, notes: dict[str, Any] | None, *, tasks: Sequence[str], flops: float, peak_flops: float, tokens: int
    ):
        """Starts or continues a window.

        Args:
          notes: See `Window`.
          tasks: Names of the tasks.
          flops: Operations of a step on all devices, from `unimp_jax.model.flops`.
          peak_flops: Peak FLOP/s of all devices together.
          tokens: Number of token slots in a global batch.
        """
        super().__init__(notes)
        self._tasks, self._flops, self._peak_flops, self._tokens = tasks, flops, peak_flops, tokens

    def row(self, seconds: float, waited: float) -> dict[str, float]:
        """Returns means over the steps that were not skipped, and the throughput of this process's own steps."""
        good = [one for one in self.metrics if not one.skipped]
        answers = np.sum([one.task_answers for one in self.metrics], axis=0)
        entropy = np.sum([one.task_cross_entropy for one in self.metrics], axis=0)
        left_out = sum((Counter(counts.get("left_out", {})) for counts in self.counts), Counter[str]())
        metrics, counts = self.metrics[-self.own :], self.counts[-self.own :]
        return {
            "loss": float(np.mean([one.loss for one in good])) if good else math.nan,
            "gradient_norm": float(np.mean([one.gradient_norm for one in good])) if good else math.nan,
            **{
                f"cross_entropy/{task}": float(entropy[number] / answers[number]) if answers[number] else math.nan
                for number, task in enumerate(self._tasks)
            },
            "steps_left_out": float(len(self.metrics) - len(good)),
            **{f"left_out/{reason}": float(count) for reason, count in sorted(left_out.items())},
            "fill": float(np.mean([one["fill"] for one in self.counts])),
            "step_seconds": seconds / self.own,
            "waiting_share": waited / seconds,
            "tokens_per_second": sum(one["fill"] for one in counts) * self._tokens / seconds,
            "examples_per_second": sum(one["num_examples"] for one in counts) / seconds,
            "images_per_second": sum(one["num_images"] for one in counts) / seconds,
            "answers_per_second": float(np.sum([one.task_answers for one in metrics])) / seconds,
            "mfu": self._flops * self.own / seconds / self._peak_flops,
        }

    def progress(self, row: dict[str, float]) -> dict[str, str]:
        """Returns loss and speed, and the numbers of skipped steps and left-out examples if there are any."""
        shown = {"loss": f"{row['loss']:.4f}", "tokens/s": f"{row['tokens_per_second']:.0f}"}
        shown["waiting for data"] = f"{row['waiting_share']:.1%}"
        if row["steps_left_out"]:
            shown["steps skipped"] = f"{row['steps_left_out']:.0f}"
        return shown | {name: f"{count:.0f}" for name, count in row.items() if name.startswith("left_out/")}

    def consecutive_skips(self) -> dict[str, int]:
        return {"": int(self.metrics[-1].consecutive_skips)}
