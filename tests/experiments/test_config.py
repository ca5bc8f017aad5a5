"""What a run begins with is there whole or not at all."""

import dataclasses
import functools
import json
import os
import re
from pathlib import Path

import pytest

from data_pipelines.content import ContentConfig
from data_pipelines.errors import DataError
from data_pipelines.vocabulary import load_vocabulary
from experiments.config import differences, load_config, read_config, refuse_changes, save_config, to_json
from experiments.former_names import FORMER_NAMES
from experiments.presets import PRESETS
from experiments.train import configure, read_run
from experiments.vqgan.presets import REFERENCE
from tests.data_pipelines.small import small_corpus, small_vocabulary

TINY = PRESETS["tiny"]


class KilledError(BaseException):
    """Stands for the end of the process."""


def killed(*arguments):
    raise KilledError


@pytest.mark.parametrize(("owner", "name"), [(os, "replace"), (json, "dumps")])
def test_a_process_that_is_killed_leaves_no_part_of_a_configuration(tmp_path, monkeypatch, owner, name):
    path = tmp_path / "config.json"
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, lambda *arguments, **options: killed())
        with pytest.raises(KilledError):
            save_config(TINY, path)
    assert not path.exists()
    save_config(TINY, path)
    assert to_json(load_config(path)) == to_json(TINY)
    assert os.listdir(tmp_path) == ["config.json"]


@pytest.mark.parametrize(("owner", "name"), [(os, "replace"), (Path, "write_text")])
def test_a_process_that_is_killed_leaves_no_part_of_a_vocabulary(tmp_path, monkeypatch, owner, name):
    corpus, folder = small_corpus(), tmp_path / "vocabulary"
    vocabulary = small_vocabulary(corpus)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, lambda *arguments, **options: killed())
        with pytest.raises(KilledError):
            vocabulary.save(folder)
    assert not folder.exists()
    for _ in range(2):  # the second one in place of the first, as after a kill before the configuration is there
        vocabulary.save(folder)
        assert load_vocabulary(folder, corpus).new_tokens == vocabulary.new_tokens
        assert os.listdir(tmp_path) == ["vocabulary"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text[:300], "the file: Invalid JSON: EOF while parsing a"),
        (lambda _: "", "the file: Invalid JSON: EOF while parsing a value"),
        (lambda _: "\x00\x01", "the file: Invalid JSON: expected value"),
        (lambda _: "[]", "the file: Input should be a"),
        (
            lambda text: json.dumps(json.loads(text) | {"extra": 1}),
            "extra is not a field of this version; use the version that wrote",
        ),
        (
            lambda text: text.replace('"decoder": {', '"decoder": {"more": 1, '),
            "model.decoder.more is not a field of this",
        ),
        (lambda text: text.replace('"seed": 0', '"seed": "x"'), "seed: Input should be a valid integer"),
        (lambda text: text.replace('"accumulate": 1', '"accumulate": 0'), "training.accumulate 0 must be above 0"),
        (
            lambda text: text.replace('"batch_size": 16', '"batch_size": 0'),
            "batch_size, block_examples and threads must be at least 1",
        ),
        (lambda text: text.replace('"answers": ', '"answers": -'), "tokens and answers must be at least 1"),
        (lambda text: text.replace('"patch_size": ', '"patch_size": -'), "vision: every size must be at least 1"),
        (
            lambda text: re.sub(r'"heads": \d+, "head_width"', '"heads": 0, "head_width"', text),
            "decoder: every size must",
        ),
        (lambda text: text.replace('"keep_latest": 2', '"keep_latest": 0'), "keep_latest 0 must be 1 or more"),
        (lambda text: text.replace(' "seed": 0', ' "seed": -1'), "seed -1 must be 0 or more"),
        (
            lambda text: text.replace(' "seed": 0', ' "seed": 4294967296'),
            "seed 4294967296 must be 0 or more, and below",
        ),
        (lambda text: text.replace('"chunk": 64', '"chunk": 0'), "objective: chunk 0 must be 1 or more"),
        (lambda text: text.replace('"split_seed": 0', '"split_seed": -1'), "data.split_seed -1 must be 0 or more"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(change, told, tmp_path):
    path = tmp_path / "config.json"
    save_config(TINY, path)
    path.write_text(change(json.dumps(json.loads(path.read_text()))))
    with pytest.raises(DataError) as error:
        load_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_in_the_place_of_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/config\.json does not exist; is .*file the folder of a run\?"):
        load_config(tmp_path / "file" / "config.json")


@pytest.mark.parametrize("config", [TINY, REFERENCE], ids=["run", "VQGAN"])
def test_fields_are_read_by_the_names_that_they_had(config, tmp_path):
    """Every former name that this kind of configuration can hold, set to something else than the default."""
    path = tmp_path / "config.json"
    saved, former = to_json(config), 0
    for old, new in FORMER_NAMES.items():
        *parents, last = new.split(".")
        inside = functools.reduce(lambda tree, name: tree.get(name, {}), parents, saved)
        if last in inside:
            renamed = {old.split(".")[-1] if name == last else name: value for name, value in inside.items()}
            inside.clear()
            inside.update(renamed)
            former += 1
    assert former >= 3
    path.write_text(json.dumps(saved))
    assert to_json(read_config(path, type(config))) == to_json(config)


def test_a_run_from_before_blocks_were_planned_from_sizes_is_read_and_not_gone_on_with(tmp_path):
    config = PRESETS["tiny"]
    saved = to_json(config)
    del saved["loader"]["planner"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    before = load_config(tmp_path / "config.json")
    assert before.loader.planner == 1
    with pytest.raises(
        DataError, match=r"loader\.planner: 1, now 2 \(.* use the version of the project that started the run\)"
    ):
        refuse_changes(before, config, tmp_path)


def test_where_the_first_run_is_gone_only_its_geometry_and_content_are_taken_over(tmp_path):
    """Options that are the run's own there are read, so that a change of them is refused or made as ever."""
    before = dataclasses.replace(TINY, init_from=tmp_path / "gone", content=ContentConfig(co_occurrence=32))
    save_config(before, tmp_path / "config.json")
    ours = dataclasses.replace(
        TINY,
        init_from=tmp_path / "gone",
        model=dataclasses.replace(
            TINY.model, remat="full", decoder=dataclasses.replace(TINY.model.decoder, dropout=0.9)
        ),
        vocabulary=dataclasses.replace(TINY.vocabulary, attribute_words=99),
    )
    completed, found = configure(ours, tmp_path)
    assert to_json(found) == to_json(before)
    assert completed.content == before.content
    assert completed.model.remat == "full"
    told = {"model.decoder.dropout: 0.3, now 0.9", "vocabulary.attribute_words: 5, now 99"}
    assert set(differences(before, completed)) == told


def test_a_best_metric_that_validation_does_not_compute_is_refused(tmp_path):
    config = dataclasses.replace(TINY, checkpoint=dataclasses.replace(TINY.checkpoint, best_metric="NDCG@20"))
    with pytest.raises(ValueError, match=r"checkpoint.best_metric 'NDCG@20' must be one of HR@3, .*MRR@10"):
        read_run(config, tmp_path / "run")
