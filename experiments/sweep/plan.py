"""From names of ablations and seeds to cells, in an order in which each comes after those that it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data_pipelines.nearest import did_you_mean
from data_pipelines.records import read_items
from data_pipelines.tasks import TASKS
from experiments.beginning import adopt
from experiments.config import DataConfig, ExperimentConfig
from experiments.evals.config import EvaluationConfig
from experiments.sweep.ablations import ABLATIONS, Ablation, Part
from experiments.sweep.cells import Cell
from experiments.sweep.changes import changed
from experiments.sweep.files import read_json

ITEMS_LOOKED_AT = 1000


@dataclasses.dataclass(frozen=True)
class Source:
    """What a base's data has for ablations to be about."""

    pictures: bool
    tasks: tuple[str, ...]
    """That can be asked for."""


def look_at(data: DataConfig) -> Source:
    """From its first items, and what `unimp prepare` counted.

    Raises:
      DataError: the source is not prepared.
    """
    items = read_items(data.source, data.folder)
    some = [items[number] for number in range(min(len(items), ITEMS_LOOKED_AT))]
    counted = read_json(data.folder / data.source / "prepared.json") or {}
    lacking = set()
    if not any(item.categories for item in some):
        lacking.add("search")
    if counted.get("rated") == 0:
        lacking.add("preference")
    pictures = bool(counted.get("images", any(item.image for item in some)))
    return Source(pictures, tuple(task for task in TASKS if task not in lacking))


@dataclasses.dataclass(frozen=True)
class Base:
    """What is varied, and how that is measured."""

    preset: str
    config: ExperimentConfig
    source: Source
    evaluation: EvaluationConfig

    @property
    def tasks(self) -> tuple[str, ...]:
        """That it is trained for."""
        return tuple(task for task in self.source.tasks if self.config.queries.mix[task])

    @property
    def pictures(self) -> bool:
        return self.source.pictures and self.config.tasks.images and self.config.budget.images > 0


def plan(base: Base, names: Sequence[str], seeds: Sequence[int]) -> tuple[list[Cell], dict[str, str]]:
    """(all cells, with those that they need before them; ablations that make no sense here, and why).

    Args:
      names: of ablations; none: all of them.

    Raises:
      ValueError: an ablation that was named is unknown or makes no sense, or there is no seed.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds {' '.join(map(str, seeds))}: one or more, no two alike")
    for name in names:
        if name not in ABLATIONS:
            hint = did_you_mean(name, ABLATIONS)
            raise ValueError(f"there is no ablation {name!r}; {hint}--list shows them all")
    cells: dict[str, Cell] = {}
    refused: dict[str, str] = {}
    for name in dict.fromkeys(names or ABLATIONS):
        try:
            made = [cell for seed in seeds for cell in cells_of(ABLATIONS[name], base, seed)]
        except ValueError as error:
            if names:
                raise ValueError(f"{name} makes no sense here: {error}") from error
            refused[name] = str(error)
            continue
        cells |= {cell.name: cell for cell in made}
    return list(cells.values()), refused


def cells_of(ablation: Ablation, base: Base, seed: int) -> list[Cell]:
    """The cell of an ablation and a seed, after those that it needs.

    Raises:
      ValueError: the ablation makes no sense on this base.
    """
    if ablation.pictures and not base.pictures:
        raise ValueError("the base shows no pictures, or its source has none")
    if ablation.task and ablation.task not in base.tasks:
        raise ValueError(f"the base does not train for {ablation.task} (queries.mix), or its source cannot be asked it")
    parts = ablation.before(base.tasks)
    config = changed(base.config, ablation.changes(base.config))
    if not parts and not ablation.ids_of_base and ablation.name != "base":
        if config == base.config:
            raise ValueError("the base is so already")
        if adopt(config) == adopt(base.config):
            raise ValueError(f"the geometry is that of {base.config.start}, with which the base begins")
    if ablation.ids_of_base and base.config.vocabulary.item_codes is not None:
        raise ValueError("the base names items by codes already")
    own = Part(ablation.name, ablation.description, ablation.changes(base.config))
    steps = divided(base.config.loop.steps, len(parts) + 1)
    cells: list[Cell] = []
    for part, count in zip((*parts, own), steps, strict=True):
        config = changed(base.config, {**part.changes, "loop.steps": count, "seed": seed})
        cell = Cell(
            name=f"{part.name}-seed{seed}",
            base=base.preset,
            ablation=part.name,
            seed=seed,
            description=part.description,
            config=config,
            starts_from=cells[-1].name if cells else None,
            evaluation=base.evaluation if part is own else None,
        )
        cells.append(cell)
    if not ablation.ids_of_base:
        return cells
    (named_by,) = cells_of(ABLATIONS["base"], base, seed)
    return [named_by, dataclasses.replace(cells[-1], ids_of=named_by.name)]


def divided(steps: int, parts: int) -> list[int]:
    """As evenly as can be.

    Raises:
      ValueError: there are fewer steps than parts.
    """
    if steps < parts:
        raise ValueError(f"{steps} steps cannot be divided among {parts} parts")
    return [steps * (number + 1) // parts - steps * number // parts for number in range(parts)]
