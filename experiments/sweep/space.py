"""What a search may choose, written as `NAME=log:1e-4,1e-2` and the like."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, Literal, cast

from experiments.config import ExperimentConfig
from experiments.sweep.changes import read_changes

Kind = Literal["float", "log", "int", "of"]
FORM = re.compile(r"(?P<name>[\w.-]+)=(?P<kind>float|log|int|of):(?P<values>.+)")


@dataclasses.dataclass(frozen=True)
class Choice:
    """Of one field: numbers between two, both included (evenly, or evenly in their logarithm), or one of some texts."""

    name: str
    kind: Kind
    values: tuple[Any, ...]


def read_space(texts: Sequence[str], base: ExperimentConfig) -> list[Choice]:
    """
    Raises:
      ValueError: a text is not of the form, or the base cannot be given its values.
    """
    if not texts:
        raise ValueError("--space is empty: name what to choose, as optimizer.learning_rate=log:1e-4,1e-2")
    space = [_read(text) for text in texts]
    names = [choice.name for choice in space]
    if len(set(names)) != len(names):
        raise ValueError(f"--space names a field twice: {', '.join(names)}")
    for choice in space:
        for value in choice.values:
            read_changes(base, {choice.name: value})
    return space


def _read(text: str) -> Choice:
    match = FORM.fullmatch(text)
    if not match:
        raise ValueError(
            f"--space {text!r} is not of the form NAME=log:LOW,HIGH (or float:, int:) or NAME=of:VALUE,VALUE,…"
        )
    name, kind = match["name"].replace("-", "_"), cast(Kind, match["kind"])
    values = tuple(match["values"].split(","))
    if kind == "of":
        return Choice(name, kind, values)
    try:
        low, high = (int(value) if kind == "int" else float(value) for value in values)
    except ValueError as error:
        raise ValueError(f"--space {text!r}: two numbers are right, the lower one first") from error
    if not low < high or (kind == "log" and low <= 0):
        raise ValueError(f"--space {text!r}: the lower number comes first{', and is above 0' if kind == 'log' else ''}")
    return Choice(name, kind, (low, high))


def distributions(space: Sequence[Choice]) -> dict[str, Any]:
    """As Optuna has them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, Any] = {}
    for choice in space:
        if choice.kind == "of":
            made[choice.name] = CategoricalDistribution(choice.values)
        elif choice.kind == "int":
            low, high = choice.values
            made[choice.name] = IntDistribution(low, high)
        else:
            low, high = choice.values
            made[choice.name] = FloatDistribution(low, high, log=choice.kind == "log")
    return made


def describe(space: Sequence[Choice]) -> str:
    return json.dumps([dataclasses.astuple(choice) for choice in space])
