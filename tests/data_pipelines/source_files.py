"""A small folder of every source, without images, all of it valid; tests change a byte here and a line there."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipelines.schema import Item, User
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.registry import find_source
from data_pipelines.sources.selection import SourceSelection
from tests.data_pipelines.amazon_files import PRODUCT, REVIEW
from tests.data_pipelines.small import START
from tests.data_pipelines.test_hm import HEADER, article

Files = dict[str, bytes]
MET = [(user, item, 10 * user + item, 1 + (user + item) % 5) for user in (1, 2, 3) for item in (1, 2, 3, 4)]
"""User, item, seconds after `START`, stars."""
FILMS = {1: "Toy Story (1995)", 2: "Misérables, Les (1995)", 3: "Se7en (1995)", 4: "M (1931)"}


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def lines(*records: Any) -> bytes:
    return "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records).encode()


def amazon(name: str) -> Files:
    end = "jsonl" if name == "amazon_2023" else "json"
    reviews = {"amazon_2014": "reviews_Books_5.json", "amazon_2018": "Books_5.json"}.get(name, "Books.jsonl")
    products = [PRODUCT[name](f"B{item}", title=f"Œuvre {item}") for item in (1, 2, 3, 4)]
    return {
        reviews: lines(*(REVIEW[name](f"U{u}", f"B{i}", time) for u, i, time, _ in MET)),
        f"meta_Books.{end}": lines(*(map(repr, products) if name == "amazon_2014" else products)),
    }


def sample_review(user: int, item: int, time: int, stars: int) -> dict[str, Any]:
    product = {"title": f"Œuvre {item}", "brand": None, "price": None, "main_category": "Books"}
    return {
        "parent_asin": f"B{item}",
        "rating": float(stars),
        "timestamp_ms": 1000 * (START + time),
        "review_full": "Fine.",
        "review_title": "good",
        "product": product,
    }


def reviews_of(user: int) -> list[dict[str, Any]]:
    return [sample_review(*one) for one in MET if one[0] == user]


def events_of(user: int) -> list[dict[str, Any]]:
    return [{"time": START + time, "item_id": item, "rating": stars} for u, item, time, stars in MET if u == user]


HELD_OUT = {"0": [2], "1": [3]}
GOOD: dict[str, Files] = {
    "movielens_small": {
        "movies.csv": table(("movieId", "title", "genres"), [(n, title, "Drama|War") for n, title in FILMS.items()]),
        "ratings.csv": table(
            ("userId", "movieId", "rating", "timestamp"), [(u, i, s, START + time) for u, i, time, s in MET]
        ),
        "tags.csv": table(
            ("userId", "movieId", "tag", "timestamp"), [(1, 2, "fun, for all", START), (1, 2, "é", START)]
        ),
    },
    "movielens_small, local": {
        "movielens-small/items.jsonl": lines(
            *({"item_id": n, "title": title, "genres": ["Drama"], "poster": False} for n, title in FILMS.items())
        ),
        "movielens-small/users.jsonl": lines(*({"user": user, "events": events_of(user)} for user in (1, 2, 3))),
    },
    "movielens_1m": {
        "movies.dat": "".join(f"{n}::{title}::Drama\n" for n, title in {**FILMS, 5: "Rare"}.items()).encode("latin-1"),
        "ratings.dat": "".join(
            f"{u}::{i}::{1 + (u + i) % 5}::{START + 10 * u + i}\n" for u in range(1, 6) for i in range(1, 6)
        ).encode(),
    },
    **{name: amazon(name) for name in ("amazon_2014", "amazon_2018", "amazon_2023")},
    "amazon_instruments_2014": {
        "reviews_5core.csv": table(
            ("reviewerID", "asin", "reviewText", "overall", "summary", "unixReviewTime"),
            [(f"U{u}", f"B{i}", 'He said "é",\n\nand left', float(s), "good", START + time) for u, i, time, s in MET],
        )
    },
    "amazon_2023_sample": {
        "users.jsonl": lines(
            *({"user_id": f"U{user}", "category": "Books", "history": reviews_of(user)} for user in (1, 2, 3))
        )
    },
    "hm": {
        "articles.csv": table(
            HEADER, [article(f"010877500{i}", prod_name=f"Top {i}", detail_desc='"é",\nblue') for i in (1, 2, 3, 4)]
        ),
        "transactions_train.csv": table(
            ("t_dat", "customer_id", "article_id", "price", "sales_channel_id"),
            [(f"2020-07-{time}", f"c{u}", f"010877500{i}", 0.05, 2) for u, i, time, _ in MET if time < 32],
        ),
    },
    "netflix": {
        "item_attribute.csv": '1,2003,Dinosaur\n2,2004,"Man, Œuvre"\n5,,Character\n8,1995,Stadt\n'.encode(),
        "train.json": json.dumps({"0": [0, 1], "1": [1, 2]}).encode(),
        "val.json": json.dumps(HELD_OUT).encode(),
        "test.json": json.dumps({"0": [3]}).encode(),
    },
    "sequences": {
        "Toys.txt": b"7 3 1 2\n5 2 3\n6 9 1\n",
        "Toys_item2attributes.json": json.dumps({"3": [12, 7], "1": []}).encode(),
    },
}
EVERY_FILE = [(source, file) for source, files in GOOD.items() for file in files]


def write_files(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path, source: str, faults: Faults | None = None) -> tuple[list[Item], list[User]]:
    """The items and users of a folder in the layout of a source of `GOOD`; what Amazon's core would drop stays."""
    core = {"user_core": 1, "item_core": 1} if source in ("amazon_2014", "amazon_2018", "amazon_2023") else {}
    builder = find_source(source.split(",")[0])(
        config="items",
        data_dir=str(folder / "unused"),
        source_dir=folder,
        faults=faults or Faults(),
        selection=SourceSelection(**core),
    )
    opened = builder.open_source(None)
    return list(opened.items()), list(opened.users())


def read_good(folder: Path, source: str, changed: Files | None = None, faults: Faults | None = None) -> Any:
    """`read` of a source's valid files, some of them changed."""
    return read(write_files(folder, {**GOOD[source], **(changed or {})}), source, faults)
