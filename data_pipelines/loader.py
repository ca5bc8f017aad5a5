"""Endless training batches and batches of evaluation questions; Grain maps, batches and prefetches.

Training examples come in blocks. A block is planned as a whole: its questions are drawn, the sizes of their examples
are computed from the lengths of their parts, the examples are packed and the rows are shuffled. A batch is the next
`batch_size` rows, across blocks. All of this depends only on the seed, so a position is two numbers, (block, row): it
is the same for any number of processes, threads and devices, and training can continue from it with any batch size.
Every process plans every block, which takes microseconds per example, and writes only the examples of its own rows.
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from data_pipelines.images import Images
from data_pipelines.packing import best_length, fill_row, pack
from data_pipelines.tasks.examples import Example, RowShape
from data_pipelines.tasks.prompt import Layouts, PromptWriter
from data_pipelines.tasks.queries import TrainingQueries

PLANNER = 2
"""The version of `BlockPlanner`, incremented whenever the same configuration leads to different rows."""
SHORTENED = "texts of a question or answer cut to fit"


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How batches are made."""

    batch_size: int = 8
    """Rows of a global batch, over all processes and accumulation steps."""
    block_examples: int = 4096
    """Examples planned together; a larger number fills rows better but takes longer to plan."""
    packed: bool = True
    """Whether to pack several examples into a row; otherwise (for comparison) each row is one padded example."""
    threads: int = 2
    """Threads that decode images."""
    prefetch: int = 4
    """Batches prepared in advance."""
    planner: int = PLANNER
    """Version of the block planner, which determines the order of training data; only the current one is supported."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.block_examples, self.threads) < 1 or self.prefetch < 0:
            raise ValueError(
                f"loader: batch_size, block_examples and threads must be at least 1, prefetch at least 0, not {self}"
            )


@dataclasses.dataclass(frozen=True)
class Position:
    """The position in the endless stream of rows at which the next batch begins."""

    block: int = 0
    row: int = 0


@dataclasses.dataclass(frozen=True)
class ProcessShard:
    """The rows of every global batch that this process fills: the listed shards (ascending) of `count` equal shards."""

    shards: tuple[int, ...] = (0,)
    count: int = 1

    def of(self, batch_size: int) -> np.ndarray:
        """Returns the indices of the process's rows in a batch of `batch_size` rows, ascending: int64 [n].

        Raises:
          ValueError: the batch cannot be divided into equal shards.
        """
        if batch_size % self.count:
            raise ValueError(f"a batch of {batch_size} rows cannot be split into {self.count} equal shards")
        return np.arange(batch_size).reshape(self.count, -1)[list(self.shards)].ravel()


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingBatch:
    """A process's shard of a global batch, and the position in the stream after it.

    Attributes:
      arrays: keyed by the field names of `unimp_jax.batch.Batch`.
      next_position: what to save in order to continue with the next batch.
      num_examples, num_images: counts over the whole global batch.
      fill: the fraction of the global batch's token slots that hold a token.
      left_out: for the blocks that begin in this batch, the number of examples that could not be written as drawn, by
        what was done instead.
    """

    arrays: dict[str, np.ndarray]
    next_position: Position
    num_examples: int
    num_images: int
    fill: float
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Examples planned together.

    Attributes:
      layouts: the examples, which are not written yet.
      rows: the indices of the examples in each row.
      left_out: the number of examples that could not be written as drawn, by what was done instead.
    """

    layouts: Layouts
    rows: list[list[int]]
    left_out: collections.Counter[str]


Planned = tuple[list[tuple[Layouts, list[int]]], Position, collections.Counter[str]]
"""The rows of a global batch, each as layouts of a block and the examples of the row among them, the position after it,
and the `left_out` counts of the blocks that begin in it."""


def check_planner(config: LoaderConfig) -> None:
    """Checks that the configuration asks for the current block planner.

    Raises:
      ValueError: the configuration is from a run whose blocks were planned by an earlier version.
    """
    if config.planner != PLANNER:
        raise ValueError(
            f"loader.planner {config.planner}: this version plans blocks with planner {PLANNER} only; continue "
            "with the version of this project that started the run, or train in another folder"
        )


class BlockPlanner:
    """Plans blocks: which questions are asked, how large their examples are, and which examples share a row."""

    def __init__(self, queries: TrainingQueries, writer: PromptWriter, config: LoaderConfig, seed: int):
        check_planner(config)
        self._queries, self._writer, self._config, self._seed = queries, writer, config, seed

    def __call__(self, block: int) -> Block:
        size = self._config.block_examples
        queries, left_out = self._queries.draw(block, size)
        layouts = self._writer.lay_out(queries)
        if self._config.packed:
            rows = pack(layouts.sizes, self._writer.row_shape)
        else:
            rows = [[example] for example in range(size)]
        order = np.random.default_rng((self._seed, 2, block)).permutation(len(rows))
        left_out += collections.Counter({SHORTENED: int(layouts.shortened.sum())})
        return Block(layouts, [rows[row] for row in order], left_out)


class _PlannedBatches(grain.IterDataset[Planned]):
    """The planned rows of each global batch, from a start position on."""

    def __init__(self, plan: BlockPlanner, batch_size: int, start: Position):
        super().__init__()
        self._plan, self._batch_size, self._start = plan, batch_size, start

    def __iter__(self) -> grain.DatasetIterator[Planned]:
        return _PlannedIterator(self._plan, self._batch_size, self._start)


