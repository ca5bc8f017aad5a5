"""The log of a run goes on after errors of the disk."""

import errno
import os

from tensorboardX.record_writer import RecordWriter

from unimp_jax.training.log import RunLog, read_log


def test_a_disk_that_is_full_for_a_while_costs_warnings_only(tmp_path, monkeypatch, capsys):
    def fails(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunLog(tmp_path, step=0, steps=40) as log:
        file, disk, full = log._file.fileno(), os.dup(log._file.fileno()), os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, file)
        with monkeypatch.context() as patched:
            patched.setattr(RecordWriter, "write", fails)
            for step in range(1, 301):  # more than the queue of tensorboardX's thread holds
                log.write(step, "train", {"loss": 1.0, "slowest_host": "here"})
        os.dup2(disk, file)
        told = capsys.readouterr().err
        log.write(301, "train", {"loss": 0.5, "slowest_host": "there"})
        log.flush()
    for descriptor in (disk, full):
        os.close(descriptor)
    assert told.count("rows of the log are not on disk yet") == told.count("TensorBoard: a row was not written") == 300
    assert [row["step"] for row in read_log(tmp_path / "metrics.jsonl")] == list(range(1, 302))
    (events,) = [
        found for file in (tmp_path / "tensorboard").iterdir() if b"train/loss" in (found := file.read_bytes())
    ]
    assert b"there" in events
