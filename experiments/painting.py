"""Pictures that a model is asked for: its codes, and what a VQGAN makes of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.tasks import Query
from experiments.answers import OURS, Outcome
from experiments.ask import prompt_batches
from experiments.data import ExperimentData
from experiments.picture_towers import PictureTowerConfig, open_towers
from experiments.pictures import Generated, picture_outcomes, refuse_few
from experiments.questions import Questions
from experiments.vqgan.run import decoder_of, open_vqgan
from unimp_jax.decoding import DrawingConfig
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.image_tokens import VQGAN


@dataclasses.dataclass(frozen=True)
class PaintingConfig:
    """How pictures are generated."""

    vqgan: Path | None = None
    """What turns codes into pictures: the folder of a VQGAN that was trained or imported; by default the one that made
    the codes of the catalogue, where it was then."""
    samples: int = 4
    """Pictures of each question."""
    drawing: Annotated[DrawingConfig, tyro.conf.arg(name="")] = DrawingConfig()
    """How codes are drawn."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples {self.samples} must be 1 or more")


@dataclasses.dataclass(frozen=True)
class GalleryConfig:
    """How pictures are generated for held-out people, and measured."""

    painting: Annotated[PaintingConfig, tyro.conf.arg(name="")] = PaintingConfig()
    towers: Annotated[PictureTowerConfig, tyro.conf.arg(name="")] = PictureTowerConfig()
    users: int = 1024
    """So many at most are asked, drawn by the seed."""

    def __post_init__(self) -> None:
        if self.users < 1:
            raise ValueError(f"pictures: users {self.users} must be 1 or more")


class Painter:
    """A VQGAN that makes pictures of codes."""

    def __init__(self, vqgan: VQGAN):
        self._grid, self._size = vqgan.config.grid, vqgan.config.image_size
        self._decode = decoder_of(vqgan)

    def paint(self, codes: np.ndarray) -> np.ndarray:
        """int32 [..., h * w] -> uint8 [..., H, W, 3]."""
        pictures = self._decode(codes.reshape(-1, self._grid, self._grid))
        return pictures.reshape(*codes.shape[:-1], self._size, self._size, 3)


def open_painter(data: ExperimentData, folder: Path | None) -> Painter:
    """
    Args:
      folder: of the VQGAN; None: the one that the codes say they were made with.

    Raises:
      DataError: there are no codes, or the VQGAN is not there or has others.
    """
    codes = data.vocabulary.image_codes
    if codes is None:
        raise DataError("this run knows no codes of pictures: train with --vocabulary.image-codes FILE")
    if folder is None:
        folder = Path(codes.facts.get("vqgan", "of which nothing is told"))
        if not folder.exists():
            raise DataError(f"the VQGAN that made the codes, {folder}, is not there: name its folder (vqgan)")
    vqgan = open_vqgan(folder)
    has, needed = (vqgan.config.grid, vqgan.config.codes), (codes.grid, codes.num_codes)
    if ((has[0], has[0]), has[1]) != needed:
        raise DataError(
            f"{folder} makes pictures of {has[0]} x {has[0]} of {has[1]} codes, but those of the catalogue are "
            f"{codes.grid[0]} x {codes.grid[1]} of {codes.num_codes}: another VQGAN made them"
        )
    return Painter(vqgan)


def ask_for_codes(
    data: ExperimentData, predictor: Predictor, queries: Sequence[Query], config: PaintingConfig, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [P, samples, h * w] codes, float32 [P, samples] log-probabilities of them) for image questions."""
    codes = data.vocabulary.image_codes
    assert codes is not None
    bare = data.writer.write(Query("image", 0, 0, (), bare=True), ask=True)
    return predictor.sample_codes(
        prompt_batches(data, predictor, queries, tight=True), len(queries), config.drawing,
        tokens=data.vocabulary.codes, length=codes.codes_per_image, bare=bare.tokens, samples=config.samples, seed=seed,
    )  # fmt: skip


def ask_for_pictures(
    data: ExperimentData,
    predictor: Predictor,
    queries: Sequence[Query],
    painter: Painter,
    config: PaintingConfig,
    seed: int = 0,
) -> Generated:
    """Pictures for questions whose answer is known, and the wanted ones from their codes."""
    codes = data.vocabulary.image_codes
    assert codes is not None
    drawn, _ = ask_for_codes(data, predictor, queries, config, seed)
    wanted = codes.codes[[query.right[0] for query in queries]]
    return Generated(queries, {OURS: painter.paint(drawn)}, painter.paint(wanted))


def ask_held_out(
    data: ExperimentData, predictor: Predictor, questions: Questions, painter: Painter, config: GalleryConfig, seed: int
) -> tuple[dict[str, Outcome], Generated]:
    """(tables, what was generated) for held-out image questions.

    Raises:
      DataError: there are too few, or too few pictures, to measure by.
    """
    asked = questions.queries
    drawn = np.sort(np.random.default_rng(seed).permutation(len(asked))[: config.users])
    queries = [asked[number] for number in drawn]
    refuse_few(data, queries)
    generated = ask_for_pictures(data, predictor, queries, painter, config.painting, seed)
    tower, clip = open_towers(config.towers, predictor)
    note = questions.note + (
        f" {len(queries):,} of {len(asked):,} users, by chance." if len(asked) > len(queries) else ""
    )
    return picture_outcomes(data, tower, generated, clip=clip, seed=seed, note=note), generated


def save_picture(picture: np.ndarray, path: Path) -> None:
    """A PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    Image.fromarray(picture).save(partial, "PNG")
    os.replace(partial, path)
