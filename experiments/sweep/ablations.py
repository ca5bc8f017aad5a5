"""The named ablations: the changes that each makes to a base configuration.

All cells of a sweep train for the same number of steps with the same number of rows and, except for the ablation with
equal compute, of token slots. An ablation with shorter prompts therefore sees more examples, and one that trains in
stages divides the steps of the base among them.
"""

import dataclasses
from collections.abc import Callable, Sequence

from data_pipelines.tasks import TASKS
from experiments.config import ExperimentConfig, flat, to_json
from experiments.step import model_flops
from experiments.sweep.changes import Changes, changed
from unimp_jax.model import PARTS

ChangesOf = Callable[[ExperimentConfig], Changes]


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A named change of a base configuration.

    Attributes:
      name: its name for `--only`, and the prefix of the names of its cells.
      changes: the changed fields, or a function that computes them from the base and may raise ValueError.
      needs_images: whether it is only meaningful for a base that shows images.
      task: the task that it is about and that the base must train for, if there is one.
      stages: maps the tasks of the base to the stages trained before, each initialised from the one before it. The
        function may raise ValueError.
      needs_ids: whether items get semantic ids, which are made with the model of the base's cell of the same seed.
    """

    name: str
    description: str
    changes: Changes | ChangesOf
    _: dataclasses.KW_ONLY
    needs_images: bool = False
    task: str | None = None
    stages: Callable[[Sequence[str]], list["Ablation"]] = lambda tasks: []
    needs_ids: bool = False

    def apply(self, base: ExperimentConfig) -> ExperimentConfig:
        """Returns the base with the changes; ValueError if the base does not allow them."""
        return changed(base, self.changes(base) if callable(self.changes) else self.changes)


HISTORY_TARGETS, RECOMMENDATION_AT, ATTEND = "tasks.history_targets", "tasks.recommendation_at", "model.gated.attend"
NO_IMAGES: Changes = {"training.cache_features": False, "tasks.images": False, "row_shape.images": 0}
NO_CONTENT: Changes = {
    "content.attributes": [],
    "content.popularity": False,
    "content.rating": False,
    "content.co_occurrence": 0,
    "content.vectors": [],
    "model.decoder.free_row_dropout": 0.0,
}
ROW_STEP = 16
"""Step in tokens by which the length of rows is varied."""
IDS_ONLY: Changes = {**NO_IMAGES, "tasks.text": False, "tasks.questions_show_ids": True}


def text_only(base: ExperimentConfig) -> Changes:
    """Histories have as many items as those of the base, as far as their text fits into the row."""
    return {
        **NO_IMAGES,
        "tasks.id_items": 0,
        "tasks.full_items": base.tasks.full_items + base.tasks.id_items,
        HISTORY_TARGETS: "none",
        "tasks.history_ids": False,
        "tasks.questions_show_ids": False,
        "tasks.ask_every": 0,
        RECOMMENDATION_AT: "question",
        "tasks.rating_at": "question",
        "tasks.ask_whole": True,
        "queries.whole_rate": 1.0,
    }


def history(items: int) -> ChangesOf:
    """Shows at most `items` items, with as many of them in full as in the base; the older ones are bare ids."""

    def changes(base: ExperimentConfig) -> Changes:
        full = min(base.tasks.full_items, items)
        return {"tasks.full_items": full, "tasks.id_items": items - full}

    return changes


def only(task: str) -> Changes:
    """Trains for one task only."""
    return {f"queries.mix.{one}": float(one == task) for one in TASKS}


def half(tasks: Sequence[str]) -> list[Ablation]:
    """Returns the first stage of `finetuned_*`: all tasks."""
    return [Ablation("half_of_all_tasks", "the first half of finetuned_*: all tasks", {})]


def one_task_a_stage(tasks: Sequence[str]) -> list[Ablation]:
    """Returns the stages of the curriculum, one task each."""
    if len(tasks) < 2:
        raise ValueError(f"the base trains only for {tasks[0]}")
    return [
        Ablation(f"curriculum_{number}_{task}", f"stage {number} of curriculum: {task}", only(task))
        for number, task in enumerate(tasks, start=1)
    ]


def trained(base: ExperimentConfig, also: Sequence[str] = (), but: Sequence[str] = ()) -> Changes:
    """Trains some parts also, or some not, beside those that the base trains."""
    parts = {*base.training.trains, *also} - {*but}
    return {"training.trains": [part for part in PARTS if part in parts]}


def interleaved(base: ExperimentConfig) -> Changes:
    """Puts the image latents among the tokens; rows are as long as those of the base."""
    return {
        "model.fusion": "interleaved",
        "model.projector.kind": "resampler",
        **trained(base, also=["projector"], but=["resampler", "gated"]),
    }


def interleaved_same_compute(base: ExperimentConfig) -> Changes:
    """Like `interleaved`, with rows so long that a step takes about as many FLOPs as with cross-attention."""
    changes = dict(interleaved(base))

    def longer(tokens: int) -> Changes:
        """Lengthens rows, with proportionally more room for images and answers."""
        rooms = {"images": base.row_shape.images, "answers": base.row_shape.answers}
        more = {name: -(-room * tokens // base.row_shape.tokens) for name, room in rooms.items()}
        return changes | {f"row_shape.{name}": room for name, room in {"tokens": tokens, **more}.items()}

    lengths = range(base.row_shape.tokens, 8 * base.row_shape.tokens, ROW_STEP)
    work = model_flops(base)
    return longer(min(lengths, key=lambda tokens: abs(model_flops(changed(base, longer(tokens))) - work)))


def image_tokens(count: int) -> ChangesOf:
    """Sets the number of latents per image, which text attends to or which are among its tokens."""

    def changes(base: ExperimentConfig) -> Changes:
        resampled: Changes = {"model.projector.kind": "resampler"} if base.model.interleaved else {}
        return {"model.resampler.latents": count, **resampled}

    return changes


def scaled(factor: float, *names: str) -> ChangesOf:
    """Multiplies sizes of the model. A size that is None follows from the others and stays None."""

    def changes(base: ExperimentConfig) -> Changes:
        sizes = flat(to_json(base))
        multiplied = {name: sizes[name] * factor for name in names if sizes[name] is not None}
        for name, size in multiplied.items():
            if size != int(size):
                raise ValueError(f"{name} {sizes[name]} cannot be multiplied by {factor}")
        return {name: int(size) for name, size in multiplied.items()}

    return changes


def width(factor: float) -> ChangesOf:
    """Scales the decoder's width; the width of a head and that of the input of the gated blocks do not change."""
    decoder = [f"model.decoder.{name}" for name in ("width", "heads", "kv_heads", "mlp_width")]
    return scaled(factor, *decoder, "model.gated.heads", "model.gated.mlp_width")


