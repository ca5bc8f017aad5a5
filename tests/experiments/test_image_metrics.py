"""Images measured beside baselines, and kept to be looked at. Nothing is trained; what was "generated" is known."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from data_pipelines.tasks.queries import held_out_queries
from experiments.data import ExperimentData, load_records, sized_model
from experiments.evals.base import OURS
from experiments.evals.image_metrics import (
    OF_THE_QUERY,
    RANDOM,
    RECONSTRUCTED,
    Generated,
    first_items,
    image_outcomes,
    items_of_the_query,
    random_items,
    refuse_few,
    sample_images,
)
from experiments.evaluate import save_answers, show, tabulate
from experiments.feature_extractors import FeatureExtractor, mean_of_patches
from experiments.results import Evaluation, load_evaluation, save_evaluation
from tests.experiments.tiny_run import MODEL, experiment, prepare_source
from unimp_jax.evaluation.mapping import in_batches, map_batches
from unimp_jax.model.layers import DTypes, Loop
from unimp_jax.model.vision import VisionTower
from unimp_jax.sharding import MeshConfig, make_mesh

SAMPLES, SIZE = 3, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> ExperimentData:
    config = experiment(prepare_source(tmp_path_factory.mktemp("prepared")))
    data = ExperimentData.load(config)
    return ExperimentData.load(sized_model(config, data.vocabulary))


@pytest.fixture(scope="module")
def tower() -> FeatureExtractor:
    vision = nnx.jit(lambda: VisionTower(MODEL.vision, DTypes(), Loop(), nnx.Rngs(0)))()
    return mean_of_patches(vision, make_mesh(MeshConfig(data=-1)))


@pytest.fixture(scope="module")
def generated(data) -> Generated:
    """As of a model that nearly knows what is wanted, and of one that draws whatever comes."""
    rng = np.random.default_rng(0)
    asked = held_out_queries(data.corpus, "test", "search")
    queries = [query for query in asked if data.writer.has_image[query.right[0]]]
    wanted = np.stack([data.images[query.right[0]] for query in queries]).astype(int)
    shape = (len(queries), SAMPLES, SIZE, SIZE, 3)
    near = np.clip(wanted[:, None] + rng.integers(-9, 10, shape), 0, 255).astype(np.uint8)
    noise = rng.integers(0, 256, shape).astype(np.uint8)
    return Generated(queries, {OURS: near, f"{OURS}, noise": noise}, wanted.astype(np.uint8))


@pytest.fixture(scope="module")
def outcomes(data, tower, generated):
    return image_outcomes(data, tower, generated, randoms=5)


def test_rows_are_ours_and_what_they_are_to_be_compared_with(outcomes, generated):
    table = tabulate("image", outcomes["image"], seed=0)
    rows = {row.model: row.metrics for row in table.rows}
    assert list(rows) == [OURS, f"{OURS}, noise", OF_THE_QUERY, RANDOM, RECONSTRUCTED]
    assert rows[OURS]["closer"].mean > 0.9
    assert rows[RECONSTRUCTED]["closer"].mean > 0.95
    assert rows[RANDOM]["closer"].mean == pytest.approx(0.5, abs=0.15), "40 users, 5 comparisons each"
    assert rows[RECONSTRUCTED]["precision"].mean == rows[RECONSTRUCTED]["recall"].mean == 1
    assert rows[f"{OURS}, noise"]["precision"].mean < 0.2
    assert "own diversity" in rows[OURS]
    assert "own diversity" not in rows[RANDOM]
    assert f"features of the run's own tower (the mean over patches, {MODEL.vision.width} features)" in table.note
    assert "UniMP, closer, is above chance for" in table.note
    assert rows[OF_THE_QUERY]["closer, same query"].mean == pytest.approx(0.5, abs=0.15)
    assert rows[OURS]["closer, same query"].mean > 0.9
    distances = tabulate("image-distance", outcomes["image-distance"], seed=0)
    found = {row.model: row.metrics["Fréchet distance"].mean for row in distances.rows}
    assert found[RECONSTRUCTED] == pytest.approx(0, abs=1e-6)
    assert found[OURS] < found[RANDOM] < found[f"{OURS}, noise"]
    assert not distances.larger_is_better
    assert table.users == len(generated.queries)


def test_a_run_whose_prompts_show_no_images_is_measured_alike(data, tower, generated, outcomes):
    config = dataclasses.replace(data.config, tasks=dataclasses.replace(data.config.tasks, images=False))
    hidden = ExperimentData(config, load_records(config.data), data.vocabulary)
    assert not hidden.writer.has_image.any()
    refuse_few(hidden, generated.queries)
    again = image_outcomes(hidden, tower, generated, randoms=5)
    for name, values in outcomes["image"].metrics[OURS].items():
        np.testing.assert_array_equal(again["image"].metrics[OURS][name], values)


def test_rankers_answer_with_the_image_of_their_first_unseen_item(data, tower, generated):
    """One that knows what is wanted, and one whose favourite every user has seen, or that has no image."""
    targets_P = np.array([query.right[0] for query in generated.queries])
    by_moment = {(query.user, query.position): query.right[0] for query in generated.queries}
    scores_I = np.arange(data.corpus.num_items, dtype=np.float32)

    class Knowing:
        name = "knowing"

        def scores(self, users, positions):
            wanted = [by_moment[pair] for pair in zip(users.tolist(), positions.tolist(), strict=True)]
            return scores_I + 1e4 * (np.arange(len(scores_I)) == np.array(wanted)[:, None])

    class Fixed:
        name = "fixed"

        def scores(self, users, positions):
            return np.tile(scores_I, (len(users), 1))

    np.testing.assert_array_equal(first_items(data, Knowing(), generated.queries), targets_P)
    for query, item in zip(generated.queries, first_items(data, Fixed(), generated.queries), strict=True):
        seen = data.corpus.history(query.user, query.position)
        left = [one for one in np.flatnonzero(data.writer.has_image) if one not in seen]
        assert item == max(left)
    found = {one.name: first_items(data, one, generated.queries) for one in (Knowing(), Fixed())}
    found[f"{OURS} + query"] = targets_P
    outcome = image_outcomes(data, tower, generated, found, randoms=5)["image"]
    order = [row.model for row in tabulate("image", outcome, seed=0).rows]
    assert order[:4] == [OURS, f"{OURS}, noise", f"{OURS} + query, its first item", "knowing, its first item"]
    metrics = outcome.metrics
    assert list(metrics)[2:4] == ["knowing, its first item", "fixed, its first item"]
    assert metrics["knowing, its first item"]["closer"].mean() > 0.95
    assert metrics["fixed, its first item"]["closer"].mean() < 0.7


def test_the_same_seed_draws_the_same_others(data, tower, generated, outcomes):
    again = image_outcomes(data, tower, generated, randoms=5)
    for task, outcome in outcomes.items():
        for model, values in outcome.metrics.items():
            assert {name: x.tolist() for name, x in values.items()} == {
                name: x.tolist() for name, x in again[task].metrics[model].items()
            }


def test_others_have_images_and_are_not_what_is_wanted(data, generated):
    wanted = np.array([query.right[0] for query in generated.queries])
    drawn = random_items(data.writer.has_image, wanted, 200, np.random.default_rng(0))
    assert (drawn != wanted[:, None]).all()
    assert set(drawn.ravel().tolist()) == set(np.flatnonzero(data.writer.has_image).tolist())
    alike_P, alike_PR = items_of_the_query(data, wanted, 5, np.random.default_rng(0))
    assert data.writer.has_image[alike_P].all()
    assert data.writer.has_image[alike_PR].all()
    for item, one, others in zip(wanted.tolist(), alike_P.tolist(), alike_PR.tolist(), strict=True):
        categories = data.corpus.categories
        shared = [
            len({*categories[item]} & {*words}) if number != item and data.writer.has_image[number] else -1
            for number, words in enumerate(categories)
        ]
        assert shared[one] == max(shared)
        shared[one] = -1
        assert {shared[other] for other in others} == {max(shared)}


def test_images_of_another_size_are_seen_as_pillow_would_make_them(tower):
    """JAX's and Pillow's bicubic filters differ in rounding: by a level or two of 255."""
    smooth = Image.effect_mandelbrot((48, 48), (-2, -1.5, 1, 1.5), 60).convert("RGB").resize((24, 24))
    small = np.asarray(smooth.resize((16, 16), Image.Resampling.BICUBIC))
    assert tower.see(np.asarray(smooth)[None]) == pytest.approx(tower.see(small[None]), abs=0.02)


def test_batches_make_no_difference():
    rows = np.arange(150, dtype=np.float32)[:, None]
    sizes = []

    def double(part):
        sizes.append(len(part))
        return 2 * part

    assert in_batches(double, rows).tolist() == (2 * rows).tolist()
    assert set(sizes) == {64}
    assert [(some[:, 0].tolist(), len(found)) for some, found in map_batches(double, rows[:5], 4)] == [
        ([0, 1, 2, 3], 4),
        ([4], 1),
    ]
    assert list(map_batches(double, rows[:0])) == []


def test_samples_are_kept_as_images(data, generated, outcomes, tmp_path):
    for _ in range(2):  # the second time in the place of the first
        samples = sample_images(data, generated, tmp_path, "test", count=4, seed=1)
    assert len(samples) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test-images"]
    by_user = {data.corpus.user_ids[query.user]: number for number, query in enumerate(generated.queries)}
    for sample in samples:
        number = by_user[sample.user]
        query = generated.queries[number]
        assert sample.target == query.right[0]
        assert sample.query == ", ".join(data.corpus.categories[sample.target])
        assert sample.history[-1] == data.corpus.history(query.user, query.position)[-1]
        shown = [np.asarray(Image.open(tmp_path / name)) for name in sample.generated]
        assert (np.stack(shown) == generated.images[OURS][number]).all()
        assert (np.asarray(Image.open(tmp_path / sample.reconstruction)) == generated.reconstructions[number]).all()
    tables = tuple(tabulate(task, outcome, 0) for task, outcome in outcomes.items())
    evaluation = Evaluation("movielens_small", "test", 1, tables, (), images=samples)
    save_evaluation(evaluation, tmp_path / "test.json")
    assert load_evaluation(tmp_path / "test.json") == evaluation
    assert "Fréchet distance" in show(evaluation)
    for task, outcome in outcomes.items():
        save_answers(outcome, tmp_path / f"test-{task}.parquet")
