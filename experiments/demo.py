"""`unimp demo`: from the embedded data to a page, in minutes on two cores."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from data_pipelines.prepare import prepare
from experiments.baselines.sasrec import SASRecConfig
from experiments.config import DataConfig
from experiments.evaluate import EvaluationConfig, evaluate_run, show
from experiments.presets import TINY
from experiments.report import write_report
from experiments.train import train_run


def demo(folder: Path, data: Path) -> None:
    """Goes on where it was interrupted; the page is `report.html` in the folder."""
    start = time.perf_counter()
    if not (data / "movielens_small").exists():
        print(prepare("movielens_small", data))
    train_run(dataclasses.replace(TINY, data=DataConfig("movielens_small", data)), folder)
    trained = time.perf_counter() - start
    evaluation = evaluate_run(folder, EvaluationConfig(sasrec_config=SASRecConfig(seconds=60.0)))
    print(show(evaluation))
    page = write_report(folder)
    print(f"\n{trained:.0f} s until trained, {time.perf_counter() - start:.0f} s in all\n{page.absolute()}")
