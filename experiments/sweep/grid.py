"""Plans the cells of ablations and seeds, in an order in which each cell comes after those that it needs."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from data_pipelines.nearest import did_you_mean
from data_pipelines.tasks import TASKS, TaskData
from experiments.config import ExperimentConfig
from experiments.data import load_records
from experiments.evals.config import EvaluationConfig
from experiments.init import with_init_geometry
from experiments.sweep.ablations import ABLATIONS, Ablation
from experiments.sweep.cells import SweepCell
from experiments.sweep.changes import changed


@dataclasses.dataclass(frozen=True)
class Base:
    """The base that is varied.

    Attributes:
      images: whether it shows images, and its source has some.
      tasks: the tasks that it trains for, and that the records of its source allow.
    """

    preset: str
    config: ExperimentConfig
    images: bool
    tasks: Sequence[str]

    @classmethod
    def open(cls, preset: str, config: ExperimentConfig) -> Self:
        """Opens a base, and reads the records of its source, as training does."""
        records = load_records(config.data)
        has_codes = np.ones(records.corpus.num_items, bool) if config.queries.needs_codes else None
        data, mix = TaskData.of(records.corpus, has_codes), config.queries.mix
        tasks = [name for name, task in TASKS.items() if mix[name] and not task.unavailable(data)]
        shown = config.tasks.images and config.row_shape.images > 0 and bool(records.has_image.any())
        return cls(preset, config, shown, tasks)


def plan(
    base: Base, names: Sequence[str], seeds: Sequence[int], evaluation: EvaluationConfig
) -> tuple[list[SweepCell], dict[str, str]]:
    """Returns the cells of the named ablations (of all, if none is named) with each of the seeds, and the reason why
    each of the others is not meaningful; ValueError if a named one is unknown or not meaningful."""
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"--seeds {' '.join(map(str, seeds))}: give one or more different seeds")
    if unknown := [name for name in names if name not in ABLATIONS]:
        raise ValueError(f"there is no ablation {unknown[0]!r}; {did_you_mean(unknown[0], ABLATIONS)}see --list")
    cells: dict[str, SweepCell] = {}
    refused: dict[str, str] = {}
    for name in names or ABLATIONS:
        try:
            cells |= {cell.name: cell for seed in seeds for cell in cells_of(ABLATIONS[name], base, seed, evaluation)}
        except ValueError as error:
            if names:
                raise ValueError(f"{name} is not applicable: {error}") from error
            refused[name] = str(error)
    return list(cells.values()), refused


def cells_of(ablation: Ablation, base: Base, seed: int, evaluation: EvaluationConfig) -> list[SweepCell]:
    """Returns the cell of an ablation and a seed, after those that it needs; ValueError if it is not meaningful."""
    if ablation.needs_images and not base.images:
        raise ValueError("the base shows no images, or its source has none")
    if ablation.task and ablation.task not in base.tasks:
        raise ValueError(f"the base does not train for {ablation.task} (queries.mix), or its source does not allow it")
    if ablation.needs_ids and base.config.vocabulary.item_codes is not None:
        raise ValueError("the items of the base already have semantic ids")
    stages = [*ablation.stages(base.tasks), ablation]
    config = ablation.apply(base.config)
    if len(stages) == 1 and not ablation.needs_ids and ablation.name != "base":
        if config == base.config:
            raise ValueError("the base already has these settings")
        if with_init_geometry(config) == with_init_geometry(base.config):
            raise ValueError(f"the geometry is that of {base.config.init_from}, from which the base is initialised")
    cells = cells_of(ABLATIONS["base"], base, seed, evaluation) if ablation.needs_ids else []
    ids_of = cells[0].name if cells else None
    steps, previous = base.config.loop.steps, None
    if steps < len(stages):
        raise ValueError(f"{steps} steps cannot be divided among {len(stages)} stages")
    for number, stage in enumerate(stages):
        own_steps = steps * (number + 1) // len(stages) - steps * number // len(stages)
        cell = SweepCell(
            name=f"{stage.name}-seed{seed}",
            preset=base.preset,
            ablation=stage.name,
            seed=seed,
            description=stage.description,
            config=changed(stage.apply(base.config), {"loop.steps": own_steps, "seed": seed}),
            starts_from=previous,
            ids_of=ids_of,
            evaluation=evaluation if stage is ablation else None,
        )
        cells.append(cell)
        previous = cell.name
    return cells
