"""Learning curves as SVG text, to stand inside a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

COLOURS = ("#2f6f9f", "#c8553d", "#588157", "#8e6c8a", "#b08900", "#444444")


def curve(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str, y: str) -> str:
    """An SVG picture of (steps, values) by name."""
    with plt.rc_context({"svg.hashsalt": "unimp", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(4.6, 2.7), layout="constrained")
        for (name, (steps, values)), colour in zip(series.items(), COLOURS * 4, strict=False):
            axes.plot(steps, values, label=name, color=colour, linewidth=1.4)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel(y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def training_curves(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The loss, each task's cross entropy, the validation metrics and the speed, as far as the log has them."""
    train = [line for line in log if line["kind"] == "train"]
    validation = [line for line in log if line["kind"] == "validation"]

    def series(lines: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, tuple[list, list]]:
        found: dict[str, tuple[list, list]] = {}
        for name, label in names.items():
            points = [(line["step"], line[name]) for line in lines if name in line]
            if points:
                found[label] = [step for step, _ in points], [value for _, value in points]
        return found

    tasks = {name: name.split("/")[1] for line in train for name in line if name.startswith("cross_entropy/")}
    pictures = [
        (series(train, {"loss": "loss"}), "Objective", "loss"),
        (series(train, tasks), "Cross entropy of answers, by task", "nats a token"),
        (series(validation, {"NDCG@10": "NDCG@10", "HR@10": "HR@10"}), "Validation, seen filtered", "metric"),
        (series(train, {"tokens_per_second": "tokens/s"}), "Speed", "tokens a second"),
    ]
    return [curve(lines, title=title, y=y) for lines, title, y in pictures if lines]
