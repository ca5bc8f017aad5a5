"""A run trains as transformers' Idefics is trained in PyTorch: the same losses, step after step."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
from data_pipelines.prepare import prepare
from tests.experiments.idefics_training import SETTINGS, Ours, Peer, experiment, prepare_task, tensors
from tests.experiments.tiny_run import write_source


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    prepare("movielens_small", folder / "records", write_source(folder / "source"))
    return folder / "records"


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_both_sides_have_the_same_losses_step_after_step(setting, data, tmp_path):
    """The first rate is 0, the others rise: the first loss shows the forward pass, later ones all of the step."""
    task = prepare_task(experiment("16 x 2", setting, 16, data, seed=0), tmp_path / "task", 1)
    ours, theirs = Ours(task), Peer(task)
    (arrays,), batch = task.batches(), tensors(task.first())
    found = [float(ours.step(ours.place(arrays)).loss) for _ in range(8)]
    expected = [theirs.step(batch) for _ in range(8)]
    assert expected[-1] < expected[0] - 1e-2, "the tolerance is far below what is learnt"
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    answers = sum(int((some["labels"] >= 0).sum()) for some in task.peer_batches(4))
    assert answers == int((arrays["answer_weights"] > 0).sum())
    trained = sum(x.size for x in jax.tree.leaves(ours.state.trainable))
    unread = sum(x.numel() for x in theirs.model.model.vision_model.post_layernorm.parameters() if x.requires_grad)
    assert trained == sum(x.numel() for x in theirs.trained) - unread
