"""The ablations by name: what each takes away from a base configuration, or puts in its place.

All cells do the same number of steps over the same number of rows and token slots, whatever stands in them: an ablation
with shorter prompts sees more examples, one with longer ones fewer. One that trains in several parts divides the base's
steps evenly among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_pipelines.tasks import TASKS
from experiments.config import ExperimentConfig
from experiments.sweep.changes import Changes
from unimp_jax.model import PARTS


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the steps, whose model the next part begins with."""

    name: str
    description: str
    changes: Changes


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A named change.

    Attributes:
      changes: base -> what is changed; raises ValueError where that cannot be.
      pictures: whether it is about pictures, which must be there then.
      task: the one that it is about, which must be asked for then.
      before: the tasks that are asked for -> parts of the steps that come before its own; raises likewise.
      ids_of_base: items are named by semantic ids, made with the model of the base's cell of the same seed.
    """

    name: str
    description: str
    changes: Callable[[ExperimentConfig], Changes]
    _: dataclasses.KW_ONLY
    pictures: bool = False
    task: str = ""
    before: Callable[[Sequence[str]], tuple[Part, ...]] = lambda tasks: ()
    ids_of_base: bool = False


def no_images(base: ExperimentConfig) -> Changes:
    return {"training.cache_features": False, "tasks.images": False, "budget.images": 0}


def text_only(base: ExperimentConfig) -> Changes:
    """As many items of history as the base has, as far as their words fit."""
    items = base.tasks.full_items + base.tasks.id_items
    return {
        **no_images(base),
        "tasks.id_items": 0,
        "tasks.full_items": items,
        "tasks.history_targets": "none",
        "tasks.history_ids": False,
        "tasks.questions_show_ids": False,
        "tasks.ask_every": 0,
        "tasks.recommendation_at": "question",
    }


def history(items: int) -> Callable[[ExperimentConfig], Changes]:
    """The latest ones shown whole where the base shows them so, the others as bare ids."""

    def changes(base: ExperimentConfig) -> Changes:
        full = min(base.tasks.full_items, items)
        return {"tasks.full_items": full, "tasks.id_items": items - full}

    return changes


def only(task: str) -> Changes:
    return {"queries.mix": {one: float(one == task) for one in TASKS}}


def one_after_another(tasks: Sequence[str]) -> tuple[Part, ...]:
    if len(tasks) < 2:
        raise ValueError(f"the base trains for {tasks[0]} alone")
    return tuple(
        Part(f"curriculum_{number}_{task}", f"part {number} of curriculum: {task}", only(task))
        for number, task in enumerate(tasks, start=1)
    )


def half_of_all(tasks: Sequence[str]) -> tuple[Part, ...]:
    return (Part("half_of_all_tasks", "the first half of finetuned_*: all tasks", {}),)


def towers(trains: bool) -> Callable[[ExperimentConfig], Changes]:
    def changes(base: ExperimentConfig) -> Changes:
        parts = [part for part in PARTS if (trains if part == "vision" else part in base.training.trains)]
        return {"training.trains": tuple(parts)}

    return changes


def wider(times: float) -> Callable[[ExperimentConfig], Changes]:
    """Width, heads and MLP of the decoder, heads and MLP of the gated blocks; a head stays as wide as it is."""

    def changes(base: ExperimentConfig) -> Changes:
        decoder, gated = base.model.decoder, base.model.gated
        names = ("width", "heads", "kv_heads", "mlp_width")
        return {
            "model.decoder": dataclasses.replace(decoder, **_times(times, decoder, names)),
            "model.gated": dataclasses.replace(gated, **_times(times, gated, ("heads", "mlp_width"))),
        }

    return changes


def deeper(times: float) -> Callable[[ExperimentConfig], Changes]:
    def changes(base: ExperimentConfig) -> Changes:
        return {"model.decoder.layers": _times(times, base.model.decoder, ("layers",))["layers"]}

    return changes


def _times(times: float, config: Any, names: tuple[str, ...]) -> dict[str, Any]:
    sizes = {name: getattr(config, name) * times for name in names if getattr(config, name) is not None}
    for name, size in sizes.items():
        if not float(size).is_integer():
            raise ValueError(f"{name} {getattr(config, name)} cannot be multiplied by {times}")
    return {name: int(size) for name, size in sizes.items()}


def always(changes: Changes) -> Callable[[ExperimentConfig], Changes]:
    return lambda base: changes


def _all() -> Iterator[Ablation]:
    yield Ablation("base", "the base itself", always({}))

    yield Ablation("no_images", "no pictures are shown, and none is encoded", no_images, pictures=True)
    yield Ablation("no_text", "no attributes are shown", always({"tasks.text": False}))
    yield Ablation(
        "ids_only",
        "neither pictures nor attributes: ids alone, of items asked about too",
        lambda base: {**no_images(base), "tasks.text": False, "tasks.questions_show_ids": True},
    )
    yield Ablation(
        "text_only",
        "attributes alone: no pictures, and no id stands in a prompt, so that ids are learned as answers only",
        text_only,
    )

    yield Ablation("no_reconstruction", "nothing in the history is a target", always({"tasks.history_targets": "none"}))
    yield Ablation(
        "reconstruction",
        "items shown whole have their own ids as targets, as in the paper",
        always({"tasks.history_targets": "reconstruct"}),
    )
    yield Ablation(
        "no_own_ids",
        "items shown whole have the next item as their target, not their own ids",
        always({"tasks.history_targets": "next_item"}),
    )
    yield Ablation(
        "after_question",
        "recommendations are answered after their question, as in the paper",
        always({"tasks.recommendation_at": "question"}),
    )
    yield Ablation(
        "at_last_id",
        "recommendations are answered at the last id of the history, and not asked for",
        always({"tasks.recommendation_at": "last_id"}),
    )
    yield Ablation("no_focal", "plain cross entropy: gamma 0", always({"objective.gamma": 0.0}))
    for gamma in (0.5, 1.0, 2.0, 3.0, 5.0):
        yield Ablation(f"gamma_{gamma:g}", f"focal weight with gamma {gamma:g}", always({"objective.gamma": gamma}))

    for task in TASKS:
        yield Ablation(f"{task}_only", f"trained for {task} alone", always(only(task)), task=task)
    for task in TASKS:
        yield Ablation(
            f"finetuned_{task}",
            f"half of the steps on all tasks, the other half on {task} alone",
            always(only(task)),
            task=task,
            before=half_of_all,
        )
    yield Ablation(
        "curriculum",
        "one task after another, then all, with the same number of steps each",
        always({}),
        before=one_after_another,
    )

    for every in (1, 2, 4):
        yield Ablation(
            f"cross_every_{every}",
            f"a gated block for every {every} decoder layers" if every > 1 else "a gated block for every decoder layer",
            always({"model.gated.every": every}),
            pictures=True,
        )
    yield Ablation(
        "last_image", "a token sees the latest picture", always({"model.gated.attend": "last_image"}), pictures=True
    )
    yield Ablation(
        "all_images",
        "a token sees all earlier pictures",
        always({"model.gated.attend": "all_earlier_images"}),
        pictures=True,
    )
    yield Ablation("frozen_tower", "the vision tower stays as it begins", towers(False), pictures=True)
    yield Ablation("trained_tower", "the vision tower trains too", towers(True), pictures=True)

    yield Ablation("one_token_ids", "each item has a token of its own", always({"vocabulary.item_codes": None}))
    yield Ablation(
        "semantic_ids",
        "items are named by codes, made of pictures and words as the base's model sees them",
        always({}),
        ids_of_base=True,
    )

    for items in (1, 2, 5, 10, 20, 50, 100):
        yield Ablation(f"history_{items}", f"histories of {items} at most", history(items))
    yield Ablation("packed", "several examples a row", always({"loader.packed": True}))
    yield Ablation("padded", "one example a row, and the same number of rows", always({"loader.packed": False}))

    yield Ablation("width_half", "a decoder half as wide", wider(0.5))
    yield Ablation("width_double", "a decoder twice as wide", wider(2))
    yield Ablation("layers_half", "a decoder of half as many layers", deeper(0.5))
    yield Ablation("layers_double", "a decoder of twice as many layers", deeper(2))


ABLATIONS: dict[str, Ablation] = {one.name: one for one in _all()}


def listed() -> str:
    """Names and descriptions, a line each."""
    width = max(map(len, ABLATIONS))
    return "\n".join(f"{one.name:{width}}  {one.description}" for one in ABLATIONS.values())
