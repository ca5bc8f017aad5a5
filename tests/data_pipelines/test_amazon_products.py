"""What is made of a product's record, in each release."""

from typing import Any

import pytest

from data_pipelines.sources.checks import BadField
from tests.data_pipelines.amazon_files import (
    PRODUCT,
    every_release,
    product_2014,
    product_2018,
    product_2023,
    product_of,
)


@every_release
@pytest.mark.parametrize(
    ("price", "text"),
    [
        (None, ""),
        (0.0, "0.00"),
        (7, "7.00"),
        (1234.5, "1234.50"),
        ("", ""),
        ("$12.99", "12.99"),
        ("$1,299.00", "1299.00"),
        ("$12.99 - $15.49", "12.99 - 15.49"),
        ("from 9.99", "from 9.99"),
        ("\u2014", ""),
        (".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{width:100%}", ""),
        ("<span class='price'>$3.00</span>", "3.00"),
    ],
)
def test_a_price_is_a_number_as_text(name: str, price: Any, text: str) -> None:
    assert product_of(name, PRODUCT[name]("B1", price=price)).price == text


def test_a_price_of_thousands_of_digits_is_reported() -> None:
    """Python reads such a number where it is written in hexadecimal, but does not write it."""
    with pytest.raises(BadField, match=r"^field 'price' is a number with thousands of digits; it must be a price"):
        product_of("amazon_2014", product_2014("B1", price=16**5000))


@pytest.mark.parametrize(
    ("name", "changed", "categories"),
    [
        (
            "amazon_2014",
            {"categories": [["Beauty", "Hair &amp; Skin"], ["Beauty", "Tools"], ["", "Hair & Skin"]]},
            ("Beauty", "Hair & Skin", "Tools"),
        ),
        ("amazon_2014", {"categories": []}, ("All Beauty",)),
        ("amazon_2014", {"categories": [[]]}, ("All Beauty",)),
        (
            "amazon_2018",
            {"category": ["Beauty", "</span></span>", "Hair &amp; Skin", "Beauty"]},
            ("Beauty", "Hair & Skin"),
        ),
        ("amazon_2018", {"category": [], "main_cat": "Health &amp; Care"}, ("Health & Care",)),
        (
            "amazon_2018",
            {"category": [], "main_cat": '<img src="https://x/y.png" class="nav-categ-image" alt="AMAZON FASHION"/>'},
            ("AMAZON FASHION",),
        ),
        ("amazon_2018", {"category": [], "main_cat": "<img src='x'/>"}, ("All Beauty",)),
        ("amazon_2023", {"categories": []}, ("All Beauty",)),
        ("amazon_2023", {"categories": [], "main_category": "Premium Beauty"}, ("Premium Beauty",)),
        ("amazon_2023", {"categories": [], "main_category": None}, ("All Beauty",)),
    ],
)
def test_categories_are_words_each_once(name: str, changed: dict[str, Any], categories: tuple[str, ...]) -> None:
    assert product_of(name, PRODUCT[name]("B1", **changed)).categories == categories


LARGE, SMALL = {"large": "l1", "thumb": "t1", "hi_res": "h1"}, {"large": None, "thumb": "t2", "hi_res": None}


@pytest.mark.parametrize(
    ("name", "changed", "url"),
    [
        ("amazon_2014", {"imUrl": " http://x/a.jpg "}, "http://x/a.jpg"),
        ("amazon_2014", {"imUrl": None}, ""),
        ("amazon_2018", {"imageURLHighRes": ["h1", "h2"], "imageURL": ["s1"]}, "h1"),
        ("amazon_2018", {"imageURLHighRes": [], "imageURL": ["s1", "s2"]}, "s1"),
        ("amazon_2018", {"imageURLHighRes": [], "imageURL": []}, ""),
        ("amazon_2018", {"imageURLHighRes": "h1"}, "h1"),
        ("amazon_2023", {"images": [SMALL | {"variant": "PT01"}, LARGE | {"variant": "MAIN"}]}, "l1"),
        ("amazon_2023", {"images": [SMALL | {"variant": "MAIN"}, LARGE | {"variant": "PT01"}]}, "t2"),
        ("amazon_2023", {"images": [LARGE | {"variant": None, "large": None}, SMALL]}, "h1"),
        ("amazon_2023", {"images": []}, ""),
    ],
)
def test_one_image_is_chosen(name: str, changed: dict[str, Any], url: str) -> None:
    assert product_of(name, PRODUCT[name]("B1", **changed)).image_url == url


def test_a_title_that_is_a_script_is_none() -> None:
    script = "var aPageStart = (new Date()).getTime();\nvar ue_t0=ue_t0||+new Date();"
    assert product_of("amazon_2018", product_2018("B1", title=script)).title == ""


def test_a_brand_is_the_store_or_in_the_details() -> None:
    known = {"store": None, "details": {"Brand": "Roland"}}
    assert product_of("amazon_2023", product_2023("B1", **known)).brand == "Roland"
    assert product_of("amazon_2023", product_2023("B1", **known | {"store": "Shop"})).brand == "Shop"
    assert product_of("amazon_2023", product_2023("B1", store=None, details='{"Brand": "Roland"}')).brand == ""
