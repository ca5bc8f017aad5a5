"""VQGANs' runs: killed and continued, measured, exported, and what they make of a catalogue."""

import dataclasses
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.image_codes import load_image_codes
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items
from experiments import lock
from experiments.config import save_config
from experiments.export import ExportConfig, export_command
from experiments.train import train_run
from experiments.vqgan.command import write_codes
from experiments.vqgan.config import FILE, ImageData, VQGANExperiment, WhichImages
from experiments.vqgan.evaluate import evaluate_vqgan
from experiments.vqgan.images import open_images
from experiments.vqgan.measure import compress, encode, likeness, scan_bytes
from experiments.vqgan.presets import PRESETS
from experiments.vqgan.run import decoder_of, encoder_of, open_vqgan
from experiments.vqgan.train import train_vqgan_run
from tests.child import child_environment
from tests.experiments import tiny_run
from tests.experiments.tiny_run import prepare_source, write_source
from unimp_jax.image_tokens import VQGANConfig
from unimp_jax.image_tokens.discriminator import DiscriminatorConfig
from unimp_jax.image_tokens.quantiser import QuantiserConfig
from unimp_jax.image_tokens.training import LossConfig
from unimp_jax.training.guard import TrainingError
from unimp_jax.training.log import read_log
from unimp_jax.training.loop import LoopConfig
from unimp_jax.training.optimizer import OptimizerConfig

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
PROGRAM = """
import sys
from pathlib import Path
from experiments.vqgan.train import train_vqgan_run
from tests.experiments.test_vqgan import experiment
train_vqgan_run(experiment(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def experiment(data: Path, **changes) -> VQGANExperiment:
    """All that a step can do, on a few images."""
    config = VQGANExperiment(
        vqgan=VQGANConfig(16, (8, 8, 8), 1, (), False, 8, 4, codes=16, code_width=4),
        data=ImageData("movielens_small", data, held_out=0.2),
        loss=LossConfig(perceptual=0.0, adversarial_from=3),
        quantiser=QuantiserConfig(after=2, average=0.9, revive_every=2),
        discriminator=DiscriminatorConfig(channels=4, layers=1),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.0, decay="matrices"),
        loop=LoopConfig(steps=STEPS, log_every=1, validate_every=4, save_every=2),
        batch_size=8,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run that was never trained."""
    from tests.experiments.untrained_vqgan import write_vqgan_run  # which is of this file's experiment

    return write_vqgan_run(data, tmp_path_factory.mktemp("runs") / "run")


