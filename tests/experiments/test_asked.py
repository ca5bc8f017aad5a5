"""What is read from standard input: encodings, ids as numbers, and mistakes in one line."""

import json
import math
import types

import pytest

from data_pipelines.errors import DataError
from experiments.generate import complete, nearest_item
from experiments.request import Request, decoded, read_request

TEXT = '{"history": ["1", "é"]}'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_encoding_of_json_is_read(encoding):
    assert read_request(decoded(TEXT.encode(encoding))).history[1][0] == "é"


def test_another_encoding_is_named_with_how_to_convert_it():
    with pytest.raises(DataError) as error:
        decoded(TEXT.encode("latin1"))
    assert str(error.value) == (
        "standard input is not UTF-8 (byte 0xe9 at position 19); convert it, for example with "
        "`iconv -f latin1 -t utf-8`"
    )


def test_a_mark_of_byte_order_in_text_is_passed_over():
    assert [item for item, _ in read_request("\ufeff" + TEXT).history] == ["1", "é"]


def test_ids_may_be_numbers():
    request = read_request(
        '{"history": [1, {"item": 22, "rating": 4}, 3.5], "item": 108775015, "candidates": [1, "2", 3]}'
    )
    assert [item for item, _ in request.history] == ["1", "22", "3.5"]
    assert [rating for _, rating in request.history if not math.isnan(rating)] == [4.0]
    assert request.item == "108775015"
    assert request.candidates == ("1", "2", "3")


def test_a_query_with_the_names_of_tokens_is_plain_text():
    assert read_request('{"history": [1], "query": "</s> Drama <s>"}').query == "</s> Drama <s>"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"history": ["1"], "history": ["2"]}', "field 'history' occurs twice"),
        ('{"history": [{"item": "1", "item": "2"}]}', "field 'item' occurs twice"),
        ('{"history": [{"item": "1", "rating": NaN}]}', "field 'rating' is NaN; it must be finite"),
        ('{"history": [{"item": "1", "rating": -Infinity}]}', "field 'rating' is -Infinity; it must be finite"),
        ('{"history": [{"item": "1", "rating": 1e999}]}', "field 'rating' is Infinity; it must be finite"),
        ('{"history": ["1"]} {"history": ["2"]}', "not JSON (more than one value, the second starts at column 20)"),
        ('["1", "2"]', "a list instead of an object"),
        ("3", "a int instead of an object"),
        ('{"history": [true]}', "true instead of an object with item, rating"),
        ('{"history": [null]}', "null instead of an object with item, rating"),
        ('{"history": [{"item": true}]}', "field 'item' is true, a bool; it must be str or int or float"),
        ('{"history": "1"}', "field 'history' is \"1\", a str; it must be list"),
        ('{"history": ["\\ud83d"]}', "field 'history' is not valid text"),
        (f'{{"history": [{"9" * 5000}]}}', "not JSON (Exceeds the limit"),
        ('{"history": ["1"], "candidates": [[1]]}', "field 'candidates' is [1], a list; it must be"),
        ('{"histroy": ["1"]}', "there is no field 'histroy'; did you mean 'history'?"),
        ('{"zzzzz": ["1"]}', "there is no field 'zzzzz'; There are history, query, item, candidates"),
        ("{'history': ['1']}", "not JSON (Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_mistakes_name_standard_input_and_say_what_is_right(text, told):
    with pytest.raises(DataError) as error:
        read_request(text)
    assert str(error.value).startswith(f"standard input: {told}")
    assert str(error.value).endswith(
        'expected, for example, {"history": ["ITEM_ID", {"item": "ITEM_ID", "rating": 4.0}]}'
    )


@pytest.mark.parametrize("text", ["", " \n", "\ufeff"])
def test_nothing_is_reported(text):
    with pytest.raises(DataError, match=r"^standard input is empty; give a --user"):
        complete(Request(), text)


def test_a_history_of_100_000_items_is_read():
    text = json.dumps({"history": [str(number % 6 + 1) for number in range(100_000)]})
    assert len(read_request(text).history) == 100_000


def test_the_nearest_item_is_one_by_its_title_or_its_id_or_none():
    corpus = types.SimpleNamespace(item_ids=["B01", "B02"], titles=["Heat", "Toy Story"])
    assert nearest_item(corpus, "toy stori") == "; the nearest is 'B02' (Toy Story)"
    assert nearest_item(corpus, "b1") == "; the nearest is 'B01' (Heat)"
    assert nearest_item(corpus, "something else") == ""
