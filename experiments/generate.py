"""`unimp generate`: the answer of a run, or of what was exported of it, about one person, with titles.

Recommendation and search name the best items, preference a rating and what is written with it, selection the ones
chosen of three, image the files of pictures. Nothing is measured here, so all that is known of the person is their
history.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tyro.constructors import PrimitiveConstructorSpec

from data_pipelines.corpus import Corpus
from data_pipelines.errors import DataError
from data_pipelines.tasks import Query
from data_pipelines.vocabulary import Vocabulary
from experiments.ask import ask_for_selections, find_items, prompt_batches
from experiments.asked import Request, Task, complete, pose
from experiments.data import ExperimentData
from experiments.painting import Painter, PaintingConfig, ask_for_codes, open_painter, save_picture
from experiments.run import Checkpoint, open_to_ask
from experiments.terminal import cleaned, columns, fitted, padded, room
from unimp_jax.decoding import BeamConfig
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.sharding import MeshConfig

SHOWN = 3
"""So many of the latest items of a history are named."""

Flag = Annotated[
    bool,
    PrimitiveConstructorSpec(
        nargs=0,
        metavar="",
        instance_from_str=lambda _: True,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""An option that is named or not, and takes no value."""


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """What is asked, and how it is answered."""

    task: Task = "recommendation"
    user: str | None = None
    """The id of a user of the source. Their history is all that is known of them, what evaluation holds out included:
    this is use, not measurement. Without it, a JSON object is read from standard input:
    {"history": ["ITEM_ID", {"item": "ITEM_ID", "rating": 4.0}], "query": "…", "item": "…", "candidates": ["…"]},
    the history oldest first, the other fields in place of the options of their names."""
    query: str | None = None
    """For search and image: its words, as the source writes its categories."""
    item: str | None = None
    """For preference: the id of the item to be rated."""
    candidates: tuple[str, ...] = ()
    """For selection: the ids of three items."""
    k: int = 10
    """So many items are named by recommendation and search."""
    keep_seen: Flag = False
    """They may be items of the history as well."""
    beams: int = 10
    """Of the search for items with semantic ids (at least k), and for what is written with a rating."""
    new_tokens: int = 128
    """What is written with a rating is cut off there."""
    out: Path = Path("pictures")
    """For image: the folder where pictures go, 1.png and so on."""
    painting: Annotated[PaintingConfig, tyro.conf.arg(name="")] = PaintingConfig()
    """For image: by what, how many and how."""
    seed: int = 0
    """For image: of what is drawn."""
    checkpoint: Checkpoint = "best"
    """Of a run: the best by validation, or the latest."""
    data: Path | None = None
    """Where the prepared records are, if not where they were in training."""
    mesh: MeshConfig = MeshConfig(data=-1)
    """How the model lies on the devices that are here."""
    json: Flag = False
    """The answer as one JSON object."""


def generate(folder: Path, config: GenerateConfig, read: Callable[[], str]) -> str:
    """The answer, for people or as JSON.

    Args:
      folder: of a run, or made by `unimp export`.
      read: the JSON object, where the configuration names no user.

    Raises:
      DataError: the folder is neither, or what is asked is not right; before weights are read, but where they are what
        is wrong.
      WeightsError, CheckpointError: the weights cannot be read.
    """
    options = Request(config.task, config.user, (), config.query, config.item, config.candidates)
    request = complete(options, read() if config.user is None else None)
    data, open_model = open_to_ask(folder, config.checkpoint, records=config.data, mesh=config.mesh)
    data, query = pose(data, request)
    if not 1 <= config.k <= data.corpus.num_items:
        raise DataError(f"--k is {config.k}: 1 to {data.corpus.num_items}, all items of the catalogue, is right")
    beams = BeamConfig(config.beams, config.new_tokens)
    data.writer.write(query, ask=True)  # what does not fit is told before weights are read
    painter = open_painter(data, config.painting.vqgan) if query.task == "image" else None
    if painter:
        config.out.mkdir(parents=True, exist_ok=True)  # what cannot be is told before weights are read
    predictor = open_model()
    answer: dict[str, Any] = {"task": config.task, "user": config.user, "history": told_history(data.corpus, query)}
    if query.task == "preference":
        answer |= rate(data, predictor, query, beams)
    elif painter:
        answer |= {"query": query.words, "pictures": paint(data, predictor, query, painter, config)}
    elif query.task == "selection":
        chosen = ask_for_selections(data, predictor, [query])[0]
        answer |= {"candidates": told(data.corpus, query.candidates), "chosen": told(data.corpus, chosen)}
    else:
        answer |= {"query": query.words} if query.words else {}
        answer |= {"items": best_items(data, predictor, query, config)}
    return json.dumps(answer, indent=1) if config.json else show(answer)


def told(corpus: Corpus, items: Iterable[int]) -> list[dict[str, Any]]:
    return [{"item": corpus.item_ids[item], "title": corpus.titles[item]} for item in items]


def told_history(corpus: Corpus, query: Query) -> dict[str, Any]:
    latest = corpus.history(query.user, query.position)[-SHOWN:]
    return {"items": query.position, "latest": told(corpus, latest.tolist())}


