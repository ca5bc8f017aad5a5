"""How held-out questions are asked and measured (`EvaluationConfig`), and how one question is (`GenerateConfig`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from data_pipelines.tasks import TASKS
from data_pipelines.tasks.base import Split
from data_pipelines.tasks.registry import check_names
from experiments.baselines.sasrec import Rival, SASRecConfig
from experiments.feature_extractors import FeatureExtractorConfig
from experiments.places import Place
from experiments.restore import Checkpoint
from experiments.run import ALL_DEVICES
from unimp_jax.decoding import BeamConfig, CodeSamplingConfig
from unimp_jax.sharding import MeshConfig

Flag = Annotated[
    bool,
    PrimitiveConstructorSpec(
        nargs=0,
        metavar="",
        instance_from_str=lambda _: True,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""An option that is named or not, and takes no value."""


@dataclasses.dataclass(frozen=True)
class ImageGenerationConfig:
    """How images are generated."""

    vqgan: Path | None = None
    """What turns codes into images: the folder of a VQGAN that was trained or imported; by default the one that made
    the codes of the catalogue, where it was then."""
    samples: int = 4
    """Images of each question."""
    sampling: Annotated[CodeSamplingConfig, tyro.conf.arg(name="")] = CodeSamplingConfig()
    """How codes are drawn."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples {self.samples} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class ImageEvaluationConfig:
    """How images are generated for held-out users, and measured."""

    generation: Annotated[ImageGenerationConfig, tyro.conf.arg(name="")] = ImageGenerationConfig()
    extractors: Annotated[FeatureExtractorConfig, tyro.conf.arg(name="")] = FeatureExtractorConfig()
    users: int = 1024
    """So many at most are asked, drawn by the seed."""

    def __post_init__(self) -> None:
        if self.users < 1:
            raise ValueError(f"images: users {self.users} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured."""

    split: Split = "test"
    tasks: tuple[str, ...] = dataclasses.field(default_factory=lambda: tuple(TASKS))
    """Which of them are asked."""
    users: int | None = None
    """So many users, an even sample, are asked in each task; by default all."""
    checkpoint: Checkpoint = "best"
    """The best by validation, or the latest."""
    beams: int = 20
    """With which items are searched for that have semantic ids."""
    reviews: BeamConfig = BeamConfig(beams=5, new_tokens=256)
    """How ratings and explanations are written."""
    images: ImageEvaluationConfig = ImageEvaluationConfig()
    """How images are generated and measured, where the run was trained for that."""
    encode_catalogue: bool = True
    """Every image is encoded once, before anybody is asked; or, where there is no room for them all, in prompts."""
    rivals: tuple[Rival, ...] = ("sasrec",)
    """Which sequential baselines are trained as well (the others only count); none where no name follows."""
    sasrec_config: SASRecConfig = SASRecConfig()
    """Geometry of each and the time it is given; eSASRec and HSTU have blocks and loss of their own."""
    samples: int = 8
    """Users whose history and recommendations are shown."""
    seed: int = 0
    """Of the bootstrap and of which users are shown."""
    mesh: MeshConfig = ALL_DEVICES
    """How the model lies on the devices that are here, whatever it was trained on."""

    def __post_init__(self) -> None:
        if self.users is not None and self.users < 1:
            raise ValueError(f"users {self.users} must be 1 or more")
        if self.samples < 0 or self.seed < 0:
            raise ValueError(f"samples {self.samples} and seed {self.seed} must be 0 or more")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ValueError(f"tasks {' '.join(unknown) or 'of nothing'}: one or more of {', '.join(TASKS)}")


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """What is asked, and how it is answered."""

    task: str = "recommendation"
    """The name of a task."""
    user: str | None = None
    """The id of a user of the source. Their history is all that is known of them, what evaluation holds out included:
    this is use, not measurement. Without it, a JSON object is read from standard input:
    {"history": ["ITEM_ID", {"item": "ITEM_ID", "rating": 4.0}], "query": "…", "item": "…", "candidates": ["…"]},
    the history oldest first, the other fields in place of the options of their names."""
    query: str | None = None
    """For search and image: its words, as the source writes its categories."""
    item: str | None = None
    """For rating: the id of the item to be rated."""
    candidates: tuple[str, ...] = ()
    """For selection: the ids of three items."""
    new_items: Path | None = None
    """Items that the catalogue does not have yet, which can be recommended and be in the history: JSON lines, or
    Parquet, with `item_id`, `title`, `attributes` (by name), `categories` and `image` (a file). For a run with content:
    a new item's row is made of that alone."""
    k: int = 10
    """So many items are named by recommendation and search."""
    unfiltered: Flag = False
    """They may be items of the history as well."""
    beams: int = 10
    """Of the search for items with semantic ids (at least k), and for what is written with a rating."""
    new_tokens: int = 128
    """What is written with a rating is cut off there."""
    out: Path = Path("images")
    """For image: the folder where images go, 1.png and so on."""
    generation: Annotated[ImageGenerationConfig, tyro.conf.arg(name="")] = ImageGenerationConfig()
    """For image: by what, how many and how."""
    seed: int = 0
    """For image: of what is drawn."""
    checkpoint: Checkpoint = "best"
    """Of a run: the best by validation, or the latest."""
    data: Place | None = None
    """Where the prepared records are, if not where they were in training."""
    mesh: MeshConfig = MeshConfig(data=-1)
    """How the model lies on the devices that are here."""
    json: Flag = False
    """The answer as one JSON object."""

    def __post_init__(self) -> None:
        check_names("--task", [self.task])
