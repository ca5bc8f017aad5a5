"""Changes configurations by the dotted names of their fields, and writes them as command-line options."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

import pydantic

from data_pipelines.nearest import did_you_mean
from experiments.config import adapter, flat, to_json

C = TypeVar("C")
Changes = Mapping[str, Any]
"""Dotted names of fields, with their new values or the text of these."""


def changed(config: C, changes: Changes) -> C:
    """Returns the configuration with other values of some fields; ValueError if a field does not exist, a value has the
    wrong type, or the values do not fit together."""
    tree = to_json(config)
    fields = flat(tree)
    for name, value in changes.items():
        field = name.replace("-", "_")
        if field not in fields:
            raise ValueError(f"there is no field {name}; {did_you_mean(field, fields)}".rstrip("; "))
        *path, last = field.split(".")
        functools.reduce(dict.__getitem__, path, tree)[last] = value
    try:
        return adapter(type(config)).validate_python(tree)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        what = ", ".join(f"{name} {value}" for name, value in changes.items())
        raise ValueError(": ".join([what, *map(str, first["loc"][-1:]), first["msg"]])) from error


def options(default: C, config: C) -> list[str]:
    """Returns `--name value …` for each field that differs from the default."""
    before = flat(to_json(default))
    words: list[str] = []
    for name, value in flat(to_json(config)).items():
        if value == before[name]:
            continue
        option = f"--{option_name(config, name).replace('_', '-')}"
        values = [str(one) for one in (value if isinstance(value, list) else [value])]
        words += [f"{option}={values[0]}"] if len(values) == 1 and values[0].startswith("-") else [option, *values]
    return words


def option_name(config: Any, name: str) -> str:
    """Returns the name of a field's option: tyro leaves out the parts that are annotated with an empty name."""
    parts = []
    for part in name.split("."):
        hint = get_type_hints(type(config), include_extras=True).get(part) if dataclasses.is_dataclass(config) else None
        if all(getattr(note, "name", None) != "" for note in getattr(hint, "__metadata__", ())):
            parts.append(part)
        config = getattr(config, part, None)
    return ".".join(parts)
