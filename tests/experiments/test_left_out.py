"""Parts that are empty or tiny: what cannot be asked or compared is left out and reported, and nothing ends empty."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.corpus import TRAIN, Corpus, build_corpus
from data_pipelines.errors import DataError
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.tasks.prompt import prompt_texts
from data_pipelines.vocabulary import VocabularyConfig, build_vocabulary
from experiments import evaluate
from experiments.baselines.explanations import NearestExplanation
from experiments.baselines.markov import choose_markov
from experiments.baselines.query_match import QueryMatch, WordMatches
from experiments.baselines.ranker import evaluate_ranker
from experiments.baselines.ratings import choose_factorisation
from experiments.baselines.sasrec import SASRecConfig
from experiments.baselines.sasrec_model import SASRecModelConfig
from experiments.data import ExperimentData, PreparedSource
from experiments.evals import rating
from experiments.evals.base import OURS, Outcome
from experiments.evals.config import EvaluationConfig
from experiments.evals.queries import EvaluationQueries, check_queries, evaluation_queries
from experiments.evals.ranking import rank_metrics
from experiments.evals.rating import explain, rate_held_out
from experiments.evaluate import evaluate_run, fit_rankers, save_answers, show, tabulate
from experiments.export import ExportConfig, card
from experiments.report import write_report
from experiments.results import Evaluation, Row, TaskTable, load_evaluation, save_evaluation
from experiments.run import Facts
from tests.experiments.report_runs import begin_run, with_seed
from tests.experiments.tiny_run import experiment
from unimp_jax.decoding import BeamConfig
from unimp_jax.evaluation.bootstrap import Interval, interval
from unimp_jax.evaluation.repeats import over_seeds

SHORT = SASRecConfig(model=SASRecModelConfig(max_length=8, width=16, layers=1), steps=2, batch_size=2, validations=1)


def corpus_of(*users: list[tuple], items: int = 6) -> Corpus:
    """Of each user, (item, split, rating, text) in the order of time."""
    made = [
        User(
            f"u{n}", tuple(Interaction(f"i{i}", split=split, rating=stars, text=text) for i, split, stars, text in met)
        )
        for n, met in enumerate(users)
    ]
    return build_corpus([Item(f"i{n}", f"Thing {n}", categories=(f"kind {n % 2}",)) for n in range(items)], made)


def met(*splits: str, rating: float = 4.0, text: str = "", first: int = 0) -> list[tuple]:
    return [((first + n) % 6, split, rating, text) for n, split in enumerate(splits)]


def data_of(corpus: Corpus) -> ExperimentData:
    vocabulary = build_vocabulary(corpus, VocabularyConfig(trained_size=320, round_to=8), prompt_texts())
    return ExperimentData(experiment(Path()), records_of(corpus), vocabulary)


def records_of(corpus: Corpus) -> PreparedSource:
    return PreparedSource(corpus, np.zeros(corpus.num_items, bool), lambda item: b"")


VALIDATED = [met("train", "train", "validation", first=n) for n in range(4)]


@pytest.fixture(scope="module")
def untested() -> ExperimentData:
    """Four users, of whom no test question is held out."""
    return data_of(corpus_of(*VALIDATED))


def test_a_split_without_a_part_is_refused_by_the_part_that_has_questions(untested, monkeypatch):
    """Before any weight is read."""
    monkeypatch.setattr(evaluate, "open_data", lambda folder, mesh: untested)
    monkeypatch.setattr(evaluate, "load_model", lambda *_: pytest.fail("weights are read"))
    with pytest.raises(DataError, match=r"^movielens_small: no test questions; --split validation has 4$"):
        evaluate_run(Path(), EvaluationConfig())
    with pytest.raises(DataError, match=r"was not trained to generate images \(queries\.mix\.image\)"):
        evaluate_run(Path(), EvaluationConfig(tasks=("image",)))
    nobody = data_of(corpus_of(met("train", "train")))
    with pytest.raises(DataError, match=r"^movielens_small: no validation questions$"):
        check_queries(nobody, "validation", {"search": evaluation_queries(nobody, "validation", "search")})


def test_what_would_end_an_evaluation_is_reported_before_anybody_is_asked(untested, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "open_data", lambda folder, mesh: untested)
    monkeypatch.setattr(evaluate, "load_model", lambda *_: pytest.fail("weights are read"))
    (tmp_path / "evaluation").write_text("a file in the place of the folder")
    with pytest.raises(FileExistsError):
        evaluate_run(tmp_path, EvaluationConfig(split="validation"))
    with pytest.raises(ValueError, match="samples 8 and seed -1 must be 0 or more"):
        EvaluationConfig(seed=-1)
    with pytest.raises(ValueError, match="steps 0 and seconds"):
        SASRecConfig(steps=0)
    with pytest.raises(ValueError, match="max_length, width, heads and mlp must be at least 1"):
        SASRecModelConfig(heads=0)


def test_why_users_are_left_out_is_counted_in_the_refusal():
    unrated = [
        met("train", "train", first=3) + met("test", rating=math.nan),
        [*met("train"), (1, "test", math.nan, "")],
    ]
    data = data_of(corpus_of(*unrated))
    asked = {"rating": evaluation_queries(data, "test", "rating")}
    with pytest.raises(DataError, match=r"no test questions \(2 users whose answer has no rating\)$"):
        check_queries(data, "test", asked)


def test_an_even_sample_is_asked_and_reported(untested):
    some = evaluation_queries(untested, "validation", "recommendation", users=2)
    assert [query.user for query in some.queries] == [0, 2]
    assert some.note == " An evenly spaced sample of 2 of 4 users."
    everybody = data_of(corpus_of(*[met("train", "train", "validation", "test", first=n) for n in range(12)]))
    right = [len(query.right) for query in evaluation_queries(everybody, "test", "selection", users=6).queries]
    assert right == [1, 2, 1, 2, 1, 2], "as many with one right item as with two, as among all"
    assert evaluation_queries(untested, "validation", "recommendation").note == ""
    assert EvaluationQueries(some.queries, {"who met everything": 1, "without categories": 1200}, 2).note == (
        " Left out: 1 user who met everything, 1,200 users without categories."
    )
    with pytest.raises(ValueError, match="users 0 must be 1 or more"):
        EvaluationConfig(users=0)


@pytest.mark.parametrize("with_test", [True, False])
def test_the_card_of_an_export_shows_a_question_where_there_is_one(untested, tmp_path, with_test):
    facts, config = Facts(3, {"seed": 0}), ExportConfig()
    shown = card(tmp_path, "model", untested, facts, config)
    assert "What is the next item recommended to the user?" in shown, "of the validation part"
    assert "items are tokens of their own" in shown
    semantic = dataclasses.replace(untested.vocabulary, items=np.repeat(untested.vocabulary.items, 2, axis=1))
    named = card(
        tmp_path, "model", ExperimentData(untested.config, records_of(untested.corpus), semantic), facts, config
    )
    assert "items are named by 2 tokens each" in named
    rows = Row(f"{OURS} + memory", {"HR@10": Interval(0.5, 0.4, 0.6)}), Row(OURS, {"HR@10": Interval(0.3, 0.2, 0.4)})
    tables = TaskTable("recommendation", 4, True, rows, "What?"), TaskTable("search", 4, True, rows[1:], "Which?")
    for shown_tables, says in ((tables, 1), (tables[1:], 0)):
        save_evaluation(Evaluation("x", "test", 3, shown_tables, ()), tmp_path / "evaluation" / "test.json")
        assert card(tmp_path, "model", untested, facts, config).count("which this folder does not have") == says
    nobody = data_of(corpus_of(met("train", "train")))
    empty = card(tmp_path, "model", nobody, facts, dataclasses.replace(config, format="open_flamingo"))
    assert "A prompt, `<image>`" not in empty
    assert "the data has no held-out user" in card(tmp_path, "model", nobody, facts, config)


TINY = {
    "one user": corpus_of(met("train", "train", "train", "validation", "test")),
    "one item": corpus_of(*[[(0, split, 3.0, "fine") for split in ("train", "train", "test")]] * 3, items=1),
    "one interaction each to train on": corpus_of(*[met("train", "test", first=n) for n in range(4)]),
    "no rating": corpus_of(*[met("train", "train", "test", rating=math.nan, first=n) for n in range(4)]),
    "one rating for all": corpus_of(*[met("train", "train", "validation", "test", first=n) for n in range(4)]),
    "nothing to train on": corpus_of(*[met("validation", "test", first=n) for n in range(3)]),
}


def test_each_rival_that_is_named_is_trained_or_left_out_by_its_name(tmp_path):
    config = EvaluationConfig(rivals=("esasrec", "hstu"), sasrec_config=SHORT)
    rankers, left_out = fit_rankers(TINY["one user"], config, tmp_path)
    assert [ranker.name for ranker in rankers[-3:]] == ["item-kNN", "eSASRec", "HSTU"]
    assert [(ranker.config.loss, ranker.config.steps) for ranker in rankers[-2:]] == [("sampled", SHORT.steps)] * 2
    assert left_out == {}
    assert set(fit_rankers(TINY["nothing to train on"], config, tmp_path)[1]) == {"eSASRec", "HSTU"}


@pytest.mark.parametrize("name", TINY)
def test_baselines_rank_in_every_tiny_source_or_say_why_not(name, tmp_path):
    corpus = TINY[name]
    rankers, left_out = fit_rankers(corpus, EvaluationConfig(sasrec_config=SHORT), tmp_path)
    learnt = name not in ("one interaction each to train on", "nothing to train on")
    assert [ranker.name for ranker in rankers] == ["Popularity", "Markov", "item-kNN", *["SASRec"] * learnt]
    assert left_out == (
        {} if learnt else {"SASRec": "no user has two training interactions, so there are no transitions to learn"}
    )
    asked = len(corpus.held_out(2)[0])
    assert asked
    matches = WordMatches(corpus.categories, lambda user, position: corpus.categories[0])
    for ranker in [*rankers, QueryMatch(rankers[0], matches)]:
        found = evaluate_ranker(ranker, corpus, "test")["filtered"]
        assert len(found) == asked
        assert (found >= 1).all()
        assert (found <= corpus.num_items).all()


def test_ratings_that_are_all_the_same_are_predicted():
    corpus = TINY["one rating for all"]
    predicted = choose_factorisation(corpus).predict(np.array([0, 3]), np.array([0, 5]))
    np.testing.assert_allclose(predicted, [4, 4])
    assert choose_markov(corpus).name == "Markov"


def test_ratings_are_asked_for_where_nobody_rated_in_training(monkeypatch):
    """The run knows its levels from other data."""
    corpus = corpus_of(*[met("train", "train", "test", first=n) for n in range(4)])
    data = data_of(corpus)
    questions = evaluation_queries(data, "test", "rating")
    unrated = np.where(corpus.splits == TRAIN, np.nan, corpus.ratings).astype(np.float32)
    data.corpus = dataclasses.replace(corpus, ratings=unrated)
    monkeypatch.setattr(
        rating, "next_token", lambda data, model, queries, tokens: np.ones((len(queries), 1), np.float32)
    )
    outcomes = rate_held_out(data, None, questions, BeamConfig())
    table = tabulate("rating", outcomes["rating"], 0)
    assert [row.model for row in table.rows] == [f"{OURS}, expected rating", f"{OURS}, most probable rating"]
    assert table.rows[0].metrics["RMSE"].mean == 0


ANSWERED = [f"{OURS} + memory", OURS, "Consensus text", "Nearest text", "Constant text"]


@pytest.mark.parametrize(
    ("training", "models"),
    [("", [OURS]), ("!!! …", ANSWERED), ("a", ANSWERED)],
)
def test_explanations_stand_alone_where_nobody_wrote_in_training(training, models):
    histories = [[(0, "train", 3.0, training), (1, "train", 3.0, training), (2, "test", 3.0, "good")]] * 2
    corpus = corpus_of(*histories, [(0, "train", 3.0, ""), (3, "test", 3.0, "")])
    users, positions = corpus.held_out(2)
    texts = [corpus.texts.get(int(event), "") for event in corpus.offsets[users] + positions]
    wrote = np.array([bool(text) for text in texts])
    outcome = explain(corpus, users, corpus.targets(users, positions), wrote, texts, ["good"] * 3)["explanation"]
    assert list(outcome.metrics) == models
    assert "Left out: 1 users who wrote no explanation." in outcome.note
    assert tabulate("explanation", outcome, 0).users == 2
    if training:
        assert NearestExplanation(corpus).explain(users[:1], np.array([0])) == [training]
        assert NearestExplanation(corpus).constant == training


def test_one_user_has_a_metric_and_no_interval():
    found = interval(np.array([0.25]))
    assert found.mean == 0.25
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.bounds(", ") == "no interval"
    assert over_seeds(np.array([[0.25], [0.75]])).mean == 0.5
    assert interval(np.array([0.25, 0.25])).bounds(" to ") == "0.250 to 0.250"


def outcome_of(count: int) -> Outcome:
    ranks = np.full(count, 2.0)
    asked = {"user": [f"u{n}" for n in range(count)], "position": [2] * count, "item": ["i1"] * count}
    told = {"items": [["i1", "i2"]] * count, f"{OURS}: rank, unfiltered": ranks, f"{OURS}: rank, filtered": ranks}
    metrics = {OURS: rank_metrics(ranks, ranks), "Popularity": rank_metrics(ranks, ranks)}
    return Outcome("What comes next?", metrics, asked | told)


def write_evaluated(folder: Path, config, users: int, split: str = "test") -> Path:
    if not folder.exists():
        begin_run(folder, config, steps=config.loop.steps)
    outcome = outcome_of(users)
    table = tabulate("recommendation", outcome, 0)
    left_out = {"search": f"no {split} questions", "SASRec": "no user has <two> interactions"}
    evaluation = Evaluation("movielens_small", split, 3, (table,), (), left_out=left_out)
    save_evaluation(evaluation, folder / "evaluation" / f"{split}.json")
    save_answers(outcome, folder / "evaluation" / f"{split}-recommendation.parquet")
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from tests.experiments.tiny_run import prepare_source

    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.mark.parametrize("users", [1, 2])
def test_the_pages_show_a_single_user_and_what_was_left_out(prepared, tmp_path, users):
    config = experiment(prepared)
    folder = write_evaluated(tmp_path / "base-0", config, users)
    loaded = load_evaluation(folder / "evaluation" / "test.json")
    assert math.isnan(loaded.tables[0].rows[0].metrics["HR@10"].low) == (users == 1)
    told = show(loaded)
    assert "left out: search: no test questions" in told
    assert "1.0000" in told
    page = write_report([folder]).read_text(encoding="utf-8")
    assert ("no interval" in page) == (users == 1)
    assert "SASRec: no user has &lt;two&gt; interactions" in page
    other = write_evaluated(tmp_path / "base-1", with_seed(config, 1), users)
    third = write_evaluated(tmp_path / "else", dataclasses.replace(config, seed=0, row_shape=dataclasses.replace(
        config.row_shape, answers=32)), users)  # fmt: skip
    many = write_report([folder, other, third], out=tmp_path / "out")
    assert "nan" not in many.read_text(encoding="utf-8").lower().split("<script")[0].split("<body")[-1]
    markdown = (many.parent / "report.md").read_text(encoding="utf-8")
    assert "nan" not in markdown
    assert "base-0 and 2 more: no user has <two> interactions" in markdown
    assert "1.000 [no interval]" in markdown if users == 1 else "1.000 [1.000, 1.000]" in markdown


def test_another_split_that_was_evaluated_is_named(prepared, tmp_path):
    folder = write_evaluated(tmp_path / "run", experiment(prepared), 2, split="validation")
    with pytest.raises(DataError, match=r"test\.json does not exist; .* or choose another --split: validation$"):
        write_report([folder])
    assert write_report([folder], split="validation").exists()


def test_an_evaluation_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "evaluation" / "test.json"
    save_evaluation(Evaluation("before", "test", 1, (), ()), path)
    broken = Evaluation("now", "test", 1, (), (), facts={"cannot be written": object()})
    with pytest.raises(TypeError):
        save_evaluation(broken, path)
    assert json.loads(path.read_text())["source"] == "before"
