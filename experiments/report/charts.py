"""Draws charts of groups of runs with matplotlib, as SVG whose colours are the CSS variables of the page."""

import html
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments.report.compare import Comparison
from experiments.report.runs import Group

INK, QUIET, PAPER = "#1d2733", "#5d6a79", "#ffffff"
"""The colours of a light page; they are replaced by CSS variables, so that a dark page has its own."""

SERIES = (INK, *(to_hex(colormaps["tab10"](number)) for number in range(10)))
"""The colours of groups by their number; further groups repeat them, with dashed or dotted lines."""

METRICS = {
    ("validation", "NDCG@10"): "Validation NDCG@10, seen items filtered",
    ("validation", "HR@10"): "Validation HR@10, seen items filtered",
    ("validation", "cross_entropy"): "Validation cross entropy, nats",
    ("train", "loss"): "Training loss",
    ("train", "tokens_per_second"): "Speed, tokens per second",
}
"""The logged metrics that are drawn, by kind of line and name; the cross entropy of each task is drawn as well."""

MOST_POINTS = 80
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "unimp",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.alpha": 0.25,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), QUIET),
}


def learning_curves(groups: Sequence[Group]) -> list[str]:
    """Draws charts of validation metrics, losses and speed: means over seeds, bands from lowest to highest seed."""
    logged = dict.fromkeys(name for group in groups for run in group.runs for line in run.log for name in line)
    tasks = [name for name in logged if name.startswith("cross_entropy/")]
    titles = METRICS | {
        ("train", name): f"Training cross entropy, {name.split('/')[1]}, nats per token" for name in tasks
    }
    return [chart for (kind, name), title in titles.items() if (chart := learning_curve(groups, kind, name, title))]


@rc_context(STYLE)
def learning_curve(groups: Sequence[Group], kind: str, name: str, title: str) -> str:
    """Draws one logged metric; returns "" if no group has logged it."""
    figure = Figure(figsize=(4.4, 2.6), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="step")
    axes.grid(axis="y")
    for group in reversed(groups):  # so that the base is drawn above the others
        points = over_runs(group, kind, name)
        if points is None:
            continue
        steps, mean, low, high = points
        style: dict[str, Any] = {"color": colour(group), "gid": f"s{group.number}"}
        axes.plot(steps, mean, linestyle=dash(group), linewidth=1.6, marker="o" * (len(steps) == 1), **style)
        if (high > low).any():
            axes.fill_between(steps, low, high, alpha=0.13, linewidth=0, **style)
    return to_svg(figure, title) if axes.lines else ""


def over_runs(group: Group, kind: str, name: str) -> np.ndarray | None:
    """Averages a logged metric over seeds at the steps that all runs logged, neighbouring steps pooled: float64 [4,
    points], with step, mean, lowest and highest seed; None if there is no such step."""
    logs = [{x["step"]: x[name] for x in run.log if x["kind"] == kind and name in x} for run in group.runs]
    steps = sorted(set.intersection(*map(set, logs)))
    if not steps:
        return None
    values = np.array([[log[step] for step in steps] for log in logs])
    parts = np.array_split(np.arange(len(steps)), min(MOST_POINTS, len(steps)))
    pooled = np.stack([values[:, part].mean(axis=1) for part in parts], axis=1)
    ends = [steps[part[-1]] for part in parts]
    return np.stack([ends, pooled.mean(axis=0), pooled.min(axis=0), pooled.max(axis=0)])


@rc_context(STYLE)
def differences_chart(comparison: Comparison, base: str) -> list[str]:
    """Draws the headline metric's differences to the base with their intervals; a filled dot is significant."""
    found = [(one.name, one.group, one.differences.get(comparison.headline)) for one in comparison.compared]
    lines = [(name, group, tested) for name, group, tested in found if group and tested]
    if not lines:
        return []
    title = f"{comparison.headline}, difference to {base}, 95 % intervals"
    figure = Figure(figsize=(7.2, 0.8 + 0.26 * len(lines)), layout="constrained")
    axes = figure.add_subplot(title=title, ylim=(len(lines) - 0.5, -0.5))
    axes.axvline(0, color=QUIET, linewidth=0.8, alpha=0.6)
    for place, (_, group, tested) in enumerate(lines):
        style: dict[str, Any] = {"color": colour(group), "markersize": 6, "elinewidth": 1.8}
        errors = [[tested.mean - tested.low], [tested.high - tested.mean]]
        filled = colour(group) if tested.significant else PAPER
        axes.errorbar(tested.mean, place, xerr=errors, fmt="o", markerfacecolor=filled, **style)
    axes.set_yticks(range(len(lines)), [name for name, _, _ in lines])
    return [to_svg(figure, title)]


def colour(group: Group) -> str:
    return SERIES[group.number % len(SERIES)]


def dash(group: Group) -> str:
    return ("solid", "dashed", "dotted")[group.number // len(SERIES) % 3]


def to_svg(figure: Figure, title: str) -> str:
    """Renders a chart as SVG for embedding in a page; the same chart always gives the same bytes."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="(s\d+)"', r'<g class="series \1"', text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for name, light in (("ink", INK), ("quiet", QUIET), ("paper", PAPER)):
        text = text.replace(light, f"var(--{name})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
