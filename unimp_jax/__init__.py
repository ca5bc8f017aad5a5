"""UniMP in JAX: the model and everything that runs it. This package works on arrays and knows no data sets.

Its public names, each imported on first access:

    UniMP, ModelConfig                  the model and its configuration
    Batch                               the arrays that the model reads
    MeshConfig, make_mesh               the device mesh and its axes
    TrainState, make_train_step         one training step as a pure function
    OptimizerConfig, make_optimizer     AdamW with its schedule, as an optax transformation
    Predictor                           a model that ranks, searches, generates and samples
    Trie, build_trie                    the items that decoding may return
"""

import importlib
from typing import Any

_MODULES = {
    "model": ("UniMP", "ModelConfig"),
    "batch": ("Batch",),
    "sharding": ("MeshConfig", "make_mesh"),
    "training.step": ("TrainState", "make_train_step"),
    "training.optimizer": ("OptimizerConfig", "make_optimizer"),
    "evaluation.predictor": ("Predictor",),
    "decoding.trie": ("Trie", "build_trie"),
}
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
