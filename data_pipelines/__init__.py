"""Data pipelines: turn raw data into fixed-shape batches, independently of any model.

The stages are sources -> records -> corpus -> tasks -> packing -> loader. `data_pipelines.prepare.prepare` writes the
records of a source. The following names are needed to use it, to add a source or to add a task. Each is imported when
it is first accessed:

    SOURCES, find_source            the data sets by name, each a TFDS builder
    RecordBuilder, Source           what a data set defines: a builder that opens its interaction table and its items
    SourceSelection                 which part of a source is prepared
    read_items, read_users          the records of a prepared source
    Item, User, Interaction         the record types
    Corpus, build_corpus            all records as arrays, with the held-out interactions marked
    Task, TASKS, register           the questions that can be asked about a user, and how to add a task
    DataError                       bad input, described in one line
"""

import importlib
from typing import Any

_MODULES = {
    "sources.registry": ("SOURCES", "find_source"),
    "sources.builder": ("RecordBuilder",),
    "sources.source": ("Source",),
    "sources.selection": ("SourceSelection",),
    "records": ("read_items", "read_users"),
    "schema": ("Item", "User", "Interaction"),
    "corpus": ("Corpus", "build_corpus"),
    "tasks": ("Task", "TASKS", "register"),
    "errors": ("DataError",),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