def start(data: Path, folder: Path) -> subprocess.Popen:
    environment = child_environment(
        JAX_COMPILATION_CACHE_DIR=str(data / "compiled"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    command = [sys.executable, "-c", PROGRAM, str(data), str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def outcome(folder: Path):
    """The metrics of every step and validation, and the bytes of all that is saved of the last step."""
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore((folder / "checkpoints" / str(STEPS) / "state").absolute())
    rows = read_log(folder / "metrics.jsonl")
    log = [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]
    return log, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def test_a_killed_run_continues_bit_for_bit(data, tmp_path):
    for folder, kills in ((tmp_path / "undisturbed", []), (tmp_path / "disturbed", [(1, 0.05), (7, 0.0)])):
        for step, delay in kills:
            process = start(data, folder)
            while (
                not any(line["step"] >= step for line in read_log(folder / "metrics.jsonl")) and process.poll() is None
            ):
                time.sleep(0.02)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
        process = start(data, folder)
        output, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, output.decode()
    undisturbed, disturbed = outcome(tmp_path / "undisturbed"), outcome(tmp_path / "disturbed")
    assert len(undisturbed[0]) == STEPS + 2
    assert undisturbed == disturbed


def test_asked_to_end_it_saves_and_goes_on(data, tmp_path, run):
    process = start(data, tmp_path / "run")
    while not read_log(tmp_path / "run" / "metrics.jsonl") and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0
    assert b"the same command continues" in output or (tmp_path / "run" / "checkpoints" / str(STEPS)).exists()


def test_a_run_trains_validates_and_saves(data, tmp_path):
    """Of a smaller model; codewords are placed, revived and averaged, and the discriminator trains in the last step."""
    smaller = VQGANConfig(8, (8, 8), 1, (), False, 4, 4, codes=16, code_width=4)
    config = experiment(data, vqgan=smaller, loop=LoopConfig(steps=4, log_every=1, validate_every=4, save_every=2))
    train_vqgan_run(config, tmp_path / "run")
    rows = read_log(tmp_path / "run" / "metrics.jsonl")
    trained, validated = ([row["step"] for row in rows if row["kind"] == kind] for kind in ("train", "validation"))
    assert (trained, validated) == ([1, 2, 3, 4], [4])
    assert all(np.isfinite(value) for row in rows for name, value in row.items() if name != "kind")
    assert {folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()} == {"2", "4"}
    assert open_vqgan(tmp_path / "run").config == smaller


def test_a_run_is_measured_beside_the_mean_image_and_jpeg(data, run):
    told = evaluate_vqgan(run, checkpoint="latest")
    found = json.loads((run / "evaluation.json").read_text())
    names = [row["name"] for row in found["rows"]]
    assert names == ["VQGAN", "the mean image", "JPEG, tables not counted"]
    assert found["images"] == 6  # of 29
    assert [row["bits"] for row in found["rows"][:2]] == [16 * 4, 0]
    assert found["rows"][2]["bits"] <= 16 * 4
    assert 1 <= found["used"] <= 16
    for row in found["rows"]:
        assert f"| {row['name']} |" in told
        assert row["metrics"]["PSNR"]["low"] <= row["metrics"]["PSNR"]["mean"] <= row["metrics"]["PSNR"]["high"]
    images = open_images(experiment(data).data, 16)
    learnt, held_out = images.parts(experiment(data).data)
    mean = np.round(images.take(learnt).mean(axis=0)).astype(np.uint8)
    psnr = [10 * np.log10(255**2 / np.square(image - mean.astype(float)).mean()) for image in images.take(held_out)]
    assert found["rows"][1]["metrics"]["PSNR"]["mean"] == pytest.approx(np.mean(psnr))
    assert Image.open(run / "reconstructions.png").size == (6 * 16 * 2, 3 * 16 * 2)


def test_what_is_measured_is_written_where_it_can_be(data, run, tmp_path):
    """Into a folder that is made, or beside a checkpoint that is a file."""
    evaluate_vqgan(run, checkpoint="latest", out=tmp_path / "some" / "where")
    assert {path.name for path in (tmp_path / "some" / "where").iterdir()} == {
        "evaluation.json", "reconstructions.png",
    }  # fmt: skip
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        evaluate_vqgan(run, out=tmp_path / "file")
    with pytest.raises(DataError, match=r"nowhere does not exist; it must be the folder of a VQGAN"):
        write_codes(tmp_path / "nowhere", tmp_path / "codes.parquet")


def test_images_that_were_held_out_are_never_learnt_from(run, tmp_path):
    """The source was prepared anew, with fewer films: others would be held out."""
    prepare("movielens_small", tmp_path / "data", write_source(tmp_path / "source", items=12))
    other = WhichImages(folder=tmp_path / "data")
    said = r"run/data\.json\): items with images 29, now 11"
    with pytest.raises(DataError, match=said):
        train_vqgan_run(experiment(tmp_path / "data"), run)
    with pytest.raises(DataError, match=said):
        evaluate_vqgan(run, other)
    assert "11 images of 12 items" in write_codes(run, tmp_path / "codes.parquet", other)


def test_codes_of_a_catalogue(data, run, tmp_path):
    told = write_codes(run, tmp_path / "codes.parquet")
    item_ids = [item.item_id for item in read_items("movielens_small", data)]
    codes = load_image_codes(tmp_path / "codes.parquet", item_ids)
    assert codes.grid == (4, 4)
    assert codes.num_codes == 16
    assert codes.has_codes.tolist() == [False] + [True] * 29  # the first film has no poster
    assert "29 images of 30 items" in told
    images = open_images(ImageData("movielens_small", data), 16)
    again = encoder_of(open_vqgan(run))(images.take(images.shown))
    assert np.array_equal(codes.codes[1:], again.reshape(29, 16))


def test_what_is_exported_is_the_same_vqgan(data, run, tmp_path):
    export_command(run, tmp_path / "exported", ExportConfig())
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    one, other = open_vqgan(run), open_vqgan(tmp_path / "exported")
    codes = encoder_of(one)(images)
    assert np.array_equal(codes, encoder_of(other)(images))
    assert np.array_equal(decoder_of(one)(codes), decoder_of(other)(codes))
    with pytest.raises(DataError, match=r"--data\.source"):
        write_codes(tmp_path / "exported", tmp_path / "codes.parquet")
    told = write_codes(tmp_path / "exported", tmp_path / "codes.parquet", WhichImages("movielens_small", data))
    assert "29 images" in told


def test_a_run_begins_with_another_vqgan(data, run, tmp_path):
    one_step, start = LoopConfig(1, 1, 1, 1), shutil.copytree(run, tmp_path / "start")
    config = experiment(data, init_from=start, vqgan=VQGANConfig(), quantiser=QuantiserConfig(), loop=one_step)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-30))
    train_vqgan_run(config, tmp_path / "more")
    shutil.rmtree(start)  # which a run that has begun needs no more
    train_vqgan_run(config, tmp_path / "more")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    made = [decoder_of(open_vqgan(folder))(np.arange(16).reshape(1, 4, 4)) for folder in (run, tmp_path / "more")]
    assert images.shape[1:] == made[0].shape[1:]
    assert np.array_equal(*made)


def test_what_cannot_be_trained_is_refused(data, run, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0)
    with lock.alone_in(run), pytest.raises(DataError, match=r"is in use by another training \(process"):
        train_vqgan_run(experiment(data), run)
    with pytest.raises(DataError, match=r"another configuration \(batch_size: 8, now 16\)"):
        train_vqgan_run(experiment(data, batch_size=16), run)
    with pytest.raises(ValueError, match="a batch of 3 rows"):
        train_vqgan_run(experiment(data, batch_size=3), tmp_path / "three")
    assert not (tmp_path / "three").exists(), "where the batch could not be changed any more"
    with pytest.raises(DataError, match="no prepared source"):
        train_vqgan_run(experiment(tmp_path), tmp_path / "none")
    with pytest.raises(ValueError, match="batch_size 8 must be at least 1, seed -1 at least 0"):
        experiment(data, seed=-1)
    assert [*tmp_path.iterdir()] == [], "else the right command would find a run of another configuration"
    with pytest.raises(DataError, match="run contains the run of a VQGAN; name another folder"):
        train_run(tiny_run.experiment(data), run)
    (tmp_path / "killed").mkdir()
    save_config(experiment(data), tmp_path / "killed" / FILE)
    with pytest.raises(DataError, match="no complete checkpoint"):
        open_vqgan(tmp_path / "killed")
    with pytest.raises(ValueError, match=r"after 8 must be below loop\.steps 8"):
        experiment(data, quantiser=QuantiserConfig(after=8))
    with pytest.raises(ValueError, match="weight_decay must be 0"):
        experiment(data, optimizer=OptimizerConfig())
    usual = experiment(data)
    hopeless = experiment(
        data,
        guard=dataclasses.replace(usual.guard, patience=2),
        optimizer=dataclasses.replace(usual.optimizer, learning_rate=1e30),
        quantiser=dataclasses.replace(usual.quantiser, after=7),  # no codewords can be made of what is not finite
    )
    with pytest.raises(TrainingError, match="were skipped"):
        train_vqgan_run(hopeless, tmp_path / "hopeless")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="trained by one process"):
        train_vqgan_run(experiment(data), run)


