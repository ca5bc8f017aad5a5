"""What the pages say can be followed: links lead somewhere, and every command that they show is understood."""

import functools
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "experiments").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The `unimp` commands of a page's blocks, without comments, lines that go on joined."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S)).replace("\\\n", " ")
    return [line[line.index("unimp ") :] for line in blocks.splitlines() if re.match(r"(echo .*\| )?unimp ", line)]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", text, re.M), "a conflict of a merge was left in the page"


@pytest.mark.slow  # of each command all options are made anew
@pytest.mark.parametrize("command", [one for page in PAGES for one in commands(page) if "--help" not in one])
def test_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_pipelines import object_store
    from experiments import cli, path_options

    monkeypatch.setattr(object_store, "PACKAGES", dict.fromkeys(object_store.PACKAGES, "json"))  # one that is there
    monkeypatch.setattr(path_options, "reached", lambda path: path)
    called, load = [], cli.load

    def parsed_only(name):
        return functools.wraps(load(name))(lambda *values, **named: called.append(name))

    monkeypatch.setattr(cli, "load", parsed_only)
    words = shlex.split(command, comments=True)
    monkeypatch.setattr(sys, "argv", words)
    cli.main()
    assert called == [next(word for word in words[1:] if not word.startswith("-"))]


def test_every_page_is_in_the_table_of_contents_and_in_the_readme() -> None:
    listed = re.search(r"```\{toctree\}\n:maxdepth: 1\n\n(.*?)```", (ROOT / "docs/index.md").read_text(), re.S)
    assert listed is not None
    pages = {page.stem for page in PAGES[1:]} - {"index"}
    assert set(listed[1].split()) == pages | {"quickstart"}
    assert set(re.findall(r"docs/([\w-]+)\.md\]", PAGES[0].read_text(encoding="utf-8"))) == pages


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150
