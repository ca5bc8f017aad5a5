"""The image task: generates image codes for a query, decodes them with a VQGAN, and evaluates the images.

Recommenders answer it, too, ours and the baselines: with the image of the item that they rank first for the query.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.atomic import atomic_file
from data_pipelines.corpus import Corpus
from data_pipelines.errors import DataError
from data_pipelines.tasks import Query
from experiments.data import ExperimentData
from experiments.evals.base import OURS, Answered, Setting, TaskEval, prompt_batches
from experiments.evals.config import EvaluationConfig, GenerateConfig, ImageGenerationConfig
from experiments.evals.search import SearchEval
from experiments.request import Request
from experiments.vqgan.run import decoder_of, open_vqgan
from unimp_jax.evaluation.predictor import Predictor

Decoder = Callable[[np.ndarray], np.ndarray]
"""Codes, int32 [..., h * w] -> images, uint8 [..., H, W, 3]."""


class ImageEval(TaskEval):
    """The image task: what does the target item look like?"""

    task = "image"
    needs_rankers = True
    needs = ("query", 'the words that describe the image, such as --query "Comedy, Drama"')

    def open(self, data: ExperimentData, config: EvaluationConfig | GenerateConfig) -> Decoder:
        if isinstance(config, EvaluationConfig):
            return open_decoder(data, config.images.generation.vqgan)
        decode = open_decoder(data, config.generation.vqgan)
        config.out.mkdir(parents=True, exist_ok=True)
        return decode

    def quality(self, corpus: Corpus, users: np.ndarray, positions: np.ndarray) -> Callable[[np.ndarray], float]:
        """That of search: the query is the same."""
        return SearchEval().quality(corpus, users, positions)

    def evaluate(self, setting: Setting) -> Answered:
        # The metrics take seconds to import, and answers do not need them.
        from experiments.evals.image_metrics import Generated, first_items, image_outcomes, refuse_few, sample_images
        from experiments.feature_extractors import open_towers

        data, config, questions = setting.data, setting.config, setting.questions
        settings, everybody = config.images, questions.queries
        drawn = np.sort(np.random.default_rng(config.seed).permutation(len(everybody))[: settings.users])
        queries = [everybody[number] for number in drawn]
        refuse_few(data, queries)
        drawn_codes, _ = sample_codes(data, setting.predictor, queries, settings.generation, config.seed)
        assert data.vocabulary.image_codes is not None
        wanted_codes, decode = data.vocabulary.image_codes.codes[[query.right[0] for query in queries]], setting.opened
        generated = Generated(queries, {OURS: decode(drawn_codes)}, decode(wanted_codes))
        found = {
            ranker.name: first_items(data, ranker, queries)
            for ranker in SearchEval().rankers(data.corpus, setting.rankers)
        }
        tower, clip = open_towers(settings.extractors, setting.predictor)
        fewer = len(everybody) > len(queries)
        note = questions.note + (f" {len(queries):,} of {len(everybody):,} users, drawn at random." if fewer else "")
        outcomes = image_outcomes(data, tower, generated, found, clip=clip, seed=config.seed, note=note)
        save = functools.partial(
            sample_images, data, generated, split=config.split, count=config.samples, seed=config.seed
        )
        return Answered(outcomes, save_images=save)

    def query(self, data: ExperimentData, request: Request, query: Query, item_of: Callable[[str], int]) -> Query:
        return dataclasses.replace(query, words=request.query)

    def answer(
        self, data: ExperimentData, predictor: Predictor, query: Query, config: GenerateConfig, opened: Any
    ) -> dict[str, Any]:
        """Writes image files and returns them with the log-probabilities of their codes, the most probable first."""
        codes, scores = sample_codes(data, predictor, [query], config.generation, config.seed)
        order = np.argsort(-scores[0], kind="stable")
        images = []
        for number, image in enumerate(opened(codes[0, order]), start=1):
            path = config.out / f"{number}.png"
            with atomic_file(path) as partial:
                Image.fromarray(image).save(partial, "PNG")
            images.append({"file": str(path), "log-probability": float(scores[0, order[number - 1]])})
        return {"query": query.words, "images": images}

    def show(self, answer: dict[str, Any]) -> list[str]:
        files = [f"{one['file']}  log-probability {one['log-probability']:.1f}" for one in answer["images"]]
        return [f"query  {answer['query']}", *files]


def open_decoder(data: ExperimentData, folder: Path | None) -> Decoder:
    """Opens the VQGAN in the folder (None: the one named in the file of the codes) that decodes the codes of a run;
    DataError if there are no codes, or the VQGAN is missing or has other codes."""
    codes = data.vocabulary.image_codes
    if codes is None:
        raise DataError("this run has no image codes; train with --vocabulary.image-codes FILE")
    if folder is None:
        folder = Path(codes.facts.get("vqgan", "unknown"))
        if not folder.exists():
            raise DataError(f"the VQGAN that made the codes, {folder}, does not exist; give its folder (vqgan)")
    vqgan = open_vqgan(folder)
    has, needed = (vqgan.config.grid, vqgan.config.codes), (codes.grid, codes.num_codes)
    if ((has[0], has[0]), has[1]) != needed:
        raise DataError(
            f"{folder} makes images of {has[0]} x {has[0]} codes from {has[1]}, but the catalogue has "
            f"{codes.grid[0]} x {codes.grid[1]} codes from {codes.num_codes}; use the VQGAN that made the codes"
        )
    decoder, grid, size = decoder_of(vqgan), vqgan.config.grid, vqgan.config.image_size
    return lambda codes: decoder(codes.reshape(-1, grid, grid)).reshape(*codes.shape[:-1], size, size, 3)


def sample_codes(
    data: ExperimentData, predictor: Predictor, queries: Sequence[Query], config: ImageGenerationConfig, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Samples codes for image queries: int32 [P, samples, h * w], and their log-probabilities, float32 [P, samples]."""
    codes = data.vocabulary.image_codes
    assert codes is not None
    unconditional = data.writer.write(Query("image", 0, 0, (), unconditional=True), ask=True)
    return predictor.sample_codes(
        prompt_batches(data, predictor, queries, tight=True), len(queries), config.sampling,
        tokens=data.vocabulary.codes, length=codes.codes_per_image, unconditional=unconditional.tokens,
        samples=config.samples, seed=seed,
    )  # fmt: skip
