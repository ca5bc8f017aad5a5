"""Formats the leaderboard as a Markdown page: losses first, then every table."""

import collections
from collections.abc import Mapping

from experiments.leaderboard.board import BenchmarkResult, Standing
from unimp_jax.evaluation.bootstrap import Interval

COLUMNS = ("HR@10", "NDCG@10", "HR@10 (unfiltered)", "NDCG@10 (unfiltered)", "recall", "precision", "F1", "RMSE", "MAE")
"""Metrics that are shown if a task has them; other tasks show their headline metric."""


def page(board: Mapping[str, BenchmarkResult]) -> str:
    """Returns the whole page."""
    found = [one for result in board.values() for one in result.standings]
    counts = collections.Counter(one.verdict for one in found)
    lines = [
        "# Leaderboard",
        "",
        "One model per data set, all tasks, test split, by `unimp leaderboard`. Intervals cover other users and, "
        "if there are several seeds, other seeds. Differences are paired by user; a result is level if chance "
        "gives a larger difference in more than one case of twenty. The first of our rows is compared; the "
        "tables also show the model alone.",
        "",
        f"**{counts['won']} won, {counts['level']} level, {counts['lost']} lost.**",
        "",
    ]
    order = {"lost": 0, "level": 1, "won": 2, "alone": 3}
    lines += ["| | data | task | metric | ours | | best rival | | difference | p |", "|" + "---|" * 10]
    for one in sorted(found, key=lambda one: order[one.verdict]):
        ours = one.ours[0].metrics[one.metric]
        rival = one.rivals[0] if one.rivals else None
        cells = [one.verdict, one.contest, one.task, one.metric, format_interval(ours), one.ours[0].model]
        cells += [format_interval(rival.metrics[one.metric]), rival.model] if rival else ["", ""]
        if one.difference:
            cells += [f"{one.difference.mean:+.4f} [{format_bounds(one.difference)}]", f"{one.difference.p_value:.3f}"]
        lines.append("| " + " | ".join([*cells, *[""] * (10 - len(cells))]) + " |")
    for title, result in board.items():
        took = ", ".join(
            f"{second:.0f} s (seed {seed})" for seed, second in zip(result.seeds, result.seconds, strict=True)
        )
        lines += ["", f"## {title}", "", f"Training took {took}."]
        for one in result.standings:
            lines += ["", f"### {one.task} ({one.users:,} users)", "", *table(one)]
    return "\n".join(lines) + "\n"


def table(one: Standing) -> list[str]:
    """Formats all models of a task, best first, with the best value of each column in bold."""
    rows, choose = [*one.ours, *one.rivals], max if one.larger_is_better else min
    names = [name for name in COLUMNS if any(name in row.metrics for row in rows)] or [one.metric]
    best = {name: choose(row.metrics[name].mean for row in rows if name in row.metrics) for name in names}

    def cell(found: Interval | None, best: float) -> str:
        text = format_interval(found) if found else ""
        return f"**{text}**" if found and found.mean == best else text

    lines = ["| model | " + " | ".join(names) + " |", "|" + "---|" * (1 + len(names))]
    for row in sorted(rows, key=lambda row: row.metrics[one.metric].mean, reverse=one.larger_is_better):
        lines.append(f"| {' | '.join([row.model, *(cell(row.metrics.get(name), best[name]) for name in names)])} |")
    return lines


def format_interval(interval: Interval) -> str:
    return f"{interval.mean:.4f} [{format_bounds(interval)}]"


def format_bounds(interval: Interval) -> str:
    return f"{interval.low:.4f}, {interval.high:.4f}"
