"""`unimp report`: one run's page, or the comparison of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.errors import DataError
from experiments.report.many import write_comparison
from experiments.report.page import write_report


def write_reports(folders: Sequence[Path], split: str = "test", out: Path | None = None) -> Path:
    """The page of one run, `report.html` in its folder; of many runs, or of a sweep, see `write_comparison`.

    Raises:
      DataError: there is no run, or none that was evaluated.
    """
    if not folders:
        raise DataError("name the folder of a run, several, or that of a sweep")
    (folder, *others) = folders
    if others or out or not (folder / "config.json").exists():
        return write_comparison(folders, split, out)
    return write_report(folder, split)
