"""MovieLens 1M, half an hour on one core."""

from data_pipelines.content import ContentConfig
from data_pipelines.images import ImageConfig
from data_pipelines.loader import LoaderConfig
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from data_pipelines.tasks.queries import QueryConfig
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import DataConfig, ExperimentConfig, TrainingConfig
from experiments.presets.optimizers import FROM_NOTHING
from unimp_jax.model import presets
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.training.loop import LoopConfig

EXPERIMENT = ExperimentConfig(
    model=presets.small,
    data=DataConfig("movielens_1m"),
    vocabulary=VocabularyConfig(
        trained_size=512, attributes=("Genres", "Title"), attribute_words=4, category_items=1
    ),
    content=ContentConfig(attributes=("Category", "Year"), popularity=True, co_occurrence=64),
    tasks=TaskConfig(
        full_items=1, id_items=120, ask_whole=False, history_targets="next_item", history_weight=0.5, ask_every=8,
        recommendation_at="last_id", loss_weights={"search": 2.0},
    ),
    queries=QueryConfig(
        mix={"recommendation": 4.0, "search": 2.0, "rating": 0.0, "selection": 0.1}, whole_rate=0.05, window="latest",
        window_items=120,
    ),
    row_shape=RowShape(tokens=256, images=3, answers=224),
    images=ImageConfig(fit="stretch"),
    loader=LoaderConfig(batch_size=16, block_examples=4096),
    optimizer=FROM_NOTHING,
    objective=ObjectiveConfig(gamma=0.0),
    training=TrainingConfig(trains=presets.small.parts),
    loop=LoopConfig(steps=2800, log_every=25, validate_every=400, save_every=400),
)  # fmt: skip
