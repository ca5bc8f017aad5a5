"""Makes the embedded MovieLens: `python -m data_pipelines.sources.embed FOLDER`, a folder in the local layout.

Texts are packed as they are; posters are reduced to at most 96 pixels high. Made twice, it is the same to the byte.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

from PIL import Image

from data_pipelines.image_decoding import decode_image
from data_pipelines.sources.movielens import EMBEDDED

HEIGHT, QUALITY = 96, 80


def embed(source: Path, target: Path = EMBEDDED) -> None:
    """Writes movielens-small and its posters to `target`."""
    name = "movielens-small"
    (target / name).mkdir(parents=True, exist_ok=True)
    for file in ("items.jsonl", "users.jsonl"):
        packed = gzip.compress((source / name / file).read_bytes(), 9, mtime=0)
        (target / name / f"{file}.gz").write_bytes(packed)
    shutil.copyfile(source / name / "LICENSE-ml-latest-small.txt", target / name / "LICENSE-ml-latest-small.txt")
    movies = [json.loads(line)["item_id"] for line in (source / name / "items.jsonl").open(encoding="utf-8")]
    with zipfile.ZipFile(source / "posters.zip") as posters, zipfile.ZipFile(target / "posters.zip", "w") as reduced:
        there = set(posters.namelist())
        for file in (f"{movie}.jpg" for movie in movies if f"{movie}.jpg" in there):
            image = decode_image(posters.read(file))
            image.thumbnail((HEIGHT, HEIGHT), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
            reduced.writestr(zipfile.ZipInfo(file, (1980, 1, 1, 0, 0, 0)), buffer.getvalue())


if __name__ == "__main__":
    embed(Path(sys.argv[1]))
