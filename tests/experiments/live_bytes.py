"""A program for `test_live_bytes`: trains a run twice on one device, and prints what was live in each phase as JSON."""

import contextlib
import dataclasses
import json
import shutil
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments import train as training
from experiments.parameters import abstract_parameters
from experiments.step import abstract_state
from tests.experiments.tiny_run import MODEL, experiment
from unimp_jax.sharding import make_mesh
from unimp_jax.training.checkpoint import Checkpoints

LARGER = dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, width=128, mlp_width=1024))


def live_bytes() -> int:
    """Bytes of all buffers of one device; an array and the view of it as a shard have the same.

    Arrays on several devices are not asked for their buffers: each of their shards would be an array from then on.
    """
    buffers = {}
    for array in jax.live_arrays():
        with contextlib.suppress(RuntimeError, ValueError):  # deleted since
            if len(array.sharding.device_set) == 1:
                buffers[array.unsafe_buffer_pointer()] = array.nbytes
    return sum(buffers.values())


class Watch:
    """The most bytes of arrays at any moment of each phase."""

    def __init__(self) -> None:
        self.most: dict[str, int] = defaultdict(int)
        self._phase, self._ended = "start", threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._ended.is_set():
            self._note(self._phase)
            time.sleep(0.005)

    def _note(self, phase: str) -> None:
        self.most[phase] = max(self.most[phase], live_bytes())

    def phase(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with what is live during and right after it counted under `name`."""

        def watched(*arguments: Any, **options: Any) -> Any:
            before, self._phase = self._phase, name
            try:
                return call(*arguments, **options)
            finally:
                self._note(name)
                self._phase = before

        return watched

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


def nbytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def main(data: Path, folder: Path) -> dict[str, Any]:
    config = experiment(data, steps=4, model=LARGER)
    config = dataclasses.replace(
        config, training=dataclasses.replace(config.training, trains=("gated", "decoder"), validation_users=8)
    )
    _, sized = training.open_run(config, folder)
    mesh = make_mesh(sized.mesh)
    parameters = abstract_parameters(sized, mesh)
    state = abstract_state(sized, parameters.trainable, mesh)
    told: dict[str, Any] = {"state": nbytes(state), "frozen": nbytes(parameters.frozen)}
    restore, validation, compiled = Checkpoints.restore_latest, training.validation, training.compile_step
    save = Checkpoints.save

    def save_now(self: Checkpoints, *arguments: Any) -> None:
        """While it is written there is a copy in the host's memory, which here is the device's."""
        save(self, *arguments)
        self.wait()

    training.peak_flops = lambda dtype: 1e12  # measuring it takes matrices of its own
    for start in ("first", "again"):
        with Watch() as watch:
            Checkpoints.restore_latest = watch.phase("restore", restore)  # type: ignore[method-assign]
            Checkpoints.save = watch.phase("save", save_now)  # type: ignore[method-assign]
            training.validation = lambda *all_, watch=watch: watch.phase("validation", validation(*all_))
            training.compile_step = lambda *all_, watch=watch: watch.phase("step", compiled(*all_))
            training.train_run(config, folder)
        told[start] = watch.most
        shutil.rmtree(folder / "checkpoints" / "4")
    return told


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_disable_most_optimizations", True)  # of the compiler, which takes longer than four steps
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
