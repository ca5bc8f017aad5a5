"""The same people's histories, and what each group of runs recommends to them, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from data_pipelines.errors import DataError
from experiments.data import records_of
from experiments.evals.base import OURS
from experiments.report.gather import Group, Run
from experiments.report.page import posters, shown_items

PEOPLE = 6
SHOWN = 6
"""Items of a history, and of an answer."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A group's, by the run of its first seed; `rank` is infinite where the item was not found."""

    group: Group
    rank: float
    top: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Person:
    """Drawn for the base's page, by a seed; items by index into the catalogue."""

    user: str
    history: tuple[int, ...]
    target: int
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class People:
    """Attributes:
    posters: pictures as data addresses, and titles, by item.
    why: what is missing, where nobody can be shown.
    """

    people: tuple[Person, ...] = ()
    posters: dict[int, str] = dataclasses.field(default_factory=dict)
    titles: dict[int, str] = dataclasses.field(default_factory=dict)
    why: str = ""


def gather_people(groups: Sequence[Group], others: Iterable[int] = ()) -> People:
    """`others`: items whose posters and titles are needed as well."""
    base, others = groups[0].runs[0], set(others)
    try:
        records = records_of(base.folder, base.config, shown_items(base.evaluation) | others)
    except DataError as error:
        return People(why=str(error))
    why = "" if base.evaluation.samples else f"{base.folder.name} was evaluated without samples"
    numbers = {item: number for number, item in enumerate(records.corpus.item_ids)}
    found = [(group, answers_of(group.runs[0], numbers)) for group in groups]
    people = tuple(
        Person(
            user=sample.user,
            history=sample.history[-SHOWN:],
            target=sample.target,
            answers=tuple(Answer(group, *by_user[sample.user]) for group, by_user in found if sample.user in by_user),
        )
        for sample in base.evaluation.samples[:PEOPLE]
    )
    items = {item for one in people for item in (*one.history, one.target, *(i for a in one.answers for i in a.top))}
    shown = sorted({*items, *others})
    return People(people, posters(shown, records), {item: records.corpus.titles[item] for item in shown}, why)


def answers_of(run: Run, numbers: dict[str, int]) -> dict[str, tuple[float, tuple[int, ...]]]:
    """(the right item's rank, the best items) by user."""
    table = run.answers.get("recommendation")
    if table is None:
        return {}
    ranks = table[f"{OURS}: rank, seen filtered"].to_pylist()
    return {
        user: (rank, tuple(numbers[item] for item in items[:SHOWN] if item in numbers))
        for user, rank, items in zip(table["user"].to_pylist(), ranks, table["items"].to_pylist(), strict=True)
    }
