"""Recommendation: predict the next item."""

from data_pipelines.tasks.base import Task


class Recommendation(Task):
    """The answer is the id of the next item. Every interaction can be asked about."""

    name = "recommendation"
    question = "What is the next item recommended to the user?"
    loss_weight = 2.0
    asked_along = True
    begins_text = True
    continues_history = "recommendation_at"
