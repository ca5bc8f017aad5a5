"""The Python example of the README and the notebook run from top to bottom."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from data_pipelines.prepare import prepare
from data_pipelines.tasks.examples import RowShape
from experiments.config import DataConfig, TrainingConfig
from experiments.train import train_run
from tests.experiments.tiny_run import experiment
from unimp_jax.model import PARTS

ROOT = Path(__file__).resolve().parents[1]


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """On the data of `unimp demo`, after a single step of a smaller model."""
    monkeypatch.chdir(tmp_path)
    prepare("movielens_small", Path("data"))
    config = experiment(Path("data"), steps=1)
    config = dataclasses.replace(
        config,
        data=DataConfig("movielens_small", Path("data")),
        row_shape=RowShape(tokens=256, images=8, answers=64),
        training=TrainingConfig(trains=PARTS, validation_users=8),
        loop=dataclasses.replace(config.loop, validate_every=1, save_every=1),
    )
    train_run(config, Path("runs/demo"))
    capsys.readouterr()
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    exec(compile(example, "README.md", "exec"), {})
    lines = [line for line in capsys.readouterr().out.splitlines() if "compiled" not in line]
    assert [line.split()[0].endswith("%") for line in lines] == [True] * 3 + [False] * 3
    assert re.fullmatch(r"step 3: loss \d+\.\d{3}", lines[-1])


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert len(names["best"]) == 5
