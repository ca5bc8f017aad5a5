"""Selects the held-out queries of an evaluation, and describes those that are left out."""

import dataclasses
from collections.abc import Sequence

from data_pipelines.errors import DataError
from data_pipelines.tasks import Query
from data_pipelines.tasks.base import Split
from data_pipelines.tasks.queries import HeldOut, held_out, held_out_queries
from experiments.data import ExperimentData


@dataclasses.dataclass(frozen=True)
class EvaluationQueries(HeldOut):
    """The queries of one task that are asked, out of the `available` ones."""

    available: int

    @property
    def note(self) -> str:
        """A note for the table, after a blank; empty if all users are asked."""
        sampled = len(self.queries) < self.available
        even = f" An evenly spaced sample of {len(self.queries):,} of {self.available:,} users." if sampled else ""
        return even + (f" Left out: {self.reasons}." if self.left_out else "")

    @property
    def reasons(self) -> str:
        """For example `12 users whose answer has no rating`."""
        return ", ".join(f"{count:,} user{'s' * (count != 1)} {reason}" for reason, count in self.left_out.items())


def evenly_spaced(queries: Sequence[Query], count: int | None) -> list[Query]:
    """Returns `count` evenly spaced queries in their order, or all of them if there are fewer or `count` is None.

    Queries with one right item and those with two are represented in proportion.
    """
    count = len(queries) if count is None else min(count, len(queries))
    # In selection the number of right items alternates between users, so every second user would have the same.
    order = sorted(range(len(queries)), key=lambda number: len(queries[number].right))
    return [queries[number] for number in sorted(order[len(order) * place // count] for place in range(count))]


def evaluation_queries(data: ExperimentData, split: Split, task: str, users: int | None = None) -> EvaluationQueries:
    """Returns the held-out queries of a task, for `users` evenly spaced users; None: for all."""
    found = held_out(data.corpus, split, task, data.has_codes)
    return EvaluationQueries(evenly_spaced(found.queries, users), found.left_out, len(found.queries))


def reason_for_none(data: ExperimentData, split: Split, task: str, questions: EvaluationQueries) -> str:
    """Returns why a task has no queries, and which split has some."""
    other: Split = "test" if split == "validation" else "validation"
    available = len(held_out_queries(data.corpus, other, task, data.has_codes))
    why = f" ({questions.reasons})" if questions.left_out else ""
    return f"no {split} questions{why}" + (f"; --split {other} has {available:,}" if available else "")


def check_queries(data: ExperimentData, split: Split, asked: dict[str, EvaluationQueries]) -> None:
    """Raises DataError if no task has a query."""
    if not asked:
        raise DataError("this run was not trained to generate images (queries.mix.image); choose other --tasks")
    if not any(questions.queries for questions in asked.values()):
        reasons = dict.fromkeys(reason_for_none(data, split, task, questions) for task, questions in asked.items())
        raise DataError(f"{data.config.data.source}: {'; '.join(reasons)}")
