"""Configuration of the part of a history that prompts show and of the targets in it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from data_pipelines.tasks.registry import check_names, default_loss_weights


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """How much of a history a prompt shows, and which parts of it are targets."""

    full_items: int = 5
    """The number of latest items that are shown whole, with image and attributes."""
    id_items: int = 0
    """The maximum number of items before those that are shown as bare ids, each predicted at the one before it."""
    ask_whole: bool = True
    """Outside of training, whether the latest items are shown whole; if not, all are bare ids, as trained by
    `queries.whole_rate`."""
    history_targets: Literal["reconstruct", "next_item", "both", "none"] = "reconstruct"
    """Targets in the items shown whole: their own id (as in the paper), the id after its first token followed by the
    next item (predicted from the tokens of the id), both, or none."""
    history_weight: float = 1.0
    """The loss weight of a target in the history, relative to one in the answer."""
    rated_history: bool = True
    """In rating prediction, whether each id of the history is followed by its rating, which is also a target."""
    ask_every: int = 0
    """Recommendation and search are also asked before every n-th bare id, which is the answer (where counting starts
    depends on the user and the position); 0: only at the end."""
    recommendation_at: Literal["question", "last_id"] = "question"
    """Where a recommendation is answered: after its question (as in the paper), or right after the last id of the
    history, without a question, as `history_targets` next_item and both train at every earlier id."""
    rating_at: Literal["question", "last_id"] = "question"
    """Where a rating is answered: after its question, which shows the item (as in the paper), or right after the item's
    id, which follows those of the history, as `rated_history` trains at every earlier id."""
    history_ids: bool = True
    """Whether items shown whole are named by their ids. If not, a history consists of images and words only, without
    bare ids and targets."""
    questions_show_ids: bool = False
    """Whether items that are asked about or offered for selection are also named by their ids (not so in the paper)."""
    explanation_words: int = 64
    """Explanations are cut to this number of words."""
    images: bool = True
    """Whether images are shown."""
    text: bool = True
    """Whether attributes are shown."""
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=default_loss_weights)
    """Loss weight of an answer token of each task; tasks that are not listed have their default weight."""

    def __post_init__(self) -> None:
        check_names("tasks.loss_weights", self.loss_weights)
        object.__setattr__(self, "loss_weights", default_loss_weights() | dict(self.loss_weights))
        for name, weight in self.loss_weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"tasks.loss_weights.{name} {weight} must be 0 or more")
        if min(self.full_items, self.id_items, self.ask_every, self.explanation_words) < 0:
            raise ValueError(f"tasks: full_items, id_items, ask_every, explanation_words must be 0 or more, not {self}")
        if not 0 < self.history_weight < math.inf:
            raise ValueError(
                f"tasks.history_weight {self.history_weight} must be above 0; to leave the history out of the "
                "loss, set tasks.history_targets none"
            )
        if not self.history_ids and (self.id_items or self.history_targets != "none"):
            raise ValueError(
                "tasks.history_ids False leaves no bare ids and no ids to predict; also set tasks.id_items 0 and "
                "tasks.history_targets none"
            )
        if not self.history_ids and "last_id" in (self.recommendation_at, self.rating_at):
            raise ValueError(
                "tasks.history_ids False leaves no last id to answer at; set tasks.recommendation_at and "
                "tasks.rating_at to question"
            )
