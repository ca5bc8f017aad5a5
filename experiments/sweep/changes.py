"""Configurations changed by the dotted names of their fields, and told as options of a command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from data_pipelines.nearest import nearest
from experiments.config import flat

Config = TypeVar("Config")
Changes = Mapping[str, Any]
"""Dotted name of a field -> its value."""


def changed(config: Config, changes: Changes) -> Config:
    """
    Raises:
      ValueError: what comes of it is no configuration.
    """
    return _changed(config, {tuple(name.split(".")): value for name, value in changes.items()})


def _changed(config: Any, changes: Mapping[tuple[str, ...], Any]) -> Any:
    """All changes at once: what lies between two of them need not make sense."""
    values: dict[str, Any] = {}
    for first in dict.fromkeys(path[0] for path in changes):
        inner = config[first] if isinstance(config, Mapping) else getattr(config, first)
        inner = changes.get((first,), inner)
        below = {path[1:]: value for path, value in changes.items() if path[0] == first and len(path) > 1}
        values[first] = _changed(inner, below) if below else inner
    return {**config, **values} if isinstance(config, Mapping) else dataclasses.replace(config, **values)


def read_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """As `changed`, with plain values or texts, which become of the fields' types.

    Raises:
      ValueError: a field is not there, a value is not of its type, or what comes of it is no configuration.
    """
    tree = _json(config)
    known = flat(tree)
    for name, value in changes.items():
        field = name.replace("-", "_")
        if field not in known:
            near = nearest(field, known)
            raise ValueError(f"{name} is no field{f'; did you mean {near}?' if near else ''}")
        *path, last = field.split(".")
        place = tree
        for part in path:
            place = place[part]
        place[last] = value
    try:
        return pydantic.TypeAdapter(type(config)).validate_json(json.dumps(tree))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        told = ", ".join(f"{name} {value}" for name, value in changes.items())
        raise ValueError(f"{told}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def options(default: Config, config: Config) -> list[str]:
    """`--name value …` for each field that differs from the default's."""
    before, after = flat(_json(default)), flat(_json(config))
    words = []
    for name, value in after.items():
        if value != before[name]:
            words += _option(f"--{name.replace('_', '-')}", value)
    return words


def _option(name: str, value: Any) -> list[str]:
    values = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    if len(values) == 1 and values[0].startswith("-"):
        return [f"{name}={values[0]}"]
    return [name, *values]


def _json(config: Any) -> dict[str, Any]:
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json")
