"""What someone asks, about a user of the source or a history in JSON; every mistake is told in one line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

from data_pipelines.corpus import Corpus, with_user
from data_pipelines.errors import DataError
from data_pipelines.queries import IMAGE, PREFERENCE, SEARCH, SELECTION, TASKS, Query
from data_pipelines.sources.checks import BadField, encodable, field, stars, texts
from data_pipelines.vocabulary import NUM_CANDIDATES
from experiments.data import ExperimentData

Task = Literal["recommendation", "search", "preference", "selection", "image"]
STDIN = "standard input"
EXAMPLE = '{"history": ["ITEM_ID", {"item": "ITEM_ID", "rating": 4.0}]}'
FIELDS = ("history", "query", "item", "candidates")
NEEDS = {
    "search": ("query", 'the words searched for, such as --query "Comedy, Drama"'),
    "image": ("query", 'the words of what is to be seen, such as --query "Comedy, Drama"'),
    "preference": ("item", "the id of the item to be rated"),
    "selection": ("candidates", f"the ids of {NUM_CANDIDATES} items to select from"),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """One question in ids of the source.

    Attributes:
      user: of whose history it is asked; None: `history` tells it.
      history: (item id, stars or NaN), oldest first.
      query: what is searched for.
      item: whose rating is asked for.
      candidates: what is selected from.
    """

    task: Task = "recommendation"
    user: str | None = None
    history: tuple[tuple[str, float], ...] = ()
    query: str | None = None
    item: str | None = None
    candidates: tuple[str, ...] = ()


def complete(options: Request, text: str | None) -> Request:
    """The options of a command line, with what the JSON object `text` says beside them where no user is named.

    Raises:
      DataError: the JSON is not as it should be; or something that the task needs is missing, or an option is given
        that it does not know.
    """
    needed, meaning = NEEDS.get(options.task, ("", ""))
    for name in FIELDS[1:]:
        if getattr(options, name) and name != needed:
            others = " or ".join(task for task, (need, _) in NEEDS.items() if need == name)
            raise DataError(f"--{name} is for --task {others}, not for {options.task}")
    request = options
    if text is not None:
        told = read_request(text)
        given = {name: getattr(options, name) for name in FIELDS[1:] if getattr(options, name)}
        request = dataclasses.replace(told, task=options.task, **given)
    if needed and not getattr(request, needed):
        beside = f' (or "{needed}" in the JSON object)' if text is not None else ""
        raise DataError(f"--task {request.task} needs --{needed}, {meaning}{beside}")
    if needed == "candidates" and len(set(request.candidates)) != NUM_CANDIDATES:
        raise DataError(f"--candidates are {len(set(request.candidates))} different ids; {NUM_CANDIDATES} are needed")
    return request


def read_request(text: str) -> Request:
    """A history, and what is asked about it, from a JSON object such as `EXAMPLE`.

    Raises:
      DataError: it is none; names the field.
    """
    if not text.strip():
        raise DataError(f"{STDIN} is empty: name a --user, or give a history there, such as {EXAMPLE}")
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno} column {error.colno}"
        raise DataError(f"{STDIN}: not JSON ({where}); right is {EXAMPLE}") from error
    except RecursionError as error:
        raise DataError(f"{STDIN}: nested too deeply; right is {EXAMPLE}") from error
    try:
        check_object(record, FIELDS)
        if record.get("history") == []:
            raise BadField("field 'history' is empty, one item or more is needed")
        return Request(
            history=tuple(map(read_met, field(record, "history", list))),
            query=field(record, "query", str, default=None),
            item=field(record, "item", str, default=None),
            candidates=texts(record, "candidates"),
        )
    except (BadField, OverflowError) as error:
        raise DataError(f"{STDIN}: {error}; right is {EXAMPLE}") from error


def read_met(met: Any) -> tuple[str, float]:
    """(item id, stars or NaN) of one entry of a history."""
    if isinstance(met, str):
        encodable("history", met)
        return met, math.nan
    check_object(met, ("item", "rating"))
    return field(met, "item", str), stars(met, "rating")


def check_object(record: Any, names: Sequence[str]) -> None:
    """
    Raises:
      BadField: it is no object, or has a field of another name.
    """
    if not isinstance(record, dict):
        raise BadField(f"{json.dumps(record)[:40]} where an object with {', '.join(names)} should be")
    for name in record:
        if name not in names:
            raise BadField(f"there is no field {name!r}; did you mean {nearest(name, names)!r}?")


def pose(data: ExperimentData, request: Request) -> tuple[ExperimentData, Query]:
    """The question, about all that the person has met, and the data in which their history is.

    Raises:
      DataError: a user or an item does not exist, the history is empty, or this source has no such ratings.
    """
    corpus = data.corpus
    numbers = {item_id: number for number, item_id in enumerate(corpus.item_ids)}

    def item_of(item_id: str) -> int:
        if item_id not in numbers:
            raise DataError(f"item {item_id!r} is not in the catalogue; the nearest is {nearest_item(corpus, item_id)}")
        return numbers[item_id]

    if request.user is None:
        check_ratings(request, data.vocabulary.rating_levels)
        items, ratings = [item_of(item_id) for item_id, _ in request.history], [stars for _, stars in request.history]
        data = data.of(with_user(corpus, STDIN, items, ratings))
        user = data.corpus.num_users - 1
    elif request.user in corpus.user_ids:
        user = corpus.user_ids.index(request.user)
    else:
        raise DataError(
            f"user {request.user!r} is not in this source; the nearest is {nearest(request.user, corpus.user_ids)!r}"
        )
    task = TASKS.index(request.task)
    if task == PREFERENCE and not len(data.vocabulary.rating_levels):
        raise DataError("this source has no ratings, so that none can be foretold")
    offsets = data.corpus.offsets
    query = Query(task, user, int(offsets[user + 1] - offsets[user]), ())
    if task in (SEARCH, IMAGE):
        query = dataclasses.replace(query, words=request.query)
    elif task == PREFERENCE:
        query = dataclasses.replace(query, right=(item_of(str(request.item)),))
    elif task == SELECTION:
        query = dataclasses.replace(query, candidates=tuple(map(item_of, request.candidates)))
    return data, query


def check_ratings(request: Request, levels: Sequence[float]) -> None:
    """
    Raises:
      DataError: a rating of the history is beyond those that can be given.
    """
    for item_id, rating in request.history:
        if levels and not math.isnan(rating) and not levels[0] <= rating <= levels[-1]:
            raise DataError(
                f"{STDIN}: the rating of item {item_id} is {rating:g}; this source has {levels[0]:g} to {levels[-1]:g}"
            )


def nearest(name: str, names: Sequence[str]) -> str:
    """The one of `names` that is most like `name`."""
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def nearest_item(corpus: Corpus, text: str) -> str:
    """The id and the title of the item whose id or title is most like `text`, in either case of letters."""
    numbers = {title.lower(): number for number, title in enumerate(corpus.titles)}
    numbers |= {item_id.lower(): number for number, item_id in enumerate(corpus.item_ids)}
    number = numbers[nearest(text.lower(), list(numbers))]
    return f"{corpus.item_ids[number]!r} ({corpus.titles[number]})"
