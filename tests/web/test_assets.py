"""The page's files: complete, without code or addresses from elsewhere, and of the right kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ringrift_pipeline.web
from ringrift_pipeline.web.server import FILES, KINDS

from .conftest import Client

STATIC = Path(ringrift_pipeline.web.__file__).parent / "static"
TEXTS = {path.name: path.read_text() for path in STATIC.iterdir()}


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_no_file_refers_to_another_place(name: str) -> None:
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`)]*", TEXTS[name]))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(
        r"@import|url\(|@font-face|data:|\beval\(|innerHTML|new Function", TEXTS[name]
    )


def test_the_page_has_no_code_or_style_of_its_own() -> None:
    page = TEXTS["page.html"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL) == [""]


def test_everything_referred_to_is_there_and_everything_there_is_used() -> None:
    used = set(re.findall(r'(?:href|src)="/static/([^"]+)"', TEXTS["page.html"]))
    waiting = list(used)
    while waiting:
        text = TEXTS[waiting.pop()]
        found = set(re.findall(r'from "\./([^"]+)"', text)) - used
        used |= found
        waiting += found
    assert used | {"page.html"} == set(TEXTS) == set(FILES)


def test_every_element_that_the_code_asks_for_is_in_the_page() -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', TEXTS["page.html"]))
    asked = {
        name
        for file, text in TEXTS.items()
        if file.endswith(".js")
        for name in re.findall(r'\$\("([^"]+)"\)', text)
    }
    assert asked and asked <= ids


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_files_are_served_as_what_they_are(client: Client, name: str) -> None:
    answer = client.get(f"/static/{name}")
    assert answer.status == 200 and answer.data.decode() == TEXTS[name]
    assert answer.headers["content-type"].startswith(KINDS[Path(name).suffix])


def test_the_page_is_the_same_at_every_address(client: Client) -> None:
    for path in ("/", "/games", "/games/square8_2p/0001/0000/0001?ply=12"):
        assert client.get(path).data.decode() == TEXTS["page.html"]
