"""The comparison of many runs: what is in it, its metrics, and its page in a browser."""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from PIL import Image

from data_pipelines.errors import DataError
from experiments.config import DataConfig
from experiments.data import load_records
from experiments.evals.base import OURS
from experiments.report import write_report
from experiments.report.compare import compare
from experiments.report.cost import cost, format_seconds, format_si, mean_cost
from experiments.report.page import write_whole
from experiments.report.runs import changes, read_groups
from experiments.report.tables import overview_table
from experiments.results import load_evaluation
from experiments.step import model_flops
from tests.experiments.report_runs import begin_run, with_seed, write_run
from tests.experiments.tiny_run import experiment, prepare_source
from unimp_jax.evaluation.repeats import holm

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
SEEDS = (0, 1, 2)
ABLATIONS = {"base": 0.0, "no_<text>": 0.01, "no_images": 0.9}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def records(data):
    return load_records(DataConfig("movielens_small", data))


@pytest.fixture(scope="module")
def base(data):
    return experiment(data)


def ablated(base, ablation: str):
    tasks = dataclasses.replace(base.tasks, images=ablation != "no_images", text=ablation != "no_<text>")
    return dataclasses.replace(base, tasks=tasks)


@pytest.fixture(scope="module")
def sweep(base, records, tmp_path_factory):
    """Three ablations of three seeds, and cells that were not begun, failed, are not done, and not evaluated."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    for ablation, worse in ABLATIONS.items():
        for seed in SEEDS:
            config = with_seed(ablated(base, ablation), seed)
            write_run(folder / f"{ablation}-{seed}", config, records, worse=worse, cell=ablation)
    begin_run(folder / "slow-0", base, steps=4, cell="slow")
    begin_run(folder / "done-0", base, steps=base.loop.steps, cell="done")
    begin_run(folder / "failed-0", base, steps=2, cell="failed")
    (folder / "failed-0" / "failed.json").write_text(
        json.dumps(
            {"command": "unimp", "reason": "exit status 1", "seconds": 2, "end": ["step 2", "no room on the device"]}
        )
    )
    order = ("no_<text>", "base", "no_images")
    names = [f"{ablation}-{seed}" for seed in SEEDS for ablation in order]
    cells = [{"folder": name} for name in [*names, "slow-0", "done-0", "failed-0", "never-0"]]
    (folder / "sweep.json").write_text(json.dumps({"sweep": "sweep", "cells": cells, "parts": []}))
    return folder


@pytest.fixture(scope="module")
def groups(sweep):
    sources, _ = read_groups([sweep], "test")
    assert len(sources) == 1
    return sources[0]


@pytest.fixture(scope="module")
def page(sweep):
    return write_report([sweep])


def test_seeds_of_an_ablation_are_a_group_and_nothing_is_dropped_in_silence(sweep, groups):
    assert [group.name for group in groups] == ["base", "no_<text>", "no_images"], (
        "the base, then as the sweep lists them"
    )
    assert [group.seeds for group in groups] == [list(SEEDS)] * 3
    assert groups[1].description == "no no_<text>"
    _, left_out = read_groups([sweep], "test")
    reasons = {one.name.rpartition("/")[2]: one.reason for one in left_out}
    assert reasons == {
        "slow-0": "unfinished: step 4 of 12",
        "done-0": "trained, not evaluated on test",
        "failed-0": "failed: exit status 1; no room on the device",
        "never-0": "not started",
    }


def test_runs_that_are_no_cells_are_grouped_by_what_differs(base, records, tmp_path):
    for name, ablation, seed in (("plain-0", "base", 0), ("plain-1", "base", 1), ("blind", "no_images", 0)):
        write_run(tmp_path / name, with_seed(ablated(base, ablation), seed), records)
    shutil.copytree(tmp_path / "plain-0", tmp_path / "copy")
    (groups,), left_out = read_groups([tmp_path / "plain-0", tmp_path], "test")
    assert [(group.name, group.seeds) for group in groups] == [("plain", [0, 1]), ("blind", [0])]
    assert [(one.name, "the same experiment and seed" in one.reason) for one in left_out] == [
        (str(tmp_path / "copy"), True)
    ]
    assert changes(groups[0], groups[1]) == [("tasks.images", True, False)]


def test_what_differs_between_seeds_is_no_difference_of_groups(base, records, tmp_path):
    for seed in (0, 1):
        begun = dataclasses.replace(with_seed(base, seed), init_from=tmp_path / f"start-{seed}")
        write_run(tmp_path / f"tuned-{seed}", begun, records, cell="tuned")
        write_run(tmp_path / f"base-{seed}", with_seed(base, seed), records, cell="base")
    (groups,), _ = read_groups([tmp_path], "test")
    tuned = groups[1]
    assert tuned.varying == ["init_from"]
    assert changes(groups[0], tuned) == []


def test_sources_are_kept_apart(base, records, sweep, tmp_path):
    other = dataclasses.replace(base, data=dataclasses.replace(base.data, source="elsewhere"))
    write_run(tmp_path / "other", other, records)
    first, second = read_groups([sweep / "base-0", sweep / "no_images-0", tmp_path / "other"], "test")[0]
    assert ([group.name for group in first], [group.name for group in second]) == (["base", "no_images"], ["other"])
    text = write_report([sweep / "base-0", tmp_path / "other"], out=tmp_path / "both").read_text(encoding="utf-8")
    assert "<h2>movielens_small</h2>" in text
    assert "<h2>elsewhere</h2>" in text
    assert "No users are shown: " in text
    assert "unimp prepare elsewhere" in text


def test_the_page_of_several_runs_is_in_the_folder_that_contains_them(sweep, tmp_path):
    for name in ("base-0", "no_images-0"):
        shutil.copytree(sweep / name, tmp_path / name)
    assert write_report([tmp_path / "base-0", tmp_path / "base-0" / ".." / "no_images-0"]) == tmp_path / "report.html"


def test_metrics_are_means_of_the_runs_own(groups):
    for comparison in compare(groups):
        for line in comparison.lines:
            if not line.group or "written" in line.name:
                continue
            model = OURS + line.name.removeprefix(line.group.name)
            for name, metric in line.metrics.items():
                evaluations = [load_evaluation(run.folder / "evaluation" / "test.json") for run in line.group.runs]
                tables = [next(t for t in one.tables if t.task == comparison.task) for one in evaluations]
                own = [next(row for row in table.rows if row.model == model).metrics[name].mean for table in tables]
                assert metric.mean == pytest.approx(np.mean(own), abs=1e-12), (comparison.task, line.name, name)
                assert metric.low < metric.mean < metric.high or len(set(own)) == 1


def test_an_answer_that_one_seed_could_not_read_is_left_out_for_all(groups):
    rating = next(one for one in compare(groups) if one.task == "rating")
    users = {line.name: line.users for line in rating.lines}
    assert users["base, expected rating"] == rating.table.users == 40
    assert users["base, written rating"] == users["no_images, written rating"] == 39


def test_baselines_are_shown_once_and_compared_with_nothing(groups):
    recommendation = compare(groups)[0]
    assert [line.name for line in recommendation.lines] == [*ABLATIONS, "Popularity"]
    assert [bool(line.differences) for line in recommendation.lines] == [False, True, True, False]
    assert not recommendation.lines[-1].group


def test_of_one_seed_differences_are_scipys_paired_test_corrected_by_holm(sweep):
    (groups,), _ = read_groups([sweep / f"{ablation}-0" for ablation in ABLATIONS], "test")
    found = compare(groups)[0].compared

    def values(ablation: str) -> np.ndarray:
        table = pq.read_table(sweep / f"{ablation}-0" / "evaluation" / "test-recommendation.parquet")
        return table[f"{OURS}: NDCG@10"].to_numpy()

    tests = [scipy.stats.ttest_rel(values(name), values("base")) for name in list(ABLATIONS)[1:]]
    for line, right, corrected in zip(found, tests, holm([one.pvalue for one in tests]), strict=True):
        tested = line.differences["NDCG@10"]
        assert (tested.low, tested.high) == pytest.approx(tuple(right.confidence_interval()))
        assert tested.holm == pytest.approx(corrected)
        assert line.runs == 1


def test_what_is_worse_is_found_to_be(groups):
    recommendation, rating, _ = compare(groups)
    for comparison, name in ((recommendation, "NDCG@10"), (rating, "RMSE")):
        assert comparison.headline == name
        by_name = {line.group.name: line for line in comparison.compared}
        wordless, blind = by_name["no_<text>"], by_name["no_images"]
        assert blind.differences[name].significant
        assert blind.differences[name].worse
        assert not wordless.differences[name].significant


def test_costs_by_hand(groups):
    run = groups[0].runs[1]
    found = cost(run)
    assert found["steps"] == 12
    assert found["training time"] == pytest.approx(12 * 0.6)
    assert found["tokens"] == pytest.approx(12 * 0.9 * 8 * 128)
    assert found["tokens/s"] == pytest.approx(0.9 * 8 * 128 / 0.6)
    assert found["model FLOPs"] == 12 * model_flops(run.config)
    assert [found[name] for name in ("trained parameters", "frozen parameters", "evaluation")] == [12345, 678, 2.5]
    assert mean_cost(groups[0].runs)["training time"] == pytest.approx(12 * 0.6)
    assert [format_si(577602), format_si(3.2e14, "FLOP"), format_seconds(90), format_seconds(9000)] == [
        "578 k", "320 TFLOP", "90 s", "2.5 h",
    ]  # fmt: skip
    assert [format_si(x) for x in (0, 7, 999, 1000, 999_999)] == ["0", "7", "999", "1 k", "1 M"]


def test_a_run_costs_what_it_began_with_too(base, records, tmp_path):
    begin_run(tmp_path / "first", base, steps=8)
    write_run(tmp_path / "second", dataclasses.replace(base, init_from=tmp_path / "first"), records)
    (groups,), _ = read_groups([tmp_path / "second"], "test")
    assert cost(groups[0].runs[0])["steps"] == 8 + 12


class Checked(html.parser.HTMLParser):
    """Fails where tags do not match; keeps what refers to something, and the sorted tables' heads."""

    EMPTY = frozenset({"meta", "input", "circle", "line", "path", "use", "rect", "br", "wbr"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "action", "data", "srcset")]
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def test_the_page_needs_nothing_beside_it(page):
    text = page.read_text(encoding="utf-8")
    checked = Checked(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy[1].split("; ") == [
        "default-src 'none'", "style-src 'unsafe-inline'", "script-src 'unsafe-inline'", "img-src data:",
    ]  # fmt: skip
    assert all(reference.startswith("#") for reference in checked.references)
    assert {reference[1:] for reference in checked.references} <= set(checked.ids)
    assert set(re.findall(r"url\((.{5})", text)) <= {"data:", *(f"#{one[:4]}" for one in checked.ids)}
    assert text.count("data:image/jpeg;base64,") > 10
    assert text.count("<svg role") == 4 + 3, "the learning curves, and the differences of each task"
    assert "no_<text>" not in text
    assert "no_&lt;text&gt;" in text
    assert not list(page.parent.glob("*.partial"))


def test_a_page_written_twice_is_the_same(sweep, page):
    before = page.read_bytes()
    assert write_report([sweep]).read_bytes() == before


def test_markdown_has_the_metrics_and_whole_rows(groups, page):
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 1 + 3 * 2 + 2
    for table in tables:
        assert len({row.count("|") for row in table.splitlines()}) == 1
    metric = compare(groups)[0].lines[0].metrics["NDCG@10"]
    assert f"{metric.mean:.3f} [{metric.low:.3f}, {metric.high:.3f}]" in text
    assert "failed: exit status 1; no room on the device" in text
    assert "`tasks.images` True → False" in text


def test_the_overview_has_each_groups_headlines(sweep, page, groups):
    comparisons = compare(groups)
    assert [one.headline for one in comparisons] == ["NDCG@10", "RMSE", "F1"]
    found = overview_table(groups, comparisons)
    assert [row["group"].group for row in found.rows] == groups
    expected = next(line for line in comparisons[1].lines if line.name == "base, expected rating")
    shown = found.rows[0]["rating, RMSE"].value
    assert shown == expected.metrics["RMSE"].mean, "the first of the ways of asking for ratings"
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    table = re.search(r"### Overview\n\n.*\n\n((?:\|.*\n)+)", text)[1].splitlines()
    assert table[0] == "| group | recommendation, NDCG@10 | rating, RMSE | selection, F1 |"
    worse = next(line for line in comparisons[0].compared if line.group.name == "no_images")
    assert f"| no_images | **{worse.metrics['NDCG@10'].mean:.3f} (\N{MINUS SIGN}" in table[-1]
    shown = page.read_text(encoding="utf-8")
    overview = shown[shown.index('id="movielens_small-overview-table"') :].split("</table>")[0]
    assert overview.count('class="significant worse"') == table[-1].count("**") // 2 > 0
    alone = write_report([sweep / "base-0", sweep / "base-1"], out=page.parent / "alone").read_text(encoding="utf-8")
    assert "Overview" not in alone, "one group has nothing to be compared with"


def chromium(tmp_path, *arguments: str) -> subprocess.CompletedProcess:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    return subprocess.run([CHROMIUM, *options, profile, *arguments], capture_output=True, text=True, timeout=120)


def order(dom: str, table: str) -> list[str]:
    body = re.search(rf'id="{table}".*?<tbody>(.*?)</tbody>', dom, flags=re.DOTALL)[1]
    return re.findall(r'<tr[^>]*>\s*<td data-value="([^"]*)"', body)


@browser
def test_tables_sort_in_a_browser_by_a_click(groups, page, tmp_path):
    table = "movielens_small-recommendation-metrics"
    lines = compare(groups)[0].lines
    means = {line.name.replace("<", "&lt;").replace(">", "&gt;"): line.metrics["HR@10"].mean for line in lines}
    best_last, best_first = (sorted(means, key=means.get, reverse=down) for down in (False, True))
    for clicks, expected, direction in ((1, best_first, "descending"), (2, best_last, "ascending")):
        script = f"""<script>
        const heads = [...document.getElementById("{table}").tHead.rows[0].cells];
        const button = heads.find(cell => cell.textContent.trim() === "HR@10").firstChild;
        for (let click = 0; click < {clicks}; click++) {{ button.focus(); document.activeElement.click(); }}
        </script></body>"""
        clicked = tmp_path / "clicked.html"
        clicked.write_text(page.read_text(encoding="utf-8").replace("</body>", script), encoding="utf-8")
        shown = chromium(tmp_path, "--dump-dom", clicked.as_uri())
        assert not re.findall(r"CONSOLE.*", shown.stderr)
        assert [means[name.replace("<", "&lt;").replace(">", "&gt;")] for name in order(shown.stdout, table)] == [
            means[name] for name in expected
        ]
        assert len(re.findall(f'aria-sort="{direction}"', shown.stdout.split("<script>")[0])) == 1


@browser
@pytest.mark.parametrize("size", ["1280,2400", "500,1600"])
def test_the_page_is_drawn(page, tmp_path, size):
    image = tmp_path / "page.png"
    done = chromium(tmp_path, f"--screenshot={image}", f"--window-size={size}", page.as_uri())
    assert image.exists(), done.stderr
    pixels = np.asarray(Image.open(image).convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    assert len(colours) > 100
    assert 0.01 < 1 - counts.max() / counts.sum() < 0.9
    written = (np.abs(np.asarray(Image.open(image).convert("L"), int) - 255) > 100).any(axis=1)
    assert written.mean() > 0.3


def test_one_run_keeps_the_page_of_one_run(sweep):
    path = write_report([sweep / "base-0"])
    assert path == sweep / "base-0" / "report.html"
    assert "Differences to" not in path.read_text(encoding="utf-8")
    assert not (sweep / "base-0" / "report.md").exists()


def test_mistakes_are_reported(base, sweep, tmp_path):
    with pytest.raises(DataError, match=r"is .*nowhere the folder of a run or of a sweep\?"):
        write_report([tmp_path / "nowhere", sweep])
    with pytest.raises(DataError, match="give the folder"):
        write_report([])
    begin_run(tmp_path / "young", base, steps=2)
    with pytest.raises(DataError, match=r"none of the 1 runs is evaluated on test.*young: unfinished: step 2 of 12"):
        write_report([tmp_path])
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(DataError, match=r"sweep\.json does not list cells"):
        write_report([tmp_path])


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old"
