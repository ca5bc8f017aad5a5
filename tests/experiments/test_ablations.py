"""Ablations change what they say and nothing else, and what makes no sense is refused in words."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tyro

from data_pipelines.corpus import build_corpus
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.tasks import TASKS
from experiments.config import ExperimentConfig, flat, to_json
from experiments.data import PreparedSource
from experiments.evals.config import EvaluationConfig
from experiments.presets import PRESETS, read_training
from experiments.step import model_flops
from experiments.sweep.ablations import ABLATIONS, list_ablations
from experiments.sweep.cells import CODES
from experiments.sweep.changes import changed, options
from experiments.sweep.grid import Base, plan
from tests.experiments.tiny_run import experiment, prepare_source

EVALUATION = EvaluationConfig(checkpoint="latest", rivals=())
MIX = {f"queries.mix.{task}" for task in TASKS}
WIDTH = {f"model.decoder.{name}" for name in ("width", "heads", "mlp_width")} | {
    "model.gated.heads", "model.gated.mlp_width",
}  # fmt: skip
FUSION = {"model.fusion", "model.projector.kind", "training.trains"}
BASE = changed(
    PRESETS["tiny"],
    {
        "model.decoder.layers": 4,
        "tasks.ask_every": 10,
        "tasks.recommendation_at": "question",
        "objective.gamma": 2.0,
        "vocabulary.image_codes": Path("codes.parquet"),
        "queries.mix.image": 2.0,
        "seed": 3,
    },
)
SAYS: dict[str, set[str]] = {
    "no_images": {"tasks.images", "row_shape.images"},
    "no_text": {"tasks.text"},
    "ids_only": {"tasks.images", "tasks.text", "row_shape.images"},
    "text_only": {
        "tasks.images", "row_shape.images", "tasks.id_items", "tasks.full_items", "tasks.history_targets",
        "tasks.history_ids", "tasks.questions_show_ids", "tasks.ask_every", "tasks.rating_at", "tasks.ask_whole",
        "queries.whole_rate",
    },
    "no_content": {"content.attributes", "content.popularity", "content.rating", "content.co_occurrence"},
    "no_attributes_content": {"content.attributes"},
    "no_popularity_content": {"content.popularity"},
    "no_rating_content": {"content.rating"},
    "no_co_occurrence_content": {"content.co_occurrence"},
    "asked_once": {"tasks.ask_every"},
    "no_reconstruction": {"tasks.history_targets"},
    "reconstruction": {"tasks.history_targets"},
    "at_last_id": {"tasks.recommendation_at"},
    "no_focal": {"objective.gamma"},
    "gamma_0.5": {"objective.gamma"},
    "gamma_1": {"objective.gamma"},
    "gamma_3": {"objective.gamma"},
    "gamma_5": {"objective.gamma"},
    **{f"{task}_only": MIX for task in TASKS},
    **{f"finetuned_{task}": MIX | {"loop.steps"} for task in TASKS},
    "curriculum": {"loop.steps"},
    "cross_every_1": {"model.gated.every"},
    "cross_every_4": {"model.gated.every"},
    "all_images": {"model.gated.attend"},
    "interleaved": FUSION,
    "interleaved_same_compute": FUSION | {f"row_shape.{room}" for room in ("tokens", "images", "answers")},
    "image_tokens_1": {"model.resampler.latents"},
    "image_tokens_16": {"model.resampler.latents"},
    "frozen_tower": {"training.trains"},
    "semantic_ids": set(),
    **{f"history_{items}": {"tasks.full_items", "tasks.id_items"} for items in (1,)},
    **{f"history_{items}": {"tasks.id_items"} for items in (2, 5, 10, 20, 50, 100)},
    "padded": {"loader.packed"},
    "width_half": WIDTH,
    "width_double": WIDTH,
    "layers_half": {"model.decoder.layers"},
    "layers_double": {"model.decoder.layers"},
}  # fmt: skip
AS_THE_BASE = {
    "no_vectors_content",
    "no_row_dropout",
    "no_own_ids",
    "after_question",
    "gamma_2",
    "cross_every_2",
    "last_image",
    "image_tokens_4",
    "trained_tower",
    "one_token_ids",
    "packed",
}


def base(config: ExperimentConfig = BASE, images: bool = True, tasks: Sequence[str] = tuple(TASKS)) -> Base:
    return Base("tiny", config, images, tasks)


def cells(*names: str, config: ExperimentConfig = BASE, seeds: tuple[int, ...] = (3,)):
    return plan(base(config), names, seeds, EVALUATION)[0]


def differing(one: ExperimentConfig, other: ExperimentConfig) -> set[str]:
    before, after = flat(to_json(one)), flat(to_json(other))
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_every_ablation_is_described_in_a_line():
    lines = list_ablations().splitlines()
    assert len(lines) == len(ABLATIONS)
    for line in lines:
        name, description = line.split(maxsplit=1)
        assert ABLATIONS[name].description == description
        assert len(line) < 140


def test_ablations_are_either_made_or_refused_as_they_should_be():
    made, refused = plan(base(), (), (3,), EVALUATION)
    assert set(refused) == AS_THE_BASE
    assert set(refused.values()) == {"the base already has these settings"}
    assert {cell.ablation for cell in made if cell.evaluation} == {"base", *SAYS}
    assert set(ABLATIONS) == {"base", *SAYS, *AS_THE_BASE}


@pytest.mark.parametrize("name", SAYS)
def test_an_ablation_changes_what_it_says_and_nothing_else(name):
    cell = cells(name)[-1]
    assert cell.ablation == name
    assert differing(BASE, cell.config) == SAYS[name]
    assert cell.config.row_shape.tokens == BASE.row_shape.tokens or name == "interleaved_same_compute"
    assert cell.config.loader.batch_size == BASE.loader.batch_size


def test_without_content_no_free_rows_are_dropped():
    dropping = changed(BASE, {"model.decoder.free_row_dropout": 0.3})
    (cell,) = cells("no_content", config=dropping)
    assert differing(dropping, cell.config) == SAYS["no_content"] | {"model.decoder.free_row_dropout"}


def test_images_among_tokens_are_compared_at_equal_tokens_and_at_equal_work():
    same_tokens, same_work = (cells(name)[-1].config for name in ("interleaved", "interleaved_same_compute"))
    assert same_tokens.training.trains == ("vision", "projector", "decoder", "embeddings")
    assert model_flops(same_tokens) < model_flops(BASE)
    assert abs(model_flops(same_work) / model_flops(BASE) - 1) < abs(model_flops(same_tokens) / model_flops(BASE) - 1)
    longer = same_work.row_shape.tokens / BASE.row_shape.tokens
    assert longer > 1
    assert same_work.row_shape.answers / BASE.row_shape.answers == pytest.approx(longer, rel=0.01)
    (cell,) = cells("image_tokens_16", config=same_tokens)
    assert cell.config.model.image_tokens == 16


def test_without_ids_recommendations_are_asked_for_even_where_the_base_answers_at_the_last_id():
    at_last_id = changed(BASE, {"tasks.recommendation_at": "last_id"})
    (cell,) = cells("text_only", config=at_last_id)
    assert differing(at_last_id, cell.config) == SAYS["text_only"] | {"tasks.recommendation_at"}


def test_what_ablations_change_it_to():
    found = {name: cells(name)[-1].config for name in SAYS}
    assert found["text_only"].tasks.full_items == BASE.tasks.full_items + BASE.tasks.id_items
    assert found["ids_only"].tasks.questions_show_ids
    assert found["history_1"].tasks == dataclasses.replace(BASE.tasks, full_items=1, id_items=0)
    assert found["history_20"].tasks.full_items + found["history_20"].tasks.id_items == 20
    assert found["frozen_tower"].training.trains == ("resampler", "gated", "decoder", "embeddings")
    assert found["width_double"].model.decoder.head_dim == BASE.model.decoder.head_dim
    assert found["width_half"].model.decoder.width * 2 == BASE.model.decoder.width
    mix = found["search_only"].queries.mix
    assert mix == {"recommendation": 0, "search": 1, "rating": 0, "selection": 0, "image": 0}


@pytest.mark.parametrize("name", [name for name in SAYS if name != "semantic_ids"])
def test_all_steps_together_are_as_many_as_the_base_has(name):
    """Over an ablation's parts, each of which begins with the one before."""
    made = cells(name, config=changed(BASE, {"loop.steps": 1003}))
    assert sum(cell.config.loop.steps for cell in made) == 1003
    assert [cell.starts_from for cell in made] == [None, *(cell.name for cell in made[:-1])]
    assert [cell.evaluation is None for cell in made] == [True] * (len(made) - 1) + [False]


