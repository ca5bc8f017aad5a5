"""Learning curves of groups of runs, as SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.report.gather import Group

POINTS = 80
COLOURS = 11
"""The page has so many; groups beyond are dashed in the same."""

CHARTS = (
    ("validation", "NDCG@10", "NDCG@10, validation users, seen filtered"),
    ("validation", "HR@10", "HR@10, validation users, seen filtered"),
    ("validation", "cross_entropy", "Cross entropy at the question, validation users, nats"),
    ("train", "loss", "Training loss, as each group defines it"),
)
INK, QUIET = "#010203", "#010204"


def learning(groups: Sequence[Group]) -> list[str]:
    """Validation metrics and losses, a chart each: means over seeds, bands from the lowest to the highest seed."""
    charts = []
    for kind, name, title in CHARTS:
        lines = {group.number: line for group in groups if (line := over_runs(group, kind, name)) is not None}
        if lines:
            charts.append(chart(lines, title))
    return charts


def over_runs(group: Group, kind: str, name: str) -> np.ndarray | None:
    """float64 [4, points]: step, mean, lowest, highest; of the steps that all runs logged, many of them as means."""
    found = [
        {line["step"]: line[name] for line in run.log if line["kind"] == kind and name in line} for run in group.runs
    ]
    steps = sorted(set.intersection(*(set(one) for one in found)))
    if not steps:
        return None
    values = np.array([[one[step] for step in steps] for one in found])
    parts = np.array_split(np.arange(len(steps)), min(POINTS, len(steps)))
    pooled = np.stack([values[:, part].mean(axis=1) for part in parts], axis=1)
    ends = [steps[part[-1]] for part in parts]
    return np.stack([ends, pooled.mean(axis=0), pooled.min(axis=0), pooled.max(axis=0)])


def colour(number: int) -> str:
    """What stands for the page's colour until it is put in."""
    return f"#0102{16 + number % COLOURS:02x}"


def chart(lines: dict[int, np.ndarray], title: str) -> str:
    """The base, group 0, is drawn over the others."""
    quiet = {name: QUIET for name in ("axes.edgecolor", "xtick.color", "ytick.color", "axes.labelcolor", "grid.color")}
    style: dict[str, Any] = {"svg.hashsalt": title, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with plt.rc_context(style | quiet | {"text.color": INK}):
        figure, axes = plt.subplots(figsize=(5.2, 3.0), layout="constrained")
        for number, (steps, mean, low, high) in sorted(lines.items(), reverse=True):
            marks: dict[str, Any] = {"color": colour(number), "gid": f"s{number}"}
            dash = ("-", "--", ":")[number // COLOURS % 3]
            axes.plot(steps, mean, dash, linewidth=2.0 if number == 0 else 1.5, marker="o" * (len(steps) == 1), **marks)
            if (high > low).any():
                axes.fill_between(steps, low, high, alpha=0.13, linewidth=0, **marks)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(axis="y", alpha=0.25)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        plt.close(figure)
    return inlined(buffer.getvalue(), title)


def inlined(text: str, title: str) -> str:
    """SVG without what only a file of its own needs, its colours the page's."""
    text = text[text.index("<svg") :]
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="(s\d+)"', r'<g class="series \1"', text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace(INK, "var(--ink)").replace(QUIET, "var(--quiet)")
    text = re.sub(r"#0102([12][0-9a-f])", lambda found: f"var(--s{int(found[1], 16) - 16})", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
