"""`unimp report`: the options of `write_report`."""

from __future__ import annotations

from pathlib import Path

import tyro

from experiments.report.page import write_report


def report_command(
    folders: tyro.conf.Positional[tuple[Path, ...]], split: str = "test", out: Path | None = None
) -> None:
    """Write one page of a run that was evaluated, or of many, with what they differ in, and their tables as Markdown.

    Args:
      folders: the folder of the run, or those of several, of a sweep, or one that they all lie in.
      split: which evaluation.
      out: the folder for the page of many; by default the one that they all lie in.
    """
    print(write_report(folders, split, out))
