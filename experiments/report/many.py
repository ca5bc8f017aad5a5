"""The page and the Markdown of many runs."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.report.bands import COLOURS
from experiments.report.compare import Line, Tested, is_minor
from experiments.report.cost import COLUMNS
from experiments.report.gather import Missing, gather
from experiments.report.markdown import markdown, show_chance, show_change
from experiments.report.page import environment, show_figure, write_whole
from experiments.report.section import Section, section

FEW = 6
"""With more groups, only the first people are unfolded."""


def write_comparison(folders: Sequence[Path], split: str = "test", out: Path | None = None) -> Path:
    """Writes `report.html` and `report.md`, each whole or not at all, and returns where the page is.

    Args:
      folders: of runs, of sweeps, or of folders of these; the first group met on a source is what others there are
        compared with.
      split: which evaluation.
      out: the folder they are written to; by default the one that all `folders` lie in, or the only one.

    Raises:
      DataError: a folder holds no run, or none is evaluated.
    """
    sources, missing = gather(folders, split)
    sections = [section(groups) for groups in sources]
    out = out or Path(os.path.commonpath([folder.absolute() for folder in folders]))
    command = shlex.join(["unimp", "report", *map(str, folders), *([] if split == "test" else ["--split", split])])
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "report.md", markdown(out.name, command, sections, missing))
    write_whole(out / "report.html", page(out.name, command, split, sections, missing))
    return out / "report.html"


def page(title: str, command: str, split: str, sections: Sequence[Section], missing: Sequence[Missing]) -> str:
    html = environment()
    html.filters |= {"figure": show_figure, "change": show_change, "chance": show_chance}
    html.filters |= {"setting": show_setting, "whisker": whisker}
    html.tests["minor"] = is_minor
    html.globals |= {"columns": COLUMNS, "colours": COLOURS, "few": FEW}
    template = html.get_template("many.html.jinja")
    return template.render(title=title, command=command, split=split, sections=sections, missing=missing)


def whisker(tested: Tested, lines: Sequence[Line], name: str) -> dict[str, str]:
    """A difference, its interval and 0 as x from 0 to 200, which is as far as any line's interval or 0 goes."""
    ends = [end for line in lines if (one := line.differences.get(name)) for end in (one.low, one.high)]
    left, right = min(0.0, *ends), max(0.0, *ends)
    scale = 200 / (right - left or 1.0)
    places = {"low": tested.low, "mean": tested.mean, "high": tested.high, "zero": 0.0}
    return {place: f"{scale * (value - left):.1f}" for place, value in places.items()}


def show_setting(value: Any) -> str:
    return "-" if value is None else json.dumps(value, ensure_ascii=False)
