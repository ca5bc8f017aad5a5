"""What someone asks, about a user of the source or a history in JSON; every mistake is told in one line."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

from data_pipelines.corpus import Corpus, with_user
from data_pipelines.errors import DataError
from data_pipelines.nearest import did_you_mean, likeness, nearest
from data_pipelines.sources.checks import BadField, field, shown, stars
from data_pipelines.tasks import Query
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
    text = text.removeprefix("\ufeff").strip()
    if not text:
        raise DataError(f"{STDIN} is empty: name a --user, or give a history there, such as {EXAMPLE}")
    try:
        record = json.loads(text, object_pairs_hook=without_repeats, parse_constant=no_number)
        check_object(record, FIELDS)
        if record.get("history") == []:
            raise BadField("field 'history' is empty, one item or more is needed")
        return Request(
            history=tuple(map(read_met, field(record, "history", list))),
            query=field(record, "query", str, default=None),
            item=None if record.get("item") is None else read_id(record, "item"),
            candidates=tuple(
                read_id({"candidates": one}, "candidates") for one in field(record, "candidates", list, default=())
            ),
        )
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno} column {error.colno}"
        more = "more than one object, or text behind it, " if error.msg == "Extra data" else ""
        raise DataError(f"{STDIN}: not JSON ({more}{where}); right is {EXAMPLE}") from error
    except RecursionError as error:
        raise DataError(f"{STDIN}: nested too deeply; right is {EXAMPLE}") from error
    except (ValueError, OverflowError) as error:  # BadField, and numbers of thousands of digits
        raise DataError(f"{STDIN}: {error}; right is {EXAMPLE}") from error


def decoded(content: bytes) -> str:
    """JSON's text, in UTF-8, UTF-16 or UTF-32, with a mark of byte order or without.

    Raises:
      DataError: it is in another encoding.
    """
    try:
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{STDIN} is not UTF-8 (byte 0x{content[error.start]:02x} at position {error.start}): convert it, such as "
            "with `iconv -f latin1 -t utf-8`"
        ) from error


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object.

    Raises:
      BadField: it has a field twice.
    """
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise BadField(f"field {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return record


def no_number(constant: str) -> float:
    raise BadField(f"{constant} where a number should be")


def read_id(record: dict[str, Any], name: str) -> str:
    """An id; one that is written as a number is its text."""
    value = field(record, name, str, int, float)
    return value if isinstance(value, str) else json.dumps(value)


def read_met(met: Any) -> tuple[str, float]:
    """(item id, stars or NaN) of one entry of a history."""
    if isinstance(met, str | int | float) and not isinstance(met, bool):
        return read_id({"history": met}, "history"), math.nan
    check_object(met, ("item", "rating"))
    return read_id(met, "item"), stars(met, "rating")


def check_object(record: Any, names: Sequence[str]) -> None:
    """
    Raises:
      BadField: it is no object, or has a field of another name.
    """
    if not isinstance(record, dict):
        raise BadField(f"{shown(record)} where an object with {', '.join(names)} should be")
    for name in record:
        if name not in names:
            raise BadField(f"there is no field {name!r}; {did_you_mean(name, names)}There are {', '.join(names)}")


def pose(data: ExperimentData, request: Request) -> tuple[ExperimentData, Query]:
    """The question, about all that the person has met, and the data in which their history is.

    Raises:
      DataError: a user or an item does not exist, the history is empty, or this source has no such ratings.
    """
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
    task = request.task
    if task == "preference" and not len(data.vocabulary.rating_levels):
        raise DataError("this source has no ratings, so that none can be foretold")
    offsets = data.corpus.offsets
    query = Query(task, user, int(offsets[user + 1] - offsets[user]), ())
    if task in ("search", "image"):
        query = dataclasses.replace(query, words=request.query)
    elif task == "preference":
        query = dataclasses.replace(query, right=(item_of(str(request.item)),))
    elif task == "selection":
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


def nearest_item(corpus: Corpus, text: str) -> str:
    """What to add to a message about an id that is none: the item whose title, or else whose id, is most like it;
    nothing where there is none."""
    by_title, by_id = nearest(text, corpus.titles), nearest(text, corpus.item_ids)
    if by_title is not None and (by_id is None or likeness(by_title, text) > likeness(by_id, text)):
        number = corpus.titles.index(by_title)
    elif by_id is not None:
        number = corpus.item_ids.index(by_id)
    else:
        return ""
    return f"; the nearest is {corpus.item_ids[number]!r} ({corpus.titles[number]})"
