"""Raw data to fixed-shape batches: sources -> records -> corpus -> tasks -> packing -> loader. Knows no model.

`data_pipelines.prepare.prepare` writes the records of a source. These names are what else is needed to use it, to add a
source or to add a task; they are imported when they are first asked for:

    SOURCES, find_source            the data sets by name, each a TFDS builder
    RecordBuilder, Source           what a data set is: a builder that opens its table of interactions and its items
    SourceSelection                       which part of a source is prepared
    read_items, read_users          the records of a prepared source
    Item, User, Interaction         what records are
    Corpus, build_corpus            all records as arrays, with what is held out
    Task, TASKS, register           what can be asked about a user, and how a task is added
    DataError                       bad input, told in one line
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
