"""MovieLens in the local layout, small and written for tests."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.sources.checks import Faults
from data_pipelines.sources.movielens import local_movielens
from data_pipelines.sources.source import Source
from tests.data_pipelines.small import START, image


def movie_line(number: int, **changed: object) -> str:
    record = {
        "item_id": number,
        "title": f"Film {number}",
        "year": 1990 + number,
        "genres": ["Drama"],
        "description": "",
    }
    return json.dumps(record | changed) + "\n"


def user_line(number: int, items: Sequence[object], **changed: object) -> str:
    events = [{"time": START + place, "item_id": item, "rating": 3.5} for place, item in enumerate(items)]
    return json.dumps({"user": number, "events": events} | changed) + "\n"


def movielens_folder(folder: Path, num_users: int = 0) -> Path:
    """movielens-small of six films, five of them with an image, and three users with 4, 1 and no interaction.

    With `num_users`, so many users with four interactions each instead.
    """
    inside = folder / "movielens-small"
    inside.mkdir(parents=True)
    (inside / "items.jsonl").write_text("".join(movie_line(number) for number in range(1, 7)), encoding="utf-8")
    histories: list[list[int]] = [[1, 2, 3, 4]] * num_users or [[1, 2, 3, 4], [5], []]
    lines = (user_line(number, history) for number, history in enumerate(histories, start=1))
    (inside / "users.jsonl").write_text("".join(lines), encoding="utf-8")
    with zipfile.ZipFile(folder / "posters.zip", "w") as posters:
        for number in range(1, 6):
            posters.writestr(zipfile.ZipInfo(f"{number}.jpg"), image(number))
    return folder


def local(folder: Path, faults: Faults | None = None, name: str = "movielens-small") -> Source:
    return local_movielens(folder, name, faults or Faults())


def rewrite(folder: Path, file: str, text: str | bytes) -> None:
    path = folder / "movielens-small" / file
    path.write_bytes(text.encode() if isinstance(text, str) else text)