class _PlannedIterator(grain.DatasetIterator[Planned]):
    def __init__(self, plan: BlockPlanner, batch_size: int, start: Position):
        super().__init__()
        self._plan, self._batch_size, self._position = plan, batch_size, start
        self._block: Block | None = None

    def __next__(self) -> Planned:
        rows: list[tuple[Layouts, list[int]]] = []
        left_out: collections.Counter[str] = collections.Counter()
        while len(rows) < self._batch_size:
            if self._block is None:
                self._block = self._plan(self._position.block)
            if not self._position.row:
                left_out += self._block.left_out
            taken = self._block.rows[self._position.row : self._position.row + self._batch_size - len(rows)]
            rows += [(self._block.layouts, examples) for examples in taken]
            self._position = Position(self._position.block, self._position.row + len(taken))
            if self._position.row >= len(self._block.rows):
                self._position, self._block = Position(self._position.block + 1), None
        return rows, self._position, left_out

    def get_state(self) -> dict[str, int]:
        return dataclasses.asdict(self._position)

    def set_state(self, state: dict[str, int]) -> None:
        self._position, self._block = Position(**state), None


def fill_batch(
    rows: Sequence[Sequence[Example]], row_shape: RowShape, images: Images | None, pool: concurrent.futures.Executor
) -> dict[str, np.ndarray]:
    """Returns the arrays of `unimp_jax.batch.Batch` for these rows.

    If `images` is None, the `images` array holds the indices of the items shown instead, int32 [B, N], 0 in empty
    slots.
    """
    filled = [fill_row(row, row_shape) for row in rows]
    arrays = {name: np.stack([row[name] for row in filled]) for name in filled[0]}
    shown = arrays.pop("image_items")
    if images is None:
        return arrays | {"images": np.maximum(shown, 0)}
    pixels = np.zeros((*shown.shape, *images.shape), images.dtype)

    def show(slot: np.ndarray) -> None:
        pixels[tuple(slot)] = images[int(shown[tuple(slot)])]

    list(pool.map(show, np.argwhere(shown >= 0)))
    return arrays | {"images": pixels}


def training_batches(
    queries: TrainingQueries,
    writer: PromptWriter,
    images: Images,
    config: LoaderConfig,
    *,
    seed: int,
    start: Position = Position(),
    shard: ProcessShard = ProcessShard(),
) -> grain.DatasetIterator[TrainingBatch]:
    """Returns an endless iterator over this process's shard of every global batch, from `start` on."""
    own = shard.of(config.batch_size)
    pool = concurrent.futures.ThreadPoolExecutor(config.threads, thread_name_prefix="decode")

    def fill(planned: Planned) -> TrainingBatch:
        rows, next_position, left_out = planned
        written = [[writer.write_planned(rows[row][0], one) for one in rows[row][1]] for row in own]
        sizes = np.concatenate([layouts.sizes[examples] for layouts, examples in rows])
        tokens, shown, _ = sizes.sum(axis=0).tolist()
        return TrainingBatch(
            arrays=fill_batch(written, writer.row_shape, images, pool),
            next_position=next_position,
            num_examples=len(sizes),
            num_images=shown,
            fill=tokens / (len(rows) * writer.row_shape.tokens),
            left_out=dict(left_out),
        )

    batches = _PlannedBatches(BlockPlanner(queries, writer, config, seed), config.batch_size, start).map(fill)
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=config.prefetch))


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionBatch:
    """Prompts to answer.

    Attributes:
      arrays: keyed by the field names of `unimp_jax.batch.Batch`; every answer slot is the last position of one prompt.
      prompts: int32 [B, A], the index of the prompt that each answer slot belongs to, -1 for an empty slot.
    """

    arrays: dict[str, np.ndarray]
    prompts: np.ndarray


def question_batches(
    prompts: Sequence[Example],
    row_shape: RowShape,
    images: Images | None,
    config: LoaderConfig,
    shard: ProcessShard = ProcessShard(),
    *,
    tight: bool = False,
) -> grain.DatasetIterator[QuestionBatch]:
    """Returns batches of all prompts, packed, each asked once; the last batch is completed with empty rows.

    Args:
      row_shape: its `answers` limits the number of prompts that share a row.
      images: None to pass only the indices of the items shown (see `fill_batch`).
      tight: whether to use rows of the length that leaves the fewest tokens empty, with as many images and answer slots
        as the fullest row needs; a batch then has more rows if they are shorter than `row_shape`.
    """
    sizes = np.array([prompt.size for prompt in prompts]).reshape(-1, 3)
    rows_a_batch = config.batch_size
    if tight and prompts:
        shortened = dataclasses.replace(row_shape, tokens=best_length(sizes, row_shape))
        rows = pack(sizes, shortened)
        rows_a_batch *= min(row_shape.tokens // shortened.tokens, -(-len(rows) // config.batch_size))
        most = np.array([sizes[row, 1:].sum(axis=0) for row in rows]).max(axis=0).tolist()
        row_shape = dataclasses.replace(shortened, images=most[0], answers=most[1])
    else:
        rows = pack(sizes, row_shape)
    own = shard.of(rows_a_batch)
    rows += [[] for _ in range(-len(rows) % rows_a_batch)]
    pool = concurrent.futures.ThreadPoolExecutor(config.threads, thread_name_prefix="decode")

    def fill(planned: Sequence[list[int]]) -> QuestionBatch:
        asked = np.full((len(planned), row_shape.answers), -1, np.int32)
        for row, numbers in enumerate(planned):
            asked[row, : len(numbers)] = numbers
        examples = [[prompts[number] for number in numbers] for numbers in planned]
        return QuestionBatch(fill_batch(examples, row_shape, images, pool), asked)

    starts = range(0, len(rows), rows_a_batch)
    batches = grain.MapDataset.source([[rows[start + row] for row in own] for start in starts])
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.prefetch)
    return iter(batches.map(fill).to_iter_dataset(options))