def test_parts_that_ablations_share_are_trained_once():
    made = cells("finetuned_search", "finetuned_selection", seeds=(0, 1))
    assert [cell.name for cell in made] == [
        "half_of_all_tasks-seed0", "finetuned_search-seed0", "half_of_all_tasks-seed1", "finetuned_search-seed1",
        "finetuned_selection-seed0", "finetuned_selection-seed1",
    ]  # fmt: skip
    assert [cell.starts_from for cell in made if cell.ablation == "finetuned_selection"] == [
        "half_of_all_tasks-seed0", "half_of_all_tasks-seed1",
    ]  # fmt: skip


def test_a_curriculum_has_only_the_tasks_of_the_base():
    made, _ = plan(base(tasks=["recommendation", "search", "selection", "image"]), ["curriculum"], [0], EVALUATION)
    assert [cell.ablation for cell in made] == [
        "curriculum_1_recommendation", "curriculum_2_search", "curriculum_3_selection", "curriculum_4_image",
        "curriculum",
    ]  # fmt: skip
    assert made[-1].config.queries.mix == BASE.queries.mix


def test_semantic_ids_come_from_the_cell_of_the_base(tmp_path):
    named_by, own = cells("semantic_ids")
    assert (named_by.ablation, own.needs) == ("base", [named_by.name])
    assert own.experiment(tmp_path).vocabulary.item_codes == tmp_path / own.name / CODES
    (ids, _), (train, _), _ = own.commands(tmp_path)
    assert ids[:3] == ["ids", str(tmp_path / named_by.name), str(tmp_path / own.name / CODES)]
    assert str(tmp_path / own.name / CODES) in train


