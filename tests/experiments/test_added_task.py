"""A task of one's own: two objects, and training, evaluation, `generate` and the report know it; nothing is edited."""

import collections
import dataclasses

import numpy as np
import pytest

from data_pipelines.content import ContentConfig
from data_pipelines.tasks import TASKS, Part, Task, register
from data_pipelines.tasks.queries import TrainingQueries
from experiments.data import ExperimentData
from experiments.evals import EVALS, TaskEval
from experiments.evals import register as register_eval
from experiments.evals.base import OURS, Answered, Outcome, next_token, question_columns
from experiments.evals.config import EvaluationConfig, GenerateConfig
from experiments.evaluate import evaluate_run
from experiments.generate import generate
from experiments.report import write_report
from experiments.train import train_run
from tests.experiments.tiny_run import QUICK, SHALLOW, experiment, prepare_source


class NextCategory(Task):
    """Which category does the next item have? The answer is the first token of its first category."""

    name = "category"
    question = "Which category comes next?"

    def missing(self, data, events):
        has_categories = data.corpus.has_categories[data.corpus.items[events]]
        return np.where(has_categories, "", "whose answer has no category")

    def answer(self, texts, asked):
        return [Part(texts.categories, asked.right[:, 0], at_most=1)]

    def answer_tokens(self, vocabulary):
        return None

    def open_answer(self, vocabulary):
        return np.array([vocabulary.eos], np.int32)


class NextCategoryEval(TaskEval):
    """Accuracy, beside the category that most items have."""

    task = "category"

    def names(self, data):
        """By the token that begins it, a category."""
        texts, corpus = data.writer.texts, data.corpus
        return {
            int(texts.categories[item][0]): categories[0]
            for item, categories in enumerate(corpus.categories)
            if categories
        }

    def evaluate(self, setting):
        data, queries = setting.data, setting.questions.queries
        names = self.names(data)
        tokens = np.array(sorted(names))
        right = np.array([int(data.writer.texts.categories[query.right[0]][0]) for query in queries])
        chosen = tokens[next_token(data, setting.predictor, queries, tokens).argmax(axis=1)]
        (common, _), *_ = collections.Counter(right.tolist()).most_common(1)
        answers = {OURS: chosen, "most common": np.full(len(queries), common)}
        metrics = {name: {"accuracy": (row == right).astype(float)} for name, row in answers.items()}
        columns = {f"{name}: category": [names[token] for token in row.tolist()] for name, row in answers.items()}
        note = f"Which category comes next?{setting.questions.note}"
        return Answered({self.task: Outcome(note, metrics, question_columns(data.corpus, queries) | columns)})

    def answer(self, data, predictor, query, config, opened):
        names = self.names(data)
        tokens = np.array(sorted(names))
        (shares,) = next_token(data, predictor, [query], tokens)
        return {"category": names[int(tokens[shares.argmax()])], "probability": float(shares.max())}

    def show(self, answer):
        return [f"category     {answer['category']}", f"probability  {answer['probability']:.2%}"]


@pytest.fixture
def category():
    """Known while a test lasts."""
    register(NextCategory())
    register_eval(NextCategoryEval())
    yield
    for registry in (TASKS, EVALS):
        del registry["category"]


def test_a_task_is_added_by_two_objects(category, tmp_path):
    data = prepare_source(tmp_path / "prepared")
    # with content of items and dropped rows, which no other fast test trains
    model = dataclasses.replace(SHALLOW, decoder=dataclasses.replace(SHALLOW.decoder, free_row_dropout=0.3))
    content = ContentConfig(("Category",), 1, popularity=True)
    config = experiment(data, steps=4, **QUICK | {"model": model, "content": content})
    mix = {**config.queries.mix, "category": 2.0}
    config = dataclasses.replace(config, queries=dataclasses.replace(config.queries, mix=mix))
    queries = TrainingQueries(ExperimentData.load(config).corpus, config.queries, seed=0)
    drawn = collections.Counter(query.task for query in queries.draw(0, 600)[0])
    assert {"category", "recommendation", "search", "rating", "selection"} == set(drawn)
    assert abs(drawn["category"] / 600 - 2 / 6) < 0.08  # four standard deviations
    train_run(config, tmp_path / "run")
    evaluation = evaluate_run(tmp_path / "run", EvaluationConfig(tasks=("category", "selection"), rivals=()))
    tables = {table.task: table for table in evaluation.tables}
    assert list(tables) == ["selection", "category"]
    assert tables["category"].rows[0].model == OURS
    assert 0 <= tables["category"].rows[0].metrics["accuracy"].mean <= 1
    answer = generate(tmp_path / "run", GenerateConfig(task="category", user="3"), read=lambda: "")
    assert "category     " in answer
    page = write_report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert "Which category comes next?" in page
    assert "most common" in page


def test_two_tasks_of_one_name_are_refused(category):
    class Other(NextCategory):
        pass

    with pytest.raises(ValueError, match="there is already a task 'category'"):
        register(Other())
    with pytest.raises(ValueError, match="there is no task 'colour'; there are recommendation, search"):
        register_eval(type("ColourEval", (NextCategoryEval,), {"task": "colour"})())
