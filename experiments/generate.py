"""`unimp generate`: answers one user's query with a run or with its export, and shows the titles of the items.

Recommendation and search return the best items, rating returns a rating and its explanation, selection the chosen items
of three candidates, image the image files. Nothing is evaluated here, so the user is known by their history only.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from data_pipelines.corpus import Corpus, with_user
from data_pipelines.errors import DataError
from data_pipelines.nearest import likeness, nearest
from data_pipelines.tasks import Query
from data_pipelines.tasks.registry import check_names
from data_pipelines.vocabulary import NUM_CANDIDATES
from experiments.data import ExperimentData
from experiments.evals import EVALS
from experiments.evals.base import titled
from experiments.evals.config import GenerateConfig
from experiments.path_options import PathOrURL
from experiments.request import FIELDS, STDIN, Request, decoded, read_request
from experiments.run import open_to_ask
from experiments.terminal import cleaned, fitted, terminal_width
from unimp_jax.decoding import BeamConfig

SHOWN = 3
"""Number of items shown from the end of a history."""


def generate_command(
    folder: tyro.conf.Positional[PathOrURL], config: Annotated[GenerateConfig, tyro.conf.arg(name="")]
) -> None:
    """Answer one user's question with a trained model: what to recommend, what matches a search, how they would rate an
    item, which of three suits them.

    Args:
      folder: a run folder, or one made by `unimp export` for transformers.
    """
    print(generate(folder, config, read_input))


def read_input() -> str:
    """Returns standard input; empty if it is closed or a terminal, because nobody types JSON."""
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    content = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if content is None else decoded(content.read())


def generate(folder: Path, config: GenerateConfig, read: Callable[[], str]) -> str:
    """Returns the answer as text or as JSON; `read` returns the JSON object and is called if no user is named. A
    DataError about the request is raised before the weights are read."""
    options = Request(config.task, config.user, (), config.query, config.item, config.candidates)
    request = complete(options, read() if config.user is None else None)
    data, open_model = open_to_ask(
        folder, config.checkpoint, records=config.data, new_items=config.new_items, mesh=config.mesh
    )
    data, query = pose(data, request)
    if config.k > data.corpus.num_items:
        raise DataError(
            f"--k is {config.k}; it must be between 1 and {data.corpus.num_items}, the size of the catalogue"
        )
    BeamConfig(config.beams, config.new_tokens)  # refuses invalid options before the weights are read
    data.writer.write(query, ask=True)  # a prompt that does not fit is reported before the weights are read
    evaluation = EVALS[config.task]
    opened = evaluation.open(data, config)
    predictor = open_model()
    answer: dict[str, Any] = {"task": config.task, "user": config.user, "history": history_of(data.corpus, query)}
    answer |= evaluation.answer(data, predictor, query, config, opened)
    return json.dumps(answer, indent=1) if config.json else show(answer)


def history_of(corpus: Corpus, query: Query) -> dict[str, Any]:
    """Returns the length of the query's history and its latest items."""
    latest = corpus.history(query.user, query.position)[-SHOWN:]
    return {"items": query.position, "latest": titled(corpus, latest.tolist())}


def show(answer: dict[str, Any]) -> str:
    """Formats an answer for a terminal, which no text in the data can control."""
    answer = cleaned(answer)
    who = "the given history" if answer["user"] is None else f"user {fitted(answer['user'], terminal_width())}"
    count, latest = answer["history"]["items"], answer["history"]["latest"]
    titles = "; ".join(fitted(item["title"], terminal_width()) for item in latest)
    counted = f"{count} item{'' if count == 1 else 's'}, the latest {titles}"
    lines = [f"{answer['task']} for {who}: {counted}", ""]
    return "\n".join([*lines, *EVALS[answer["task"]].show(answer)])


def complete(options: Request, text: str | None) -> Request:
    """Returns the options of the command line, combined with the JSON object `text` if no user is named; DataError if
    an option is given that the task does not have."""
    for name in FIELDS[1:]:
        if getattr(options, name) and name != EVALS[options.task].needs[0]:
            others = " or ".join(task for task, one in EVALS.items() if one.needs[0] == name)
            raise DataError(f"--{name} belongs to --task {others}, not to {options.task}")
    if text is None:
        return options
    given = {name: getattr(options, name) for name in FIELDS[1:] if getattr(options, name)}
    return dataclasses.replace(read_request(text), task=options.task, **given)


def check(request: Request) -> None:
    """Raises DataError if an input that the task needs is missing or unusable; ValueError if there is no such task."""
    check_names("task", [request.task])
    needed, meaning = EVALS[request.task].needs
    if needed and not getattr(request, needed):
        beside = f' (or "{needed}" in the JSON object)' if request.user is None else ""
        raise DataError(f"--task {request.task} needs --{needed}, {meaning}{beside}")
    if needed == "candidates" and not len(request.candidates) == len(set(request.candidates)) == NUM_CANDIDATES:
        raise DataError(
            f"--candidates has {len(request.candidates)} ids, {len(set(request.candidates))} of them different; "
            f"exactly {NUM_CANDIDATES} different ids are needed"
        )


def pose(data: ExperimentData, request: Request) -> tuple[ExperimentData, Query]:
    """Returns the data with the user's history, and the query about the whole of it; DataError as in `check`, or if a
    user or an item does not exist, the history is empty, or this source does not have such ratings."""
    check(request)
    corpus = data.corpus
    numbers = {item_id: number for number, item_id in enumerate(corpus.item_ids)}

    def item_of(item_id: str) -> int:
        if item_id not in numbers:
            raise DataError(f"item {item_id!r} is not in the catalogue{nearest_item(corpus, item_id)}")
        return numbers[item_id]

    if request.user is None:
        check_ratings(request, data.vocabulary.rating_levels)
        items, ratings = [item_of(item_id) for item_id, _ in request.history], [stars for _, stars in request.history]
        data = data.of(with_user(corpus, STDIN, items, ratings))
        user = data.corpus.num_users - 1
    elif request.user in corpus.user_ids:
        user = corpus.user_ids.index(request.user)
    else:
        near = nearest(request.user, corpus.user_ids)
        hint = "" if near is None else f"; the nearest is {near!r}"
        raise DataError(f"user {request.user!r} is not in this source{hint}")
    offsets = data.corpus.offsets
    query = Query(request.task, user, int(offsets[user + 1] - offsets[user]), ())
    return data, EVALS[request.task].query(data, request, query, item_of)


def check_ratings(request: Request, levels: Sequence[float]) -> None:
    """Raises DataError if a rating of a given history is outside the range of the source."""
    for item_id, rating in request.history:
        if levels and not math.isnan(rating) and not levels[0] <= rating <= levels[-1]:
            raise DataError(
                f"{STDIN}: the rating of item {item_id} is {rating:g}; the ratings of this source are "
                f"{levels[0]:g} to {levels[-1]:g}"
            )


def nearest_item(corpus: Corpus, text: str) -> str:
    """Returns a hint for a message about an unknown id: the item whose title, or else whose id, is most similar."""
    by_title, by_id = nearest(text, corpus.titles), nearest(text, corpus.item_ids)
    if by_title is not None and (by_id is None or likeness(by_title, text) > likeness(by_id, text)):
        number = corpus.titles.index(by_title)
    elif by_id is not None:
        number = corpus.item_ids.index(by_id)
    else:
        return ""
    return f"; the nearest is {corpus.item_ids[number]!r} ({corpus.titles[number]})"
