"""The measurements for a GPU, run without one: the kernels that can be interpreted, at small sizes."""

import re

import numpy as np
import pytest

from experiments.benchmarks import gpu_step
from unimp_jax.model import kernels
from unimp_jax.model.axes import platform

pytestmark = pytest.mark.skipif(platform() == "gpu", reason="small sizes are for machines without a GPU")
SMALL = {"presets": ("tiny",), "lengths": (128,), "tokens": 128, "rows": 1, "without_gpu": True}


def test_without_a_gpu_one_line_says_so(capsys):
    gpu_step.main()
    assert re.fullmatch(r"gpu_step: there is no NVIDIA GPU.*\n", capsys.readouterr().out)


def test_kernels_are_compared_with_plain_attention(capsys):
    gpu_step.main(**SMALL, step=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    measured = {words[1]: [float(word) for word in words[2:]] for words in lines if words[0] == "128"}
    assert list(measured) == ["xla", "triton"]
    for difference, seconds, memory in measured.values():
        assert 0 < difference < gpu_step.TOLERANCE  # bfloat16 is not exact
        assert seconds > 0
        assert memory >= 0


def test_a_kernel_that_differs_fails(monkeypatch):
    monkeypatch.setattr(kernels, "triton", lambda q, k, v, *rest: v)
    with pytest.raises(SystemExit, match="differs from plain attention"):
        gpu_step.main(**SMALL, step=False)


@pytest.mark.slow
def test_a_step_is_measured(capsys):
    gpu_step.main(**SMALL)
    step = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("tiny, a step with triton"))
    assert re.search(r"MFU unknown, .* GB, loss \d", step)


def test_rows_of_segments():
    ids, positions = gpu_step.packed(128)
    assert set(ids) == set(range(gpu_step.SEGMENTS + 1))
    assert np.count_nonzero(ids == 0) == 8
    assert [positions[ids == number].tolist() for number in (1, 8)] == [list(range(15))] * 2
