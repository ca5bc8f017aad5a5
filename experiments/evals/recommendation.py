"""The recommendation task: ranks the catalogue by what comes next, beside popularity, Markov chains and SASRec."""

import dataclasses

import numpy as np

from experiments.evals.base import OURS, Answered, Setting
from experiments.evals.cold import cold_tables
from experiments.evals.ranking import RankingEval, rank_catalogue, rank_metrics
from experiments.results import Sample
from unimp_jax.evaluation.ranking import Ranked

SAMPLED_HISTORY = 10
WHOLE = f"{OURS}, items shown whole"


class RecommendationEval(RankingEval):
    """The recommendation task: which item comes next?"""

    task = "recommendation"
    asks = "What comes next?"

    def evaluate(self, setting: Setting) -> Answered:
        outcome, ranked = self.rank(setting)
        tasks = setting.data.config.tasks
        if tasks.full_items and not tasks.ask_whole:  # the paper's format, beside that of bare ids
            shown = rank_catalogue(
                setting.data.showing_whole(), setting.predictor, setting.questions.queries, beams=setting.config.beams
            )
            ours = {OURS: outcome.metrics[OURS], WHOLE: rank_metrics(shown.unfiltered, shown.filtered)}
            ranks = {f"{WHOLE}: rank, unfiltered": shown.unfiltered, f"{WHOLE}: rank, filtered": shown.filtered}
            outcome = dataclasses.replace(outcome, metrics=ours | outcome.metrics, answers=outcome.answers | ranks)
        return Answered({self.task: outcome} | cold_tables(setting), samples(setting, ranked))


def samples(setting: Setting, ranked: Ranked) -> tuple[Sample, ...]:
    """Returns some users, drawn by the seed: half of them, if possible, with the target among the ten best items."""
    corpus, queries, config = setting.data.corpus, setting.questions.queries, setting.config
    order = np.random.default_rng(config.seed).permutation(len(queries))
    found = [n for n in order.tolist() if ranked.filtered[n] <= 10][: config.samples // 2]
    missed = [n for n in order.tolist() if ranked.filtered[n] > 10][: config.samples - len(found)]
    return tuple(
        Sample(
            user=corpus.user_ids[queries[n].user],
            history=tuple(corpus.history(queries[n].user, queries[n].position)[-SAMPLED_HISTORY:].tolist()),
            target=queries[n].right[0],
            rank=float(ranked.filtered[n]),
            top=tuple(item for item in ranked.top[n].tolist() if item >= 0),
        )
        for n in found + missed
    )
