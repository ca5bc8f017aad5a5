"""One self-contained page of a run: curves, tables, posters."""

from experiments.report.page import write_report

__all__ = ["write_report"]
