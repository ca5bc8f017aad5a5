"""`unimp generate`: what a run and its export answer, for a user and for the same history in JSON."""

import dataclasses
import functools
import io
import json
import shutil
import sys

import numpy as np
import pytest

from data_pipelines.item_codes import ItemCodes, save_codes
from data_pipelines.vocabulary import build_vocabulary
from experiments import cli
from experiments import generate as generating
from experiments.config import load_config
from experiments.data import ExperimentData, load_records, sized_model
from experiments.evals.config import GenerateConfig
from experiments.evals.ranking import best_items
from experiments.evals.rating import parse_rating
from experiments.export import ExportConfig, export_run
from experiments.generate import generate, pose, show
from experiments.parameters import init_parameters
from experiments.request import Request
from experiments.run import open_to_ask, to_be_asked
from tests.experiments.test_cli import run as run_command
from tests.experiments.test_export import IDEFICS
from tests.experiments.tiny_run import UNCUT, experiment, prepare_source
from tests.experiments.untrained_run import write_run
from unimp_jax.sharding import MeshConfig, make_mesh

MESH = MeshConfig(data=-1)
USER = "5"
ASKED = {
    "recommendation": {"k": 5},
    "search": {"k": 5, "query": "Comedy, Drama"},
    "rating": {"item": "3", "new_tokens": 6, "beams": 3},
    "selection": {"candidates": ("1", "2", "3")},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(prepared data, a run that was never trained, its export)"""
    folder = tmp_path_factory.mktemp("generate")
    data = prepare_source(folder)
    write_run(experiment(data, model=IDEFICS, row_shape=UNCUT), folder / "run", scale=1.5)
    export_run(folder / "run", folder / "exported", ExportConfig())
    return data, folder / "run", folder / "exported"


@pytest.fixture(scope="module")
def opening():
    """Each folder's model is opened once, when it is first asked."""

    @functools.cache
    def opened(folder, *arguments, **options):
        data, open_model = open_to_ask(folder, *arguments, **options)
        return data, functools.cache(open_model)

    return opened


@pytest.fixture(autouse=True)
def _opened_once(monkeypatch, opening):
    monkeypatch.setattr(generating, "open_to_ask", opening)


def ask(folder, read=None, **fields):
    """The answer as the object that it prints."""
    return json.loads(generate(folder, GenerateConfig(json=True, **fields), read))


def history_of(corpus, user_id):
    user = corpus.user_ids.index(user_id)
    events = range(*corpus.offsets[user : user + 2])
    return [{"item": corpus.item_ids[corpus.items[e]], "rating": float(corpus.ratings[e])} for e in events]


def assert_alike(one, other):
    """Equal, but for probabilities, which differ by less than 1e-4."""
    numbers = [[item.pop("probability") for item in answer.get("items", ())] for answer in (one, other)]
    assert one == other
    np.testing.assert_allclose(*numbers, atol=1e-4)


@pytest.mark.parametrize("task", ASKED)
def test_a_run_and_its_export_give_the_same_answers_with_titles(places, task):
    _, run, exported = places
    first, second = (ask(folder, user=USER, task=task, **ASKED[task]) for folder in (run, exported))
    text = show(first)
    assert "Film" in text.split("\n", 2)[2]
    named = first.get("items") or first.get("candidates") or [first]
    assert all(item["title"] == f"Film {item['item']}" and item["title"] in text for item in named)
    assert_alike(first, second)


@pytest.mark.parametrize("task", ASKED)
def test_a_user_and_the_same_history_in_json_are_answered_alike(places, opening, task):
    data, _ = opening(places[1], "best", records=None, mesh=MESH)
    history = history_of(data.corpus, USER)
    first = ask(places[1], user=USER, task=task, **ASKED[task])
    options = dict(ASKED[task])
    told = {name: options.pop(name) for name in ("query", "item", "candidates") if name in options}
    second = ask(places[1], lambda: json.dumps({"history": history, **told}), task=task, **options)
    assert (first.pop("user"), second.pop("user")) == (USER, None)
    assert first["history"]["items"] == len(history)
    assert first["history"]["latest"][-1]["item"] == history[-1]["item"]
    assert_alike(first, second)


def test_items_are_ranked_by_their_probability_and_none_was_seen(places, opening):
    data, open_model = opening(places[1], "best", records=None, mesh=MESH)
    _, query = pose(data, Request(user=USER))
    model, items = open_model(), data.vocabulary.items[:, 0]
    prompt = data.writer.write(query, ask=True)
    scores = model.next_token(data.questions([prompt]), items, 1)[0]
    seen = {event["item"] for event in history_of(data.corpus, USER)}
    order = [data.corpus.item_ids[item] for item in np.argsort(-scores, kind="stable")]
    everything = ask(places[1], user=USER, k=30, unfiltered=True)["items"]
    assert [item["item"] for item in everything] == order
    np.testing.assert_allclose([item["probability"] for item in everything], np.exp(np.sort(scores)[::-1]), rtol=1e-4)
    unseen = ask(places[1], user=USER, k=30)["items"]
    assert [item["item"] for item in unseen] == [item for item in order if item not in seen]
    assert [item["rank"] for item in unseen] == [*range(1, len(unseen) + 1)]


def test_where_all_was_seen_nothing_is_left(places):
    everything = json.dumps({"history": [str(number) for number in range(1, 31)]})
    assert "no item is left" in generate(places[1], GenerateConfig(), lambda: everything)


def test_items_with_semantic_ids_are_searched_for(places, tmp_path):
    """With a model that has learned nothing; the first item, which was seen, stands for nothing else."""
    config = experiment(places[0], model=IDEFICS)
    codes = np.stack(np.divmod(np.arange(30), 6), axis=1).astype(np.int32)
    records = load_records(config.data)
    save_codes(tmp_path / "codes.parquet", ItemCodes(tuple(records.corpus.item_ids), codes, (5, 6)))
    vocabulary = dataclasses.replace(config.vocabulary, item_codes=tmp_path / "codes.parquet")
    config = dataclasses.replace(config, vocabulary=vocabulary)
    data = ExperimentData(config, records, build_vocabulary(records.corpus, vocabulary))
    config, mesh = sized_model(config, data.vocabulary), make_mesh(MESH)
    parameters = init_parameters(config, mesh)
    model = to_be_asked(parameters.graph, mesh, (parameters.trainable, parameters.frozen))
    met = [data.corpus.item_ids[item] for item in (0, 7, 29)]
    data, query = pose(data, Request(history=tuple((item_id, float("nan")) for item_id in met)))
    found = {
        keep: best_items(data, model, query, GenerateConfig(k=30, unfiltered=keep)) for keep in (True, False)
    }  # beams as wide as the catalogue search exactly
    assert len(found[True]) == 30
    expected = [item["item"] for item in found[True] if item["item"] not in met]
    assert [item["item"] for item in found[False]] == expected


def test_what_an_answer_says_is_read_to_its_end(places, opening):
    vocabulary = opening(places[1], "best", records=None, mesh=MESH)[0].vocabulary
    eos, words = vocabulary.eos, vocabulary.encode("Film Comedy")
    rating = vocabulary.ratings[vocabulary.nearest_levels(np.array([4.0]))[0]]

    def parsed(*tokens):
        return parse_rating(vocabulary, np.array(tokens, np.int32))

    assert parsed(rating, *words, eos, rating) == {"rating": 4.0, "explanation": "Film Comedy", "whole": True}
    assert parsed(rating, *words) == {"rating": 4.0, "explanation": "Film Comedy", "whole": False}
    assert parsed(rating, eos) == {"rating": 4.0, "explanation": "", "whole": True}
    assert parsed(*words, rating, eos) == {"rating": None, "answer": "Film Comedy rate_4", "whole": True}
    assert parsed(eos, eos) == {"rating": None, "answer": "", "whole": True}
    asked = {"task": "rating", "user": None, "title": "Film 3", "item": "3", "expected": 3.456}
    asked["history"] = {"items": 1, "latest": [{"item": "1", "title": "Film 1"}]}
    shown = show(asked | parsed(rating, *words))
    assert "the given history: 1 item, the latest Film 1" in shown
    assert "Film 3 (3)\nrating       4\nexpected     3.46\nexplanation  Film Comedy … (cut off" in shown
    assert "none was generated" in show(asked | parsed(rating, eos))
    assert "rating       none: the answer does not begin with a rating\nanswer       Film Comedy" in show(
        asked | parsed(*words, eos)
    )


def test_an_export_holds_its_experiment_but_not_where_it_began(places):
    config = load_config(places[2] / "unimp" / "config.json")
    assert config.init_from is None
    assert config.model == load_config(places[1] / "config.json").model


def test_records_may_be_elsewhere(places, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(generating, "open_to_ask", open_to_ask)
    moved = shutil.copytree(places[0], tmp_path / "moved")
    for folder, message in ((moved, "user '99' is not in this source"), (tmp_path, "has no prepared source")):
        for model in places[1:]:
            _, told = run_command(monkeypatch, capsys, "generate", str(model), "--user", "99", "--data", str(folder))
            assert message in told


NEW = '{"history": ["3"]}'


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["--user", "55"], "", "user '55' is not in this source; the nearest is '5'"),
        ([], '{"history": ["film 3"]}', "item 'film 3' is not in the catalogue; the nearest is '3' (Film 3)"),
        ([], '{"history": ["3",]}', "standard input: not JSON"),
        ([], "[" * 100_000, "standard input: nested too deeply"),
        ([], "", "standard input is empty; give a --user, or a history on standard input, such as {"),
        ([], '["3"]', "standard input: a list instead of an object"),
        ([], '{"histroy": ["3"]}', "there is no field 'histroy'; did you mean 'history'?"),
        ([], '{"history": []}', "field 'history' is empty"),
        ([], "{}", "field 'history' is missing"),
        ([], '{"history": [[3]]}', "[3] instead of an object with item, rating"),
        ([], '{"history": ["xyz"]}', "item 'xyz' is not in the catalogue\n"),
        (["--user", "nobody"], "", "user 'nobody' is not in this source\n"),
        ([], '{"history": [{"rating": 3}]}', "field 'item' is missing"),
        ([], '{"history": [{"item": "3", "rating": "4"}]}', "field 'rating' is \"4\", a str; it must be int or float"),
        (
            [],
            '{"history": [{"item": "3", "rating": 40}]}',
            "the rating of item 3 is 40; the ratings of this source are 1 to 5",
        ),
        (
            ["--task", "search"],
            NEW,
            'needs --query, the words to search for, such as --query "Comedy, Drama" (or "query"',
        ),
        (["--task", "search", "--user", USER], "", 'such as --query "Comedy, Drama"'),
        (["--task", "rating"], NEW, "needs --item, the id of the item to be rated"),
        (["--task", "rating", "--item", "31"], NEW, "item '31' is not in the catalogue; the nearest is '3"),
        (["--task", "selection"], NEW, "needs --candidates, the ids of 3 items"),
        (
            ["--task", "selection", "--candidates", "1", "2", "1"],
            NEW,
            "3 ids, 2 of them different; exactly 3 different",
        ),
        (["--task", "selection", "--candidates", "1", "2", "3", "1"], NEW, "4 ids, 3 of them different; exactly 3"),
        (["--item", "3"], NEW, "--item belongs to --task rating, not to recommendation"),
        (["--k", "31"], NEW, "--k is 31; it must be between 1 and 30, the size of the catalogue"),
        (["--beams", "0"], NEW, "beams and new_tokens must be at least 1"),
    ],
)
def test_mistakes_are_reported_in_one_line(places, monkeypatch, capsys, arguments, text, message):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    code, told = run_command(monkeypatch, capsys, "generate", str(places[1]), *arguments)
    assert code == 2
    assert told.startswith("unimp: ")
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "search"}, "needs --query"),
        ({"task": "selection"}, "needs --candidates"),
        ({"task": "selection", "candidates": ("1", "2")}, "2 ids, 2 of them different; exactly 3 different"),
        ({"task": "selection", "candidates": ("1", "2", "2")}, "3 ids, 2 of them different; exactly 3 different"),
        ({"task": "rating"}, "needs --item"),
        ({"task": "sleep"}, "there is no task 'sleep'"),
        ({"history": ()}, "at least one item is needed"),
    ],
)
def test_mistakes_in_python_are_reported_alike(places, opening, fields, message):
    data, _ = opening(places[1], "best", records=None, mesh=MESH)
    with pytest.raises(ValueError, match=message):  # as `TrainedRun.answer` does
        pose(data, Request(**{"history": (("3", float("nan")),), **fields}))
    with pytest.raises(ValueError, match="k 0 must be 1 or more"):
        GenerateConfig(k=0)


