"""Metrics of generated images beside reference images, and image samples for a report.

All images are compared at the size of the generated ones, by the same tower. The references are the image of the item
that a ranker puts first, a random item's image, that of another item matching the query, and the target image decoded
from its codes.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.atomic import atomic_folder
from data_pipelines.images import ImageStore, take
from data_pipelines.tasks import Query
from experiments.baselines.query_match import WordMatches
from experiments.baselines.ranker import Ranker, scored_batches
from experiments.data import ExperimentData
from experiments.evals.base import RETRIEVED, Outcome, TooFewError, moments, question_columns
from experiments.feature_extractors import FeatureExtractor
from experiments.results import ImageSample
from unimp_jax.evaluation.images import (
    SAME_QUERY,
    clip_score,
    distance_metrics,
    image_distances,
    image_metrics,
    image_scores,
    sign_test,
)
from unimp_jax.evaluation.neighbours import NEIGHBOURS

SHOWN_HISTORY = 10
RECONSTRUCTED = "the wanted image from its codes"
OF_THE_QUERY = "another item of the query"
RANDOM = "a random item"
QUESTION = "Which image is wanted, given its item's categories as a query?"
MEANINGS = (
    "Closer: the share of comparisons in which a generated image is closer to the wanted image than to the image "
    "of a random item ({0} per user; ties count half); closer, same query: the same with {0} items that match "
    "the query. Precision and recall: of each user's first image, by 3 nearest neighbours. Diversity: the "
    "distance between images of users with the same query; own diversity: between the images of one user. Its first "
    "item: the image of the item that is ranked first for the query, as in search; nothing is generated."
)
DISTANCES = (
    "Fréchet distance: of the first image of each user, over all users. Distance to wanted: the mean over all images."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """Images of P queries, uint8, all of one size.

    Attributes:
      queries: P queries whose target items have images.
      images: [P, S, H, W, 3] for each way of asking, under a name that begins with `OURS`.
      reconstructions: [P, H, W, 3], the target items' images, encoded and decoded.
    """

    queries: Sequence[Query]
    images: Mapping[str, np.ndarray]
    reconstructions: np.ndarray

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self.reconstructions.shape[1]


def image_outcomes(
    data: ExperimentData,
    tower: FeatureExtractor,
    generated: Generated,
    found: Mapping[str, np.ndarray] = types.MappingProxyType({}),
    *,
    clip: FeatureExtractor | None = None,
    randoms: int = 8,
    seed: int = 0,
    note: str = "",
) -> dict[str, Outcome]:
    """Returns the tables `image`, whose metrics are better if larger, and `image-distance`, whose are better if
    smaller.

    Args:
      tower, clip: as returned by `open_towers`.
      found: by the name of a ranker, its `first_items`.
      randoms: number of items, drawn by the seed for each user, whose images each generated one is compared with.
      note: additional text about who was asked.
    """
    beside = draw_beside(data, generated.queries, randoms, seed)
    words = [", ".join(data.corpus.categories[item]) for item in beside[0]]
    rows, wanted_PF, alike_PRF, random_PRF = seen_by(tower, data, generated, found, beside)
    scores = {name: image_scores(x_PSF, wanted_PF, random_PRF, alike_PRF, words) for name, x_PSF in rows.items()}
    if clip and clip.read:
        query_PF = clip.read(words)
        for name, x_PSF in (rows if clip is tower else seen_by(clip, data, generated, found, beside)[0]).items():
            scores[name]["CLIP score"] = clip_score(x_PSF, query_PF)
    distances = {name: image_distances(x_PSF, wanted_PF) for name, x_PSF in rows.items()}
    answers = question_columns(data.corpus, generated.queries) | {"query": words}
    how = f"{generated.size} x {generated.size} pixels, features of {tower.name}.{note}"
    signs = " ".join(
        tell_signs(f"{name}, {metric},", scores[name][metric])
        for name in generated.images for metric in ("closer", SAME_QUERY)
    )  # fmt: skip
    return {
        "image": Outcome(f"{QUESTION} {how} {MEANINGS.format(randoms)} {signs}", scores, answers, image_metrics),
        "image-distance": Outcome(f"{how} {DISTANCES}", distances, answers, distance_metrics, larger_is_better=False),
    }


def first_items(data: ExperimentData, ranker: Ranker, queries: Sequence[Query]) -> np.ndarray:
    """Returns the item that a ranker puts first among those with an image that the user has not seen: int64 [P]."""
    first_P = np.zeros(len(queries), np.int64)
    for part, scores_MI in scored_batches(ranker, data.corpus, *moments(queries)):
        left_MI = np.where(data.has_image & ~np.isnan(scores_MI), scores_MI, -np.inf)
        for row_I, number in zip(left_MI, part.tolist(), strict=True):
            row_I[data.corpus.history(queries[number].user, queries[number].position)] = -np.inf
        first_P[part] = left_MI.argmax(axis=1)
    return first_P


def refuse_few(data: ExperimentData, queries: Sequence[Query]) -> None:
    """Raises TooFewError if there are fewer users than precision and recall need, or images than comparisons need."""
    images = int(data.has_image.sum())
    if len(queries) <= NEIGHBOURS or images < 3:
        raise TooFewError(
            f"{len(queries)} users and {images} items with images; at least {NEIGHBOURS + 1} users and 3 items "
            "with images are needed"
        )


def tell_signs(name: str, shares: np.ndarray) -> str:
    """Describes a sign test of per-user shares against chance."""
    above, below, p_value = sign_test(shares)
    chance = "< .001" if p_value < 0.001 else f"= {p_value:.3f}"
    return f"{name} is above chance for {above:,} users and below for {below:,} (sign test, p {chance})."


Beside = tuple[np.ndarray, ...]
"""Items whose own images are compared with the generated ones of P users: int64 [P], the target, one matching the query
and a random one, which are rows of the table; int64 [P, R], matching and random ones for the comparisons."""


def draw_beside(data: ExperimentData, queries: Sequence[Query], randoms: int, seed: int) -> Beside:
    """Draws the reference items of each user by the seed."""
    rng = np.random.default_rng(seed)
    wanted_P = np.array([query.right[0] for query in queries])
    random_PR = random_items(data.has_image, wanted_P, randoms + 1, rng)
    alike_P, alike_PR = items_of_the_query(data, wanted_P, randoms, rng)
    return wanted_P, alike_P, random_PR[:, 0], alike_PR, random_PR[:, 1:]


def random_items(has_image: np.ndarray, wanted_P: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws random items that have an image and are not the target: int64 [P, count]."""
    shown = np.flatnonzero(has_image)
    drawn_PR = rng.integers(0, len(shown) - 1, (len(wanted_P), count))
    return shown[drawn_PR + (drawn_PR >= np.searchsorted(shown, wanted_P)[:, None])]


