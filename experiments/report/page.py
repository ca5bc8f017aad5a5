"""Gathers what a run left into one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterable
from pathlib import Path

import jinja2

from data_pipelines.atomic import atomic_file
from data_pipelines.errors import DataError
from data_pipelines.opening import open_picture
from experiments.config import load_config
from experiments.data import Records, records_of
from experiments.report.curves import training_curves
from experiments.results import Evaluation, load_evaluation
from unimp_jax.evaluation.bootstrap import Interval
from unimp_jax.training.log import read_log

POSTER_HEIGHT = 96
DRAWN_HEIGHT = 128


def write_report(folder: Path, split: str = "test") -> Path:
    """Writes `report.html` beside a run's evaluation, whole or not at all, and returns where it is.

    Raises:
      DataError: the folder holds no evaluated run, or the data has other items by now.
    """
    config = load_config(folder / "config.json")
    evaluation = load_evaluation(folder / "evaluation" / f"{split}.json")
    records = records_of(folder, config, shown_items(evaluation))
    html = environment()
    html.filters["figure"] = show_figure
    page = html.get_template("page.html.jinja").render(
        name=folder.name,
        evaluation=evaluation,
        curves=training_curves(read_log(folder / "metrics.jsonl")),
        posters=posters(shown_items(evaluation), records),
        titles=records.corpus.titles,
        drawn=drawn_pictures(evaluation, folder / "evaluation"),
        stretched=config.images.fit == "stretch",
    )
    path = folder / "report.html"
    write_whole(path, page)
    return path


def environment() -> jinja2.Environment:
    """Templates beside this file; what is put into them is escaped, and must be there."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )


def write_whole(path: Path, text: str) -> None:
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def show_figure(figure: Interval) -> str:
    return f"{figure.mean:.3f}" if abs(figure.mean) < 10 else f"{figure.mean:.1f}"


def shown_items(evaluation: Evaluation) -> set[int]:
    """All items in the samples."""
    items = {item for sample in evaluation.samples for item in (*sample.history, sample.target, *sample.top)}
    return items | {item for sample in evaluation.pictures for item in (*sample.history, sample.target)}


def posters(items: Iterable[int], records: Records) -> dict[int, str]:
    """Pictures of items, as data addresses; an item whose picture cannot be decoded has none."""
    found = {}
    for item in sorted(items):
        encoded = records.read_image(item) if records.has_image[item] else b""
        with contextlib.suppress(DataError):
            picture = open_picture(encoded, at_least=2 * POSTER_HEIGHT)
            picture.thumbnail((2 * POSTER_HEIGHT, POSTER_HEIGHT))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=85)
            found[item] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return found


def drawn_pictures(evaluation: Evaluation, folder: Path) -> dict[str, str]:
    """All pictures that were generated for the samples, by name, as data addresses; nothing is lost of small ones.

    Raises:
      DataError: one is not where the evaluation left it.
    """
    names = [name for sample in evaluation.pictures for name in (sample.reconstruction, *sample.generated)]
    return {name: drawn_picture(folder / name) for name in names}


def drawn_picture(path: Path) -> str:
    try:
        picture = open_picture(path.read_bytes())
    except (OSError, DataError) as error:
        raise DataError(f"{path} is not there, or no picture: run `unimp evaluate` on this run again") from error
    picture.thumbnail((2 * DRAWN_HEIGHT, DRAWN_HEIGHT))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
