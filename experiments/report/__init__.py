"""Self-contained pages: of a run, its curves, tables and posters; of many, how they compare."""

from experiments.report.page import write_report
from experiments.report.report import write_reports

__all__ = ["write_report", "write_reports"]
