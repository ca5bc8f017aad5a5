"""A small catalogue and its users, made by a seed, with every awkwardness that a real one has."""

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.columns import NUMBERS
from data_pipelines.corpus import Corpus, all_events, catalogue_of
from data_pipelines.image_codes import ImageCodes, save_image_codes
from data_pipelines.item_codes import ItemCodes, save_codes
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.prompt import PromptWriter, prompt_texts
from data_pipelines.tasks.queries import QueryConfig, TrainingQueries
from data_pipelines.tasks.query import Queries
from data_pipelines.vocabulary import Vocabulary, VocabularyConfig, attribute_texts, build_vocabulary

START = 1_000_000_000
"""A time in 2001, in seconds since 1970: a source takes none before 1990."""
GENRES = ("Action", "Comedy", "Drama", "Sci-Fi")


def image(seed: int, size: int = 24) -> bytes:
    """An encoded PNG of one colour."""
    colour = tuple(np.random.default_rng(seed).integers(256, size=3).tolist())
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def in_memory(items: Sequence[Item], users: Sequence[User]) -> Corpus:
    """The corpus in the plainest form: lists, and arrays joined from those of the users."""
    events = [*all_events(catalogue_of(items), users)]
    starts = np.cumsum([0, *(len(one.items) for one in events)])
    kinds = [(name, kind) for name, kind in NUMBERS.items() if name != "offsets"]
    return Corpus(
        item_ids=[item.item_id for item in items],
        titles=[item.title for item in items],
        attributes=[item.attributes for item in items],
        categories=[item.categories for item in items],
        user_ids=[one.user_id for one in events],
        offsets=starts.astype(np.int64),
        texts={
            int(start) + number: text
            for start, one in zip(starts, events, strict=False)
            for number, text in one.texts.items()
        },
        **{name: np.concatenate([np.array(getattr(one, name), kind) for one in events]) for name, kind in kinds},
    )


def small_corpus(num_items: int = 40, num_users: int = 30, seed: int = 0) -> Corpus:
    rng = np.random.default_rng(seed)
    items = []
    for number in range(num_items):
        genres = tuple(rng.permutation(GENRES)[: rng.integers(0, 3)].tolist())
        title = " ".join(rng.choice(["The", "Last", "Blue", "House", "Œuvre", "7"], size=rng.integers(1, 8)))
        items.append(Item(f"i{number}", title, (("Genres", ", ".join(genres)), ("Title", title)), genres))
    users = []
    for number in range(num_users):
        length = int(rng.integers(1, min(25, num_items - 3)))
        met = rng.permutation(num_items)[:length]
        users.append(
            User(
                f"u{number}",
                tuple(
                    Interaction(
                        f"i{item}",
                        time=int(time),
                        rating=float(rng.integers(1, 11) / 2) if rng.random() < 0.9 else float("nan"),
                        text="very good" if rng.random() < 0.2 else "",
                    )
                    for time, item in enumerate(met)
                ),
            )
        )
    return in_memory(items, users)


def circle(num_items: int = 12, num_users: int = 30) -> Corpus:
    """Everyone goes round the catalogue, each from an item of their own."""
    users = []
    for number in range(num_users):
        walk = [(number + step) % num_items for step in range(6 + number % 4)]
        users.append(User(f"u{number}", tuple(Interaction(f"i{item}") for item in walk)))
    return in_memory([Item(f"i{number}", f"Item {number}") for number in range(num_items)], users)


def small_vocabulary(corpus: Corpus, *, images: bool = False) -> Vocabulary:
    """With `images`, they are known as `small_images`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.parquet" if images else None
        if path:
            save_image_codes(path, small_images(corpus))
        config = VocabularyConfig(trained_size=400, round_to=8, image_codes=path)
        return build_vocabulary(corpus, config, prompt_texts(images=images))


def small_images(corpus: Corpus, grid: tuple[int, int] = (3, 2), num_codes: int = 11) -> ImageCodes:
    """Random codes; every third item has no image."""
    codes = np.random.default_rng(0).integers(num_codes, size=(corpus.num_items, grid[0] * grid[1])).astype(np.int32)
    codes[::3] = -1
    return ImageCodes(tuple(corpus.item_ids), codes, grid, num_codes, {"made by": "chance"})


def drawn(
    corpus: Corpus,
    config: QueryConfig | None = None,
    *,
    seed: int = 0,
    count: int,
    has_codes: np.ndarray | None = None,
) -> Queries:
    """The first questions of training, by default of the default tasks."""
    return TrainingQueries(corpus, config or QueryConfig(), seed, has_codes).draw(0, count)[0]


def small_writer(
    corpus: Corpus, vocabulary: Vocabulary, config: TaskConfig, row_shape: RowShape, image_tokens: int = 1
) -> PromptWriter:
    """Every third item has no image."""
    return PromptWriter(
        corpus,
        vocabulary,
        config,
        row_shape,
        attributes=attribute_texts(corpus, VocabularyConfig()),
        has_image=np.arange(corpus.num_items) % 3 != 0,
        image_tokens=image_tokens,
    )


def small_codes(corpus: Corpus, sizes: tuple[int, ...] = (4, 3, 6), seed: int = 0) -> ItemCodes:
    """Random names of all items, many of which begin alike."""
    chosen = np.random.default_rng(seed).permutation(int(np.prod(sizes)))[: corpus.num_items]
    codes = np.stack(np.unravel_index(chosen, sizes), axis=1).astype(np.int32)
    return ItemCodes(tuple(corpus.item_ids), codes, sizes)


def semantic_vocabulary(corpus: Corpus) -> Vocabulary:
    """As `small_vocabulary` with images, with items named by `small_codes`."""
    with tempfile.TemporaryDirectory() as folder:
        names, images = Path(folder) / "ids.parquet", Path(folder) / "images.parquet"
        save_codes(names, small_codes(corpus))
        save_image_codes(images, small_images(corpus))
        config = VocabularyConfig(trained_size=400, round_to=8, item_codes=names, image_codes=images)
        return build_vocabulary(corpus, config, prompt_texts(images=True))