def items_of_the_query(
    data: ExperimentData, wanted_P: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws, for each target item, one of the others whose categories match it best, and `count` of the best remaining
    ones: int64 [P] and [P, count]."""
    categories, has_image = data.corpus.categories, data.has_image
    matches = WordMatches(categories, lambda place, _: categories[wanted_P[place]])

    def draw(count: int, *taken: np.ndarray) -> np.ndarray:
        drawn = []
        for place in range(len(wanted_P)):  # one query at a time is matched with all items
            row_I = np.where(has_image, matches(np.array([place]), np.array([place]))[0], -1)
            row_I[[items_P[place] for items_P in taken]] = -1
            drawn.append(rng.choice(np.flatnonzero(row_I == row_I.max()), count))
        return np.stack(drawn)

    alike_P = draw(1, wanted_P)[:, 0]
    return alike_P, draw(count, wanted_P, alike_P)


def seen_by(
    tower: FeatureExtractor,
    data: ExperimentData,
    generated: Generated,
    found: Mapping[str, np.ndarray],
    beside: Beside,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Returns the tower's features: by row of the table, [P, S, F]; of the target items' images, [P, F]; of the
    matching and of the random items, [P, R, F]. Each item's own image is encoded once."""
    items = np.unique(np.concatenate([part.ravel() for part in (*beside, *found.values())]))
    own = ImageStore(data.images.encoded, generated.size, data.config.images)
    features = tower.see(take(own, items))
    wanted_PF, alike_PF, random_PF, alike_PRF, random_PRF = (features[np.searchsorted(items, part)] for part in beside)
    rows = {name: see_samples(tower, images) for name, images in generated.images.items()}
    rows |= {
        f"{name}{RETRIEVED}": features[np.searchsorted(items, items_P)][:, None] for name, items_P in found.items()
    }
    rows |= {OF_THE_QUERY: alike_PF[:, None], RANDOM: random_PF[:, None]}
    rows[RECONSTRUCTED] = tower.see(generated.reconstructions)[:, None]
    return rows, wanted_PF, alike_PRF, random_PRF


def see_samples(tower: FeatureExtractor, images_PSHW3: np.ndarray) -> np.ndarray:
    """Returns the features of samples, float32 [P, S, F]."""
    users, samples, *shape = images_PSHW3.shape
    return tower.see(images_PSHW3.reshape(users * samples, *shape)).reshape(users, samples, -1)


def sample_images(
    data: ExperimentData, generated: Generated, folder: Path, split: str, *, count: int, seed: int = 0
) -> tuple[ImageSample, ...]:
    """Writes the images of some users, drawn by the seed, into `<split>-images` in the evaluation folder."""
    name, corpus = f"{split}-images", data.corpus
    (images_PSHW3, *_) = generated.images.values()
    samples = []
    with atomic_folder(folder / name, replaces=True) as partial:
        for number in np.random.default_rng(seed).permutation(len(generated.queries))[:count].tolist():
            query = generated.queries[number]
            files = [f"{name}/{number}-{sample}.png" for sample in range(images_PSHW3.shape[1])]
            reconstruction = f"{name}/{number}-wanted.png"
            whole = [generated.reconstructions[number], *images_PSHW3[number]]
            for file, image in zip([reconstruction, *files], whole, strict=True):
                Image.fromarray(image).save(partial / Path(file).name)
            history = tuple(corpus.history(query.user, query.position)[-SHOWN_HISTORY:].tolist())
            user, target = corpus.user_ids[query.user], query.right[0]
            words = ", ".join(corpus.categories[target])
            samples.append(ImageSample(user, history, words, target, reconstruction, tuple(files)))
    return tuple(samples)