ALL = [
    Ablation("base", "the base itself", {}),
    Ablation("no_images", "no images are shown or encoded", NO_IMAGES, needs_images=True),
    Ablation("no_text", "no attributes are shown", {"tasks.text": False}),
    Ablation("ids_only", "neither images nor attributes, only ids, in the questions too", IDS_ONLY),
    Ablation("text_only", "only attributes: no images, and ids occur only as answers", text_only),
    Ablation("no_content", "item embeddings are free rows without content", NO_CONTENT),
    *(
        Ablation(
            f"no_{part}_content",
            f"item content without {part}",
            {f"content.{part}": NO_CONTENT[f"content.{part}"]},
        )
        for part in ("attributes", "popularity", "rating", "co_occurrence", "vectors")
    ),
    Ablation(
        "no_row_dropout",
        "the free rows of items are never dropped in training",
        {"model.decoder.free_row_dropout": 0.0},
    ),
    Ablation("asked_once", "a question after each history, none within it", {"tasks.ask_every": 0}),
    Ablation("no_reconstruction", "no item of the history is a target", {HISTORY_TARGETS: "none"}),
    Ablation("reconstruction", "items shown in full have their own ids as targets", {HISTORY_TARGETS: "reconstruct"}),
    Ablation("no_own_ids", "items shown in full have the next item as their target", {HISTORY_TARGETS: "next_item"}),
    Ablation("after_question", "recommendations are answered after a question", {RECOMMENDATION_AT: "question"}),
    Ablation(
        "at_last_id", "recommendations are answered at the last id of the history", {RECOMMENDATION_AT: "last_id"}
    ),
    Ablation("no_focal", "plain cross entropy: gamma 0", {"objective.gamma": 0.0}),
    *(
        Ablation(f"gamma_{gamma:g}", f"focal cross entropy with gamma {gamma:g}", {"objective.gamma": gamma})
        for gamma in (0.5, 1.0, 2.0, 3.0, 5.0)
    ),
    *(Ablation(f"{task}_only", f"trained for {task} only", only(task), task=task) for task in TASKS),
    *(
        Ablation(
            f"finetuned_{task}", f"half of the steps on all tasks, half on {task}", only(task), task=task, stages=half
        )
        for task in TASKS
    ),
    Ablation(
        "curriculum", "one task after another, then all, with equal numbers of steps", {}, stages=one_task_a_stage
    ),
    *(
        Ablation(
            f"cross_every_{n}", f"a gated block per {n} decoder layers", {"model.gated.every": n}, needs_images=True
        )
        for n in (1, 2, 4)
    ),
    Ablation("last_image", "a token sees the latest image", {ATTEND: "last_image"}, needs_images=True),
    Ablation("all_images", "a token sees all earlier images", {ATTEND: "all_earlier_images"}, needs_images=True),
    Ablation("interleaved", "images are tokens among the text tokens", interleaved, needs_images=True),
    Ablation(
        "interleaved_same_compute",
        "images are tokens among the text tokens, in longer rows with the same compute",
        interleaved_same_compute,
        needs_images=True,
    ),
    *(Ablation(f"image_tokens_{n}", f"{n} latents per image", image_tokens(n), needs_images=True) for n in (1, 4, 16)),
    Ablation(
        "frozen_tower", "the vision tower does not train", lambda base: trained(base, but=["vision"]), needs_images=True
    ),
    Ablation(
        "trained_tower", "the vision tower trains too", lambda base: trained(base, also=["vision"]), needs_images=True
    ),
    Ablation("one_token_ids", "each item has its own token", {"vocabulary.item_codes": None}),
    Ablation("semantic_ids", "items have semantic ids, made by the model of the base", {}, needs_ids=True),
    *(Ablation(f"history_{n}", f"histories of at most {n} items", history(n)) for n in (1, 2, 5, 10, 20, 50, 100)),
    Ablation("packed", "several examples per row", {"loader.packed": True}),
    Ablation("padded", "one example per row, and the same number of rows", {"loader.packed": False}),
    Ablation("width_half", "a decoder half as wide", width(0.5)),
    Ablation("width_double", "a decoder twice as wide", width(2)),
    Ablation("layers_half", "a decoder with half as many layers", scaled(0.5, "model.decoder.layers")),
    Ablation("layers_double", "a decoder with twice as many layers", scaled(2, "model.decoder.layers")),
]
ABLATIONS: dict[str, Ablation] = {one.name: one for one in ALL}


def list_ablations() -> str:
    """Returns names and descriptions, one ablation per line."""
    width = max(map(len, ABLATIONS))
    return "\n".join(f"{one.name:{width}}  {one.description}" for one in ALL)