def test_every_preset_is_a_configuration():
    for name, preset in PRESETS.items():
        assert preset.vqgan.bits_per_image > 0, name


def test_a_batch_is_a_function_of_its_number(data):
    images = open_images(experiment(data).data, 16)
    learnt, held_out = images.parts(experiment(data).data)
    assert not set(learnt) & set(held_out)
    assert sorted([*learnt, *held_out]) == list(range(1, 30))
    whole = images.batches(learnt, 5, seed=3, start=0)
    first = [next(whole) for _ in range(12)]
    later = images.batches(learnt, 5, seed=3, start=7)
    assert all(np.array_equal(next(later), batch) for batch in first[7:])


def test_likeness():
    images = np.random.default_rng(0).integers(0, 200, (2, 16, 16, 3), np.uint8)
    metrics = likeness(images, np.stack([images[0], images[1] + 10]))
    assert metrics["PSNR"][1] == pytest.approx(10 * np.log10(255**2 / 100))
    assert metrics["PSNR"][0] > 60
    assert metrics["SSIM"][0] == 1


def test_jpeg_is_as_good_as_the_bits_allow():
    smooth = np.linspace(0, 255, 64)[:, None, None] * np.ones((64, 64, 3))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    images = np.stack([smooth, noise]).astype(np.uint8)
    few, many = compress(images, 600), compress(images, 8000)
    for (_, scan_bits, whole_bits), bits in ((few, 600), (many, 8000)):
        assert (scan_bits <= bits).all()
        assert (whole_bits > 8 * 300).all()  # the standard's tables alone
    better = [likeness(images, decoded)["PSNR"] for decoded, _, _ in (few, many)]
    assert (better[1] > better[0]).all()
    with pytest.raises(ValueError, match="no JPEG"):
        compress(images, 8)
    file = encode(images[0], 50)
    assert file[-2:] == b"\xff\xd9"
    scan = file[-2 - scan_bytes(file) : -2]
    assert file.index(b"\xff\xda") + 2 + 12 == file.index(scan)  # a scan of three colours has a header of 12 bytes
    assert Image.open(io.BytesIO(file)).size == (64, 64)