def test_folders_that_are_nothing_to_ask_are_named(places, monkeypatch, capsys, tmp_path):
    _, told = run_command(monkeypatch, capsys, "generate", str(tmp_path / "nowhere"), "--user", USER)
    assert "is the folder of a run?" in told.replace(f"{tmp_path / 'nowhere'} ", "")
    (tmp_path / "generation_config.json").write_text("{}")
    _, told = run_command(monkeypatch, capsys, "generate", str(tmp_path), "--user", USER)
    assert "lacks unimp/, which `unimp export --format idefics` writes" in told


def test_ids_as_numbers_in_utf_16_are_answered_as_their_text(places, monkeypatch, capsys):
    text = '{"history": [3, {"item": 4, "rating": 5}]}'
    said = []
    for content in (text.encode("utf-16"), text.replace("3", '"3"').replace("4", '"4"').encode()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        monkeypatch.setattr(sys, "argv", ["unimp", "generate", str(places[1]), "--k", "3", "--json"])
        monkeypatch.setattr(cli, "use_all_cores", lambda: None)
        cli.main()
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    assert [item["item"] for item in said[0]["history"]["latest"]] == ["3", "4"]


def test_titles_that_would_steer_a_terminal(places, opening, monkeypatch):
    """On an ASCII terminal as well; JSON has them as they are."""
    data, open_model = opening(places[1], "best", records=None, mesh=MESH)
    titles = [f"\x1b[31mFilm {item_id}\n\u202e東京 \U0001f600" + "x" * 300 for item_id in data.corpus.item_ids]
    odd = data.of(dataclasses.replace(data.corpus, titles=titles))
    monkeypatch.setattr(generating, "open_to_ask", lambda *_, **__: (odd, open_model))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    monkeypatch.setenv("COLUMNS", "70")
    head, _, *rows = generate(places[1], GenerateConfig(user=USER, k=5), None).split("\n")
    assert head.isascii()
    assert "\x1b" not in head
    assert len(rows) == 6
    assert {len(row) for row in rows} == {70}
    assert all("?[31mFilm" in row and " ??" in row and row.isascii() and row.isprintable() for row in rows[1:])
    exact = ask(places[1], user=USER, k=5)["items"]
    assert {item["title"] for item in exact} <= set(titles)
    assert generate(places[1], GenerateConfig(user=USER, json=True), None).isascii()


def test_the_command_prints_titles(places, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["unimp", "generate", str(places[2]), "--user", USER, "--k", "3", "--unfiltered"])
    monkeypatch.setattr(cli, "use_all_cores", lambda: None)
    cli.main()
    printed = capsys.readouterr().out
    assert printed.startswith(f"recommendation for user {USER}: 15 items, the latest Film 24; Film 23; Film 16\n")
    assert printed.count("%") == 3
