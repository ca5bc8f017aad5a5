"""Generated images on the pages: of one run, and of several beside one another."""

import base64
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from experiments.data import ExperimentData, load_records
from experiments.evals.base import OURS
from experiments.report import write_report
from experiments.report.compare import compare
from experiments.report.runs import read_groups
from experiments.report.samples import GENERATED_HEIGHT, generated_image, read_samples
from experiments.results import load_evaluation
from tests.experiments.drawn_images import SAMPLES, draw_images
from tests.experiments.report_runs import with_seed, write_run
from tests.experiments.tiny_run import experiment, prepare_source

pytestmark = pytest.mark.slow  # a VQGAN and runs are trained

GROUPS = {"base": (0, 1), "other": (0, 1), "blind": (0,)}
"""Seeds; the last asks for no images."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    config = experiment(prepare_source(tmp_path_factory.mktemp("prepared")))
    data, records = ExperimentData.load(config), load_records(config.data)
    folder = tmp_path_factory.mktemp("runs")
    for number, (name, seeds) in enumerate(GROUPS.items()):
        for seed in seeds:
            run = write_run(folder / f"{name}-{seed}", with_seed(config, seed), records, cell=name)
            if name != "blind":
                draw_images(run, with_seed(config, seed + 10 * number), records, data)
    return folder


def images_on(page: str) -> list[np.ndarray]:
    """The PNGs of a page, in order."""
    found = re.findall(r"data:image/png;base64,([\w+/=]+)", page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_a_runs_page_shows_what_was_asked_for_and_what_came(sweep):
    run = sweep / "base-0"
    page = write_report([run]).read_text(encoding="utf-8")
    samples = load_evaluation(run / "evaluation" / "test.json").images
    assert "Images generated for users" in page
    assert page.count("query: <b>") == len(samples) == 6
    shown = images_on(page)
    names = [name for sample in samples for name in (sample.reconstruction, *sample.generated)]
    assert len(shown) == len(names) == len(samples) * (1 + SAMPLES)
    for image, name in zip(shown, names, strict=True):
        assert (image == np.asarray(Image.open(run / "evaluation" / name))).all()
    assert "<h2>Image distance</h2>" in page
    assert page.count("<td>\N{EN DASH}</td>") == 3, "baselines have one image a user, and no diversity of their own"


def test_a_run_without_images_has_no_such_section(sweep):
    assert "Images generated" not in write_report([sweep / "blind-0"]).read_text(encoding="utf-8")


def test_groups_images_stand_beside_one_another(sweep):
    text = write_report([sweep]).read_text(encoding="utf-8")
    (groups,), _ = read_groups([sweep], "test")
    asked = read_samples(groups).images
    assert len(asked) == 4
    assert all([one.group.name for one in user.answers] == ["base", "other"] for user in asked)
    assert len(images_on(text)) == 4 * (1 + 2 * SAMPLES)
    assert "src=" not in text
    assert 'href="#movielens_small-images"' in text
    titles = load_records(groups[0].runs[0].config.data).corpus.titles
    assert all(f"next item: <b>{titles[user.question.target]}</b>" in text for user in asked)


def test_images_that_are_gone_are_reported(sweep, tmp_path):
    for name in ("base-0", "other-0"):
        shutil.copytree(sweep / name, tmp_path / name)
    shutil.rmtree(tmp_path / "other-0" / "evaluation" / "test-images")
    assert "is missing or not an image; run `unimp evaluate`" in write_report([tmp_path]).read_text(encoding="utf-8")
    with pytest.raises(DataError, match=r"test-images.*is missing or not an image"):
        write_report([tmp_path / "other-0"])


def test_metrics_of_images_are_compared_as_all_others_are(sweep):
    (groups,), _ = read_groups([sweep], "test")
    by_task = {one.task: one for one in compare(groups)}
    image, distance = by_task["image"], by_task["image-distance"]
    assert (image.headline, distance.headline) == ("closer", "Fréchet distance")
    assert [line.name for line in image.lines][:2] == ["base", "other"]
    assert sum(line.group is None for line in image.lines) == 3
    assert set(image.compared[0].differences) == set(image.lines[0].metrics)
    evaluations = [load_evaluation(run.folder / "evaluation" / "test.json") for run in groups[0].runs]
    for comparison in (image, distance):
        tables = [next(t for t in one.tables if t.task == comparison.task) for one in evaluations]
        rows = [next(row for row in table.rows if row.model == OURS) for table in tables]
        for name, metric in comparison.lines[0].metrics.items():
            # Of a ratio of means the jackknife is off by terms of 1 / n^2.
            right = np.mean([row.metrics[name].mean for row in rows])
            assert metric.mean == pytest.approx(right, rel=0.02 if name == "diversity" else 1e-9), name


def test_large_images_are_shown_smaller(tmp_path):
    Image.new("RGB", (512, 512), "red").save(tmp_path / "large.png")
    (shown,) = images_on(generated_image(tmp_path / "large.png"))
    assert shown.shape == (GENERATED_HEIGHT, GENERATED_HEIGHT, 3)
