"""What prompts show of a history, and what of them is learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from data_pipelines.tasks.registry import check_names, default_loss_weights


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """How much of a history a prompt shows, and what of it is a target."""

    full_items: int = 5
    """So many of the latest items are shown whole, with image and attributes."""
    id_items: int = 0
    """Up to so many items before those are shown as bare ids, each a target of the one before it."""
    ask_whole: bool = True
    """Outside of training, the latest items are shown whole; else all are bare ids, as `queries.whole_rate` teaches."""
    history_targets: Literal["reconstruct", "next_item", "both", "none"] = "reconstruct"
    """Targets in the items shown whole: their own id (as the paper), what comes after its first token and then the next
    item (asked along the id), both, or nothing."""
    history_weight: float = 1.0
    """What a target in the history counts in the loss, next to one of the answer asked for."""
    rated_history: bool = True
    """In rating prediction, each id of the history is followed by the rating it was given, also a target."""
    ask_every: int = 0
    """Recommendation and search are asked along the bare ids too, before every so many-th (the first one depends on the
    user and the position), and answered by the item that came; 0: only at the end."""
    recommendation_at: Literal["question", "last_id"] = "question"
    """Where a recommendation is answered: after its question (as the paper), or right after the last id of the history,
    without a question, as `history_targets` next_item and both teach at every id before it."""
    rating_at: Literal["question", "last_id"] = "question"
    """Where a rating is answered: after its question, which shows the item (as the paper), or right after the item's
    id, which follows those of the history, as `rated_history` teaches at every id before it."""
    history_ids: bool = True
    """Items shown whole are named by their ids. Without, a history consists of images and words alone: there are no
    bare ids, and no targets."""
    questions_show_ids: bool = False
    """Items asked about, or offered to select from, are named by their ids as well (the paper does not)."""
    explanation_words: int = 64
    """Explanations are cut to so many words."""
    images: bool = True
    """Whether images are shown."""
    text: bool = True
    """Whether attributes are shown."""
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=default_loss_weights)
    """What an answer token of each task counts in the loss; a task that is not named counts what it does by default."""

    def __post_init__(self) -> None:
        check_names("tasks.loss_weights", self.loss_weights)
        object.__setattr__(self, "loss_weights", default_loss_weights() | dict(self.loss_weights))
        if self.history_weight <= 0:
            raise ValueError(f"tasks.history_weight {self.history_weight} must be above 0; see tasks.history_targets")
        if not self.history_ids and (self.id_items or self.history_targets != "none"):
            raise ValueError(
                "tasks.history_ids False leaves no ids to show bare or to predict: set tasks.id_items 0 and "
                "tasks.history_targets none as well"
            )
        if not self.history_ids and "last_id" in (self.recommendation_at, self.rating_at):
            raise ValueError(
                "tasks.history_ids False leaves no last id: set tasks.recommendation_at and tasks.rating_at question"
            )
