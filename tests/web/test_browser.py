"""The page in a real browser: a game by mouse and by keyboard, a recorded one ply by ply."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .conftest import CONFIG, Client

pytestmark = pytest.mark.browser
Page = Any  # playwright's, where it is installed
WAIT = 30_000  # ms; kernels may have to be compiled first


@pytest.fixture()
def opened(browser: Any, client: Client) -> Iterator[Callable[..., Page]]:
    """Open an address; at the end no page may have complained or asked anyone else."""
    complaints: list[str] = []
    asked: set[str] = set()
    contexts = []

    def open_page(path: str, game: dict[str, Any] | None = None, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 860}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.add(request.url.split("/", 3)[2]))
        if game is not None:  # as a game that was left and is come back to
            kept = f"sessionStorage.setItem('ringrift-game', {json.dumps(json.dumps(game))})"
            context.add_init_script(f"if (!sessionStorage.length) {kept}")
        page.goto(client.access.url(path))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert asked == {f"127.0.0.1:{client.access.port}"}


def against(player: str, config: str = CONFIG) -> dict[str, Any]:
    base = {"config": config, "swap_rule": False, "simulations": 2, "seed": 1, "moves": []}
    return {**base, "players": ["human", player]}


def log(page: Page) -> list[str]:
    return page.locator("#log li .said").all_inner_texts()


def test_a_move_by_clicking(opened: Callable[..., Page]) -> None:
    page = opened("/", against("random"))
    page.locator('[data-cell="3,4"]').click()
    assert page.locator("#moves [role=option]").all_inner_texts() == [
        f"{count}\nplace ring to 3,4 count {count}" for count in (1, 2, 3)
    ]
    page.locator("#moves [role=option]").nth(1).click()
    page.locator("#status", has_text="Seat 1 moves a stack").wait_for()
    assert page.locator('[data-cell="3,4"].picked').count() == 1  # what was placed must move
    landings = page.locator("[data-cell].can")
    assert landings.count() == page.locator("#moves [role=option]").count() > 4
    landings.first.click()
    page.locator("#status", has_text="Seat 1 places rings").wait_for()
    said = log(page)
    assert said[0] == "place ring to 3,4 count 2" and said[1].startswith("move stack from 3,4 to")
    assert len(said) >= 4  # the other seat has answered
    page.locator("#undo").click()
    page.locator("#status", has_text="Seat 1 moves a stack").wait_for()
    assert log(page) == said[:1]


def test_a_move_by_keyboard_alone(opened: Callable[..., Page]) -> None:
    page = opened("/", against("random"))
    page.locator("#moves [role=option]").first.wait_for()
    keys = page.keyboard
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Enter"):  # the board has the focus
        keys.press(key)
    cursor = page.locator("[data-cell].cursor").get_attribute("data-cell")
    assert cursor == "1,1"
    assert page.locator("[data-cell].picked").get_attribute("data-cell") == cursor
    assert "3 moves with 1,1" in page.locator("#spoken").inner_text()
    keys.press("Escape")
    assert page.locator("[data-cell].picked").count() == 0
    keys.press("Enter")
    keys.press("2")
    page.locator("#status", has_text="Seat 1 moves a stack").wait_for()
    assert log(page) == ["place ring to 1,1 count 2"]
    keys.press("/")
    assert page.evaluate("document.activeElement.id") == "filter"
    keys.type("to 1,5")
    keys.press("ArrowDown")
    assert (
        page.locator("#moves [aria-selected=true]")
        .inner_text()
        .endswith("move stack from 1,1 to 1,5")
    )
    assert page.locator("[data-cell].shown").count() == 2
    keys.press("Enter")
    page.locator("#log li", has_text="move stack from 1,1 to 1,5").wait_for()
    page.locator("#status", has_text="Seat 1 places rings").wait_for()
    page.locator("#play-board .view").focus()
    keys.press("n")
    assert page.locator("#setup").is_visible()
    page.locator("#set-config").select_option("hex8_3p")
    page.locator("#set-seats select").nth(1).select_option("heuristic")
    page.locator("#set-simulations").press("Enter")
    page.locator("#config", has_text="hex8_3p").wait_for()
    assert page.locator("[data-cell]").count() == 61 and page.locator("#seats li").count() == 3


def test_a_reload_keeps_the_game_and_players_play_by_themselves(
    opened: Callable[..., Page],
) -> None:
    page = opened("/", {**against("random"), "players": ["random", "random"]})
    page.locator("#log li").nth(3).wait_for()
    page.locator("#pause").click()
    before = log(page)
    page.reload()
    page.locator("#log li").nth(3).wait_for()
    assert log(page) == before
    assert page.locator("#pause").inner_text() == "Continue"
    page.locator("#undo").click()
    page.locator(f"#log li:nth-child({len(before)})").wait_for(state="detached")


def test_what_a_network_thinks(opened: Callable[..., Page]) -> None:
    page = opened("/", against("champion"))
    page.locator("#moves [role=option]").first.wait_for()
    page.locator("#analyze").click()
    page.locator("#analysis .shares li").first.wait_for()
    text = page.locator("#analysis").inner_text()
    assert "Calibrated, temperature 2.00: calibration report" in text and "2 visits" in text
    shares = page.locator("#analysis .chance").all_inner_texts()
    assert len(shares) == 2 and all(re.search(r"\d%\s*value [\d.]+%", share) for share in shares)
    best = page.locator("#analysis .shares button").first
    played = best.inner_text()
    best.click()
    page.locator("#log li", has_text=played).first.wait_for()


def test_a_recorded_game_step_by_step(opened: Callable[..., Page], client: Client) -> None:
    place = f"{CONFIG}/0001/0000/0001"
    game = client.get(f"/api/games/{place}").json
    page = opened(f"/games/{place}?ply=2")
    status = page.locator("#ply-status")

    def at(ply: int) -> None:
        page.locator("#ply-status", has_text=f"Ply {ply} of {game['plies']}").wait_for()

    at(2)
    for button, ply in (("next", 3), ("previous", 2), ("last", game["plies"]), ("first", 0)):
        page.locator(f"#{button}").click()
        at(ply)
    assert page.locator("#first").is_disabled()
    page.locator("#slider").focus()
    for key, ply in (("ArrowRight", 1), ("End", game["plies"]), ("Home", 0)):
        page.keyboard.press(key)
        at(ply)
    shown = client.get(f"/api/games/{place}?ply=0").json["decision"]
    text = page.locator("#ply").inner_text()
    assert ("Full search" in text) is shown["full_search"]
    assert f"Surprise {shown['surprise']:.3f} nats" in text
    assert page.locator("#ply .played").count() <= 1 and "before" in text
    assert "(full search)" in status.inner_text() or "(cheap search)" in status.inner_text()
    assert page.url.endswith("?ply=0")
    page.locator("#next").click()
    at(1)
    page.locator("#go-on").click()
    page.locator("#log li").first.wait_for()
    assert (
        len(
            client.post("/api/position", {"config": CONFIG, "moves": game["moves"][:1]}).json[
                "played"
            ]
        )
        >= len(log(page))
        >= 1
    )


def test_a_game_that_was_cut_short_has_no_winner(opened: Callable[..., Page]) -> None:
    place = f"{CONFIG}/0001/0000/0001"
    page = opened(f"/games/{place}")

    def cut(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "winners": [], "reason": "cut short"})

    page.route(f"**/api/games/{place}", cut)
    page.reload()
    page.locator("#summary", has_text="cut short, no winner").wait_for()
    page.locator("#last").click()
    page.locator("#ply", has_text="cut short here, without a winner").wait_for()
    assert "The game is over" not in page.locator("#ply").inner_text()


def test_games_are_found_by_links(opened: Callable[..., Page]) -> None:
    page = opened("/games")
    for name in (CONFIG, "0001", "0000", "0001"):
        page.locator("#listing a", has_text=name).first.click()
        page.locator("#crumbs [aria-current]", has_text=name).wait_for()
    page.locator("#game-title", has_text=f"{CONFIG}-0001-0000-0001").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("config", [CONFIG, "square19_2p"])
def test_a_narrow_window_needs_no_sideways_scrolling(
    opened: Callable[..., Page], config: str, scheme: str
) -> None:
    narrow = {"viewport": {"width": 320, "height": 640}, "color_scheme": scheme}
    for path, ready in (
        ("/", "#moves [role=option]"),
        (f"/games/{CONFIG}/0001/0000/0001", "#ply > *"),
    ):
        page = opened(path, against("random", config), **narrow)
        page.locator(ready).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    assert (red > 200) if scheme == "light" else (red < 60)