@pytest.mark.parametrize(
    "name", ["text_only", "search_only", "frozen_tower", "width_double", "semantic_ids", "finetuned_search"]
)
def test_the_command_line_of_a_cell_says_its_configuration(name, tmp_path):
    cell = cells(name)[-1]
    train = next(words for words, _ in cell.commands(tmp_path) if words[0] == "train")
    read = read_training(train[1:])
    assert (read.folder, read.experiment) == (tmp_path / cell.name, cell.experiment(tmp_path))


@pytest.mark.parametrize(
    ("name", "changes", "limits", "message"),
    [
        ("no_image", {}, {}, "did you mean 'no_images'"),
        ("no_images", {}, {"images": False}, "shows no images, or its source has none"),
        ("all_images", {}, {"images": False}, "shows no images"),
        ("gamma_2", {}, {}, "the base already has these settings"),
        ("cross_every_4", {"model.decoder.layers": 2}, {}, "must divide decoder.layers 2"),
        (
            "rating_only",
            {},
            {"tasks": list(TASKS)[:2]},
            "does not train for rating .* or its source does not allow it",
        ),
        ("curriculum", {}, {"tasks": list(TASKS)[:1]}, "trains only for recommendation"),
        ("semantic_ids", {"vocabulary.item_codes": Path("ids.parquet")}, {}, "already have semantic ids"),
        (
            "trained_tower",
            {"training.trains": ("gated",), "training.cache_features": True},
            {},
            "needs a frozen vision tower",
        ),
        ("curriculum", {"loop.steps": 4}, {}, "4 steps cannot be divided among 6 stages"),
        ("width_half", {"model.decoder.mlp_width": 191}, {}, "mlp_width 191 cannot be multiplied by 0.5"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(name, changes, limits, message):
    with pytest.raises(ValueError, match=message):
        plan(base(changed(BASE, changes), **limits), [name], [0], EVALUATION)


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_are_some_and_no_two_alike(seeds):
    with pytest.raises(ValueError, match="give one or more different seeds"):
        plan(base(), ["base"], seeds, EVALUATION)


@pytest.mark.parametrize("preset", PRESETS)
def test_most_ablations_make_sense_on_every_preset(preset):
    config = dataclasses.replace(PRESETS[preset], init_from=None)
    tasks = [task for task in TASKS if config.queries.mix[task]]
    made, refused = plan(Base(preset, config, config.row_shape.images > 0, tasks), (), (0,), EVALUATION)
    measured = {cell.ablation for cell in made if cell.evaluation}
    assert measured | set(refused) == set(ABLATIONS)
    assert len(measured) >= 22


def test_geometry_that_init_from_decides_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "experiments.sweep.grid.with_init_geometry", lambda one: dataclasses.replace(one, model=BASE.model)
    )
    with pytest.raises(ValueError, match="from which the base is initialised"):
        cells("layers_double", config=dataclasses.replace(BASE, init_from=tmp_path))


@pytest.mark.parametrize(
    ("changes", "images", "missing"),
    [
        ({}, True, set()),
        ({"row_shape.images": 0}, False, set()),
        ({"tasks.images": False}, False, set()),
        ({"queries.mix.search": 0.0}, True, {"search"}),
    ],
)
def test_a_base_has_the_images_and_tasks_of_its_configuration(tmp_path, changes, images, missing):
    config = changed(experiment(prepare_source(tmp_path)), changes)
    found = Base.open("tiny", config)
    assert found == Base("tiny", config, images, [task for task in TASKS if task not in {"image", *missing}])


def test_a_base_has_no_images_and_tasks_that_its_source_has_not(tmp_path, monkeypatch):
    items = [Item(str(number), "A thing") for number in range(4)]
    corpus = build_corpus(items, [User("u", tuple(Interaction(item.item_id) for item in items))])
    bare = PreparedSource(corpus, np.zeros(4, bool), lambda item: b"")
    monkeypatch.setattr("experiments.sweep.grid.load_records", lambda config: bare)
    found = Base.open("tiny", BASE)
    assert (found.images, found.tasks) == (False, ["recommendation", "selection"])


def test_steps_are_divided_evenly():
    for steps in range(6, 40):
        stages = [cell.config.loop.steps for cell in cells("curriculum", config=changed(BASE, {"loop.steps": steps}))]
        assert sum(stages) == steps
        assert max(stages) - min(stages) <= 1


def test_an_evaluation_is_described_by_options_that_its_command_has():
    """Some parts of the names of fields are not in those of options."""
    changes = {
        "images.users": 7, "images.generation.samples": 2, "images.generation.sampling.guidance": 2.0,
        "images.generation.sampling.sampling.top_k": 5, "images.extractors.clip": "clip", "rivals": [],
        "sasrec_config.model.width": 32, "reviews.beams": 1,
    }  # fmt: skip
    config = changed(EvaluationConfig(), changes)
    assert tyro.cli(EvaluationConfig, args=options(EvaluationConfig(), config)) == config


def test_fields_are_changed_by_name_and_reported_as_options():
    changes = {"optimizer.learning-rate": 0.01, "loader.packed": "False", "training.trains": ["gated"], "mesh.data": -1}
    config = changed(PRESETS["small"], changes)
    assert config.training.trains == ("gated",)
    assert options(PRESETS["small"], config) == [
        "--loader.packed", "False", "--optimizer.learning-rate", "0.01", "--training.trains", "gated",
    ]  # fmt: skip
    moved = changed(config, {"mesh.data": 2})
    assert options(moved, config) == ["--mesh.data=-1"]
    with pytest.raises(ValueError, match=r"did you mean 'optimizer\.learning_rate'"):
        changed(config, {"optimiser.learning_rate": 1})
    with pytest.raises(ValueError, match="must be above 0"):
        changed(config, {"optimizer.learning_rate": -1})
