"""The Python example of the README and the notebook run from top to bottom."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.child import child_environment

ROOT = Path(__file__).resolve().parents[1]


PROGRAM = """
import dataclasses, sys
from pathlib import Path
from data_pipelines.prepare import prepare
from data_pipelines.tasks.examples import RowShape
from experiments import train_run
from experiments.config import DataConfig, TrainingConfig
from tests.experiments.tiny_run import experiment

data = Path("data")
prepare("movielens_small", data)
config = experiment(data, steps=1)
config = dataclasses.replace(
    config,
    row_shape=RowShape(tokens=256, images=8, answers=64),
    training=TrainingConfig(trains=config.model.parts, validation_users=8),
    loop=dataclasses.replace(config.loop, validate_every=1, save_every=1),
)
train_run(config, Path("runs/demo"))
print("the example:")
exec(compile(sys.argv[1], "README.md", "exec"), {})
"""


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path):
    """On the data of `unimp demo`, after a single step of a smaller model, on one device, as its readers have."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    environment = child_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, example], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.partition("the example:\n")[2].splitlines() if "compiled" not in line]
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
