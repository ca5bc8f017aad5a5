"""Experiments: configuration, training, evaluation and the `unimp` command, built on the data pipelines and the model.

The public Python API; each name is imported from its module on first access:

    PRESETS             the preset experiments by name (`ExperimentConfig`)
    train_run           trains a configuration in a folder, or continues its training
    evaluate_run        evaluates a run on all tasks, beside baselines
    write_report        writes a page about one run or several
    TrainedRun          a trained run that answers queries
    NewRun              a new model that is trained step by step
"""

import importlib
from typing import Any

_MODULE_OF = {
    "PRESETS": "experiments.presets",
    "train_run": "experiments.train",
    "evaluate_run": "experiments.evaluate",
    "write_report": "experiments.report",
    "TrainedRun": "experiments.session",
    "NewRun": "experiments.session",
}
__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
