"""Self-contained HTML pages of evaluated runs: metrics, learning curves and samples of one run or several."""

from experiments.report.page import write_report

__all__ = ["write_report"]
