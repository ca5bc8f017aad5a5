"""What the same people asked to see, and what each group of runs generated for them, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data_pipelines.errors import DataError
from experiments.report.gather import Group
from experiments.report.page import drawn_picture

PEOPLE = 4
SHOWN = 4
"""Pictures of a group for one of them."""
HISTORY = 6


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A group's, by the run of its first seed, as data addresses; `why` there are none."""

    group: Group
    pictures: tuple[str, ...]
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Asked:
    """Items by index into the catalogue, pictures as data addresses.

    Attributes:
      reconstruction: the wanted picture, as the codes of the first group with pictures give it back.
    """

    user: str
    query: str
    history: tuple[int, ...]
    target: int
    reconstruction: str
    answers: tuple[Drawn, ...]

    @property
    def items(self) -> tuple[int, ...]:
        return (*self.history, self.target)


def gather_asked(groups: Sequence[Group]) -> tuple[Asked, ...]:
    """Nobody, where no group generated pictures."""
    found = [(group, {sample.user: sample for sample in group.runs[0].evaluation.pictures}) for group in groups]
    found = [(group, by_user) for group, by_user in found if by_user]
    if not found:
        return ()
    first, samples = found[0]
    return tuple(
        Asked(
            user=sample.user,
            query=sample.query,
            history=sample.history[-HISTORY:],
            target=sample.target,
            reconstruction=next(iter(drawn(first, [sample.reconstruction]).pictures), ""),
            answers=tuple(drawn(group, users[sample.user].generated) for group, users in found if sample.user in users),
        )
        for sample in list(samples.values())[:PEOPLE]
    )


def drawn(group: Group, names: Sequence[str]) -> Drawn:
    folder = group.runs[0].folder / "evaluation"
    try:
        return Drawn(group, tuple(drawn_picture(folder / name) for name in names[:SHOWN]))
    except DataError as error:
        return Drawn(group, (), str(error))