def best_items(
    data: ExperimentData, predictor: Predictor, query: Query, config: GenerateConfig
) -> list[dict[str, Any]]:
    """Items, best first, with the probability that the model gives their names."""
    beams = max(config.beams, config.k)
    items, scores = find_items(data, predictor, [query], config.k, beams, keep_seen=config.keep_seen)
    found = [(item, float(np.exp(score))) for item, score in zip(items[0], scores[0], strict=True)]
    return [
        {"rank": rank, **told(data.corpus, [item])[0], "probability": probability}
        for rank, (item, probability) in enumerate(found, start=1)
        if item >= 0
    ]


def rate(data: ExperimentData, predictor: Predictor, query: Query, config: BeamConfig) -> dict[str, Any]:
    """The item asked about, and what `parse_rating` finds in the best answer."""
    vocabulary = data.vocabulary
    batches = prompt_batches(data, predictor, [query], tight=True)
    tokens, _ = predictor.generate(batches, 1, config, eos=vocabulary.eos, pad=vocabulary.pad)
    return told(data.corpus, query.right)[0] | parse_rating(vocabulary, tokens[0])


def paint(
    data: ExperimentData, predictor: Predictor, query: Query, painter: Painter, config: GenerateConfig
) -> list[dict[str, Any]]:
    """Files of pictures, each with the log-probability of its codes, the most probable first."""
    codes, scores = ask_for_codes(data, predictor, [query], config.painting, config.seed)
    order = np.argsort(-scores[0], kind="stable")
    painted = []
    for number, picture in enumerate(painter.paint(codes[0, order]), start=1):
        path = config.out / f"{number}.png"
        save_picture(picture, path)
        painted.append({"file": str(path), "log-probability": float(scores[0, order[number - 1]])})
    return painted


def parse_rating(vocabulary: Vocabulary, tokens: np.ndarray) -> dict[str, Any]:
    """What an answer to a preference question says.

    Args:
      tokens: int32 [n]; what stands behind the end is not read.

    Returns:
      `rating`, the stars of the first token, and `explanation`, the words after it; where that is no rating, None, and
      as `answer` all that was said; `whole`, whether the answer came to its end.
    """
    ends = np.flatnonzero(tokens == vocabulary.eos)
    said = tokens[: ends[0]] if len(ends) else tokens
    level = np.flatnonzero(np.isin(vocabulary.ratings, said[:1]))
    words = vocabulary.decode(said[len(level) :].tolist())
    if len(level):
        return {"rating": vocabulary.rating_levels[level[0]], "explanation": words, "whole": bool(len(ends))}
    return {"rating": None, "answer": words, "whole": bool(len(ends))}


def show(answer: dict[str, Any]) -> str:
    """An answer as text for a terminal, which no text of the data can steer."""
    answer = cleaned(answer)
    who = "the given history" if answer["user"] is None else f"user {fitted(answer['user'], room())}"
    count, latest = (
        answer["history"]["items"],
        "; ".join(fitted(item["title"], room()) for item in answer["history"]["latest"]),
    )
    counted = f"{count} item{'' if count == 1 else 's'}, the latest {latest}"
    lines = [f"{answer['task']} for {who}: {counted}", ""]
    if "items" in answer:
        return "\n".join([*lines, *show_items(answer["items"])])
    if "pictures" in answer:
        files = [f"{one['file']}  log-probability {one['log-probability']:.1f}" for one in answer["pictures"]]
        return "\n".join([*lines, f"query  {answer['query']}", *files])
    if "chosen" in answer:
        chosen = [item["item"] for item in answer["chosen"]]
        marks = ["chosen" if item["item"] in chosen else "" for item in answer["candidates"]]
        return "\n".join(
            [*lines, *(f"{mark:6}  {name(item)}" for mark, item in zip(marks, answer["candidates"], strict=True))]
        )
    cut = "" if answer["whole"] else " … (cut off: --new-tokens allows more)"
    if answer["rating"] is None:
        rating, words = "none: the answer does not begin with one", f"answer       {answer['answer'] or 'empty'}{cut}"
    else:
        rating = f"{answer['rating']:g}"
        words = f"explanation  {answer['explanation'] or 'none was written'}{cut}"
    return "\n".join([*lines, name(answer), f"rating       {rating}", words])


def show_items(items: list[dict[str, Any]]) -> list[str]:
    """A table."""
    if not items:
        return ["no item is left: all of the catalogue are in the history (--keep-seen names them as well)"]
    ids = column("item", [item["item"] for item in items], room() // 2)
    titles = column("title", [item["title"] for item in items], room() - len("rank    probability  ") - columns(ids[0]))
    numbers = ["rank", *(f"{item['rank']:4}" for item in items)]
    shares = ["probability", *(f"{item['probability']:11.2%}" for item in items)]
    return ["  ".join(cells) for cells in zip(numbers, titles, ids, shares, strict=True)]


def column(head: str, texts: list[str], most: int) -> list[str]:
    """Texts below their head, all of as many columns, `most` or what the head needs at most."""
    cut = [head, *(fitted(text, max(most, len(head))) for text in texts)]
    width = max(map(columns, cut))
    return [padded(text, width) for text in cut]


def name(item: dict[str, Any]) -> str:
    return f"{fitted(item['title'], room())} ({item['item']})"
