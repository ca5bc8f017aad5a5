"""`unimp demo`: goes from the embedded data to a report, in minutes on two cores."""

import dataclasses
import time
from pathlib import Path

from data_pipelines.prepare import prepare
from experiments.baselines.sasrec import SASRecConfig
from experiments.config import DataConfig, ExperimentConfig
from experiments.evals.config import EvaluationConfig, ImageEvaluationConfig, ImageGenerationConfig
from experiments.evaluate import evaluate_run, show
from experiments.presets import PRESETS
from experiments.report import write_report
from experiments.train import train_run
from experiments.vqgan.command import write_codes
from experiments.vqgan.config import ImageData
from experiments.vqgan.presets import DEMO
from experiments.vqgan.train import train_vqgan_run

SOURCE = "movielens_small"
QUICK = EvaluationConfig(
    checkpoint="latest",
    sasrec_config=SASRecConfig(seconds=60.0, validations=5),
    images=ImageEvaluationConfig(ImageGenerationConfig(samples=2), users=256),
)
"""Generating four images for each of the users would take two minutes more."""


def demo_command(folder: Path = Path("runs/demo"), data: Path = Path("data")) -> None:
    """Prepare MovieLens, train `tiny`, evaluate it with baselines, and write a report.

    An interrupted demo continues where it stopped; the page is `report.html` in the folder.

    Args:
      folder: the run folder.
      data: the folder for prepared records.
    """
    start = time.perf_counter()
    if not (data / SOURCE).exists():
        print(prepare(SOURCE, data))
    codes = posters_in_codes(folder, data)
    train_run(with_images(data, codes), folder)
    trained = time.perf_counter() - start
    evaluation = evaluate_run(folder, QUICK)
    print(show(evaluation))
    page = write_report([folder])
    print(f"\ntrained after {trained:.0f} s, finished after {time.perf_counter() - start:.0f} s\n{page.absolute()}")


def posters_in_codes(folder: Path, data: Path) -> Path:
    """Trains a VQGAN on the posters in a subfolder, and writes and returns the file of their codes beside it."""
    vqgan, codes = folder / "vqgan", folder / "codes.parquet"
    if not codes.exists():
        train_vqgan_run(dataclasses.replace(DEMO, data=ImageData(SOURCE, data)), vqgan)
        print(write_codes(vqgan, codes))
    return codes


def with_images(data: Path, codes: Path) -> ExperimentConfig:
    """Returns `tiny` with image generation among its tasks."""
    return dataclasses.replace(
        PRESETS["tiny"],
        data=DataConfig(SOURCE, data),
        vocabulary=dataclasses.replace(PRESETS["tiny"].vocabulary, image_codes=codes),
        queries=dataclasses.replace(PRESETS["tiny"].queries, mix={**PRESETS["tiny"].queries.mix, "image": 2.0}),
    )
