"""Configuration of evaluation on held-out queries (`EvaluationConfig`) and of single answers (`GenerateConfig`)."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from data_pipelines.tasks import TASKS
from data_pipelines.tasks.base import Split
from data_pipelines.tasks.registry import check_names
from experiments.baselines.sasrec import Rival, SASRecConfig
from experiments.feature_extractors import FeatureExtractorConfig
from experiments.parameters import Checkpoint
from experiments.path_options import PathOrURL
from experiments.run import ALL_DEVICES
from unimp_jax.decoding import BeamConfig, CodeSamplingConfig
from unimp_jax.sharding import MeshConfig

Flag = tyro.conf.UseCounterAction[int]
"""An option without a value: it is given or not."""


@dataclasses.dataclass(frozen=True)
class ImageGenerationConfig:
    """How images are generated."""

    vqgan: Path | None = None
    """Folder of a trained or imported VQGAN that decodes the codes; by default the one that made the codes of the
    catalogue, at its location then."""
    samples: int = 4
    """Number of images per query."""
    sampling: Annotated[CodeSamplingConfig, tyro.conf.arg(name="")] = CodeSamplingConfig()
    """How codes are sampled."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples {self.samples} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class ImageEvaluationConfig:
    """How images are generated for held-out users, and measured."""

    generation: Annotated[ImageGenerationConfig, tyro.conf.arg(name="")] = ImageGenerationConfig()
    extractors: Annotated[FeatureExtractorConfig, tyro.conf.arg(name="")] = FeatureExtractorConfig()
    users: int = 1024
    """Maximum number of users that are asked, drawn by the seed."""

    def __post_init__(self) -> None:
        if self.users < 1:
            raise ValueError(f"images: users {self.users} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated."""

    split: Split = "test"
    tasks: tuple[str, ...] = dataclasses.field(default_factory=lambda: tuple(TASKS))
    """The tasks that are evaluated."""
    users: int | None = None
    """Number of users per task, an even sample; by default all."""
    checkpoint: Checkpoint = "best"
    """The best checkpoint by validation, or the latest."""
    beams: int = 20
    """Number of beams in the search for items with semantic ids."""
    reviews: BeamConfig = BeamConfig(beams=5, new_tokens=256)
    """Beam search for ratings and explanations."""
    images: ImageEvaluationConfig = ImageEvaluationConfig()
    """How images are generated and measured, if the run was trained to generate them."""
    encode_catalogue: bool = True
    """Encode every image once, before the evaluation, or, if there is no room for them all, in prompts."""
    rivals: tuple[Rival, ...] = ("sasrec",)
    """Sequential baselines to train; the other baselines only count. Give no name to train none."""
    sasrec_config: SASRecConfig = SASRecConfig()
    """Geometry and training time of each sequential baseline; eSASRec and HSTU have blocks and a loss of their own."""
    samples: int = 8
    """Number of users whose history and recommendations are shown."""
    seed: int = 0
    """Seed of the bootstrap and of the users that are shown."""
    mesh: MeshConfig = ALL_DEVICES
    """The mesh of the devices available here, independent of the one used in training."""

    def __post_init__(self) -> None:
        if self.users is not None and self.users < 1:
            raise ValueError(f"users {self.users} must be 1 or more")
        if self.samples < 0 or not 0 <= self.seed < 2**32:
            raise ValueError(f"samples {self.samples} and seed {self.seed} must be 0 or more, the seed below 2^32")
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise ValueError(f"tasks {' '.join(unknown) or '(none)'}; give one or more of {', '.join(TASKS)}")


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """One query, and how it is answered."""

    task: str = "recommendation"
    """The name of a task."""
    user: str | None = None
    """The id of a user of the source, with the whole history, including held-out interactions: this is use, not
    evaluation. Without it, a JSON object is read from standard input:
    {"history": ["ITEM_ID", {"item": "ITEM_ID", "rating": 4.0}], "query": "…", "item": "…", "candidates": ["…"]},
    with the history oldest first and the other fields in place of the options of these names."""
    query: str | None = None
    """For search and image: the words to search for, as in the source's categories."""
    item: str | None = None
    """For rating: the id of the item to rate."""
    candidates: tuple[str, ...] = ()
    """For selection: the ids of three items."""
    new_items: Path | None = None
    """Items that are not yet in the catalogue, which can be recommended and be in the history: JSON lines or Parquet
    with `item_id`, `title`, `attributes` (by name), `categories` and `image` (a file). Requires a run with content,
    from which alone a new item's row is computed."""
    k: int = 10
    """Number of items returned by recommendation and search."""
    unfiltered: Flag = False
    """Allow items of the history among them."""
    beams: int = 10
    """Number of beams in the search for items with semantic ids (at least k), and for the explanation of a rating."""
    new_tokens: int = 128
    """Maximum number of tokens of the explanation of a rating."""
    out: Path = Path("images")
    """For image: the folder for the images, named 1.png and so on."""
    generation: Annotated[ImageGenerationConfig, tyro.conf.arg(name="")] = ImageGenerationConfig()
    """For image: the VQGAN, the number of images and the sampling."""
    seed: int = 0
    """For image: the seed of the sampling."""
    checkpoint: Checkpoint = "best"
    """Checkpoint of a run: the best by validation, or the latest."""
    data: PathOrURL | None = None
    """Folder of the prepared records, if not the one used in training."""
    mesh: MeshConfig = MeshConfig(data=-1)
    """The mesh of the devices available here."""
    json: Flag = False
    """Print the answer as one JSON object."""

    def __post_init__(self) -> None:
        check_names("--task", [self.task])
        if self.k < 1:
            raise ValueError(f"k {self.k} must be 1 or more")
