"""Joins data and model: configurations, training, evaluation, and the `unimp` command.

What Python programs need is imported from here, when it is first asked for:

    PRESETS             experiments by name (`ExperimentConfig`)
    train_run           trains a configuration in a folder, or continues
    evaluate_run        measures a run on all tasks, beside baselines
    write_report        one page of one run or many
    TrainedRun          a trained run that answers questions
    NewRun              a new model, trained a step at a time
"""

from __future__ import annotations

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
