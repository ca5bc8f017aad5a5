"""Histories of some users, with the recommendations and generated images of each group of runs."""

import base64
import contextlib
import dataclasses
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.image_decoding import decode_image
from experiments.data import PreparedSource, records_of
from experiments.evals.base import OURS
from experiments.report.runs import EvaluatedRun, Group
from experiments.results import ImageSample, Sample

POSTER_HEIGHT, GENERATED_HEIGHT = 96, 128
LIMITS = (6, 4, 6)
"""Limits for several groups: users with recommendations, users with images, and items or images per answer."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A group's answer to one user, by the run of its first seed.

    Attributes:
      rank: rank of the next item, infinite if it was not found.
      items: catalogue indices of the best items, best first.
      error: why there are no images.
    """

    group: Group
    rank: float = float("inf")
    items: tuple[int, ...] = ()
    images: tuple[str, ...] = ()
    error: str = ""


@dataclasses.dataclass(frozen=True)
class UserSample:
    """One user's query with the groups' answers; `decoded` is the target image, decoded from its codes."""

    question: Sample | ImageSample
    history: tuple[int, ...]
    answers: tuple[Answer, ...]
    decoded: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Samples:
    """Users of one source.

    Attributes:
      posters, titles: by item; posters are data URIs.
      error: why no user can be shown.
    """

    recommendations: tuple[UserSample, ...] = ()
    images: tuple[UserSample, ...] = ()
    posters: dict[int, str] = dataclasses.field(default_factory=dict)
    titles: Sequence[str] = ()
    error: str = ""

    @property
    def errors(self) -> list[str]:
        return [*filter(None, [self.error, *(answer.error for user in self.images for answer in user.answers)])]


def read_samples(groups: Sequence[Group]) -> Samples:
    """Reads the queries of the base, which is the first group, and the answers of all groups to them."""
    base = groups[0].runs[0]
    recommended = base.evaluation.samples
    generated = next((group.runs[0].evaluation.images for group in groups if group.runs[0].evaluation.images), ())
    items = {item for one in recommended for item in (*one.history, one.target, *one.top)}
    items |= {item for one in generated for item in (*one.history, one.target)}
    try:
        records = records_of(base.folder, base.config, items)
    except DataError as error:
        return Samples(error=str(error))
    users, image_users, most = LIMITS if len(groups) > 1 else (len(items),) * 3
    ranked = [(group, ranked_items(group.runs[0], records, most)) for group in groups]
    recommendations = tuple(
        UserSample(
            one, one.history[-most:], tuple(Answer(group, *by[one.user]) for group, by in ranked if one.user in by)
        )
        for one in recommended[:users]
    )
    images = tuple(image_sample(one, groups, most) for one in generated[:image_users])
    shown = {item for one in (*recommendations, *images) for item in (*one.history, one.question.target)}
    shown |= {item for one in recommendations for answer in one.answers for item in answer.items}
    return Samples(recommendations, images, posters(shown, records), records.corpus.titles)


def ranked_items(run: EvaluatedRun, records: PreparedSource, most: int) -> dict[str, tuple[float, tuple[int, ...]]]:
    """Returns the rank of the next item and the best items, by user."""
    table = run.answers.get("recommendation")
    if table is None:
        return {}
    numbers = {item: number for number, item in enumerate(records.corpus.item_ids)}
    columns = (table[name].to_pylist() for name in ("user", f"{OURS}: rank, filtered", "items"))
    return {
        user: (rank, tuple(numbers[item] for item in items[:most] if item in numbers))
        for user, rank, items in zip(*columns, strict=True)
    }


def image_sample(question: ImageSample, groups: Sequence[Group], most: int) -> UserSample:
    """Returns the images that the groups generated for a user; `decoded` is empty if its file is missing."""
    answers, decoded = [], tuple[str, ...]()
    for group in groups:
        folder = group.runs[0].folder / "evaluation"
        own = next((one for one in group.runs[0].evaluation.images if one.user == question.user), None)
        if own is None:
            continue
        try:
            decoded = decoded or (generated_image(folder / own.reconstruction),)
            answers.append(Answer(group, images=tuple(generated_image(folder / name) for name in own.generated[:most])))
        except DataError as error:
            answers.append(Answer(group, error=str(error)))
    return UserSample(question, question.history[-most:], tuple(answers), decoded)


def posters(items: Iterable[int], records: PreparedSource) -> dict[int, str]:
    """Returns images of items as data URIs, without items whose image cannot be decoded."""
    found = {}
    for item in sorted(items):
        encoded = records.read_image(item) if records.has_image[item] else b""
        with contextlib.suppress(DataError):
            image = decode_image(encoded, at_least=2 * POSTER_HEIGHT)
            found[item] = data_uri(image, POSTER_HEIGHT, "jpeg", quality=85)
    return found


def generated_image(path: Path) -> str:
    """Returns a generated image as a data URI, unchanged unless it is large; DataError if it is missing or no image."""
    try:
        return data_uri(decode_image(path.read_bytes()), GENERATED_HEIGHT, "png", optimize=True)
    except (OSError, DataError) as error:
        raise DataError(f"{path} is missing or not an image; run `unimp evaluate` on this run again") from error


def data_uri(image: Image.Image, height: int, kind: str, **options: Any) -> str:
    """Encodes an image, scaled down if it is higher than `height` pixels or more than twice as wide."""
    buffer = io.BytesIO()
    image.thumbnail((2 * height, height))
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
