"""Images that no model generated, in a run's folder: of other items with the query, blurred as codes would do it."""

import dataclasses
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image, ImageFilter

from data_pipelines.tasks.queries import held_out_queries
from experiments.config import ExperimentConfig
from experiments.data import ExperimentData, PreparedSource
from experiments.evals.base import OURS
from experiments.evals.image_metrics import Generated, image_outcomes, items_of_the_query, sample_images
from experiments.evaluate import save_answers, tabulate
from experiments.feature_extractors import mean_of_patches
from experiments.results import load_evaluation, save_evaluation
from unimp_jax.model.layers import DTypes, Loop
from unimp_jax.model.vision import VisionTower
from unimp_jax.sharding import make_mesh

SIZE, SAMPLES, USERS = 64, 4, 40


def draw_images(folder: Path, config: ExperimentConfig, records: PreparedSource, data: ExperimentData) -> None:
    """Adds the image task to an evaluation that is there."""
    queries = [
        query for query in held_out_queries(records.corpus, "test", "search") if records.has_image[query.right[0]]
    ]
    queries = queries[:USERS]
    wanted = np.array([query.right[0] for query in queries])
    rng = np.random.default_rng((config.seed, 7))
    _, alike = items_of_the_query(data, wanted, SAMPLES, rng)
    generated = Generated(
        queries,
        {OURS: np.stack([[blurred(data, item) for item in row] for row in alike])},
        np.stack([blurred(data, item) for item in wanted]),
    )
    drawn = nnx.jit(lambda: VisionTower(config.model.vision, DTypes(), Loop(), nnx.Rngs(0)))()
    tower = mean_of_patches(drawn, make_mesh(config.mesh))
    outcomes = image_outcomes(data, tower, generated)
    path = folder / "evaluation" / "test.json"
    evaluation = load_evaluation(path)
    for task, outcome in outcomes.items():
        save_answers(outcome, path.with_name(f"test-{task}.parquet"))
    tables = tuple(tabulate(task, outcome, 0) for task, outcome in outcomes.items())
    samples = sample_images(data, generated, path.parent, "test", count=6)
    save_evaluation(dataclasses.replace(evaluation, tables=evaluation.tables + tables, images=samples), path)


def blurred(data: ExperimentData, item: int) -> np.ndarray:
    image = Image.fromarray(data.images[int(item)]).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1)))
