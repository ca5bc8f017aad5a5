"""A checkpoint that is read while a training goes on."""

import shutil

import jax.numpy as jnp
import pytest

from experiments.parameters import Parameters, restore_parameters
from unimp_jax.training.checkpoint import CheckpointConfig, CheckpointError, Checkpoints, abstract


@pytest.mark.parametrize("which", ["best", "latest"])
def test_of_a_step_that_is_replaced_meanwhile_the_next_is_read(tmp_path, monkeypatch, which):
    folder, config = tmp_path / "checkpoints", CheckpointConfig()
    shapes = Parameters(None, abstract({"weights": jnp.zeros(2)}), {})

    def save(step):
        with Checkpoints(folder, config) as checkpoints:
            state = {"trainable": {"weights": jnp.full(2, step)}}
            checkpoints.save(step, state, {}, {"NDCG@10": float(step)})

    def read_when_replaced(self, step, *arguments):
        monkeypatch.undo()
        save(5)
        shutil.rmtree(folder / "3")
        return self.restore_parameters(step, *arguments)

    save(3)
    monkeypatch.setattr(Checkpoints, "restore_parameters", read_when_replaced)
    parameters, step = restore_parameters(tmp_path, which, shapes, config)
    assert (step, parameters.trainable["weights"].tolist()) == (5, [5, 5])
    shutil.rmtree(folder / "5" / "state")
    with pytest.raises(CheckpointError, match="step 5 cannot be read"):
        restore_parameters(tmp_path, which, shapes, config)
