"""The page in a real browser: a game by mouse and by keyboard, a recorded one ply by ply."""

from __future__ import annotations

import functools
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ringrift_pipeline.web.games import RecordedGames

from .conftest import CONFIG, Client

pytestmark = pytest.mark.browser
Page = Any  # playwright's, where it is installed
WAIT = 30_000  # ms; kernels may have to be compiled first


@pytest.fixture()
def opened(browser: Any, client: Client) -> Iterator[Callable[..., Page]]:
    yield from opening(browser, client)


def opening(browser: Any, client: Client) -> Iterator[Callable[..., Page]]:
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


def pressed(page: Page, key: str, on: str = "body", **modifiers: bool) -> bool:
    """Press a key with the focus on an element; whether the page took it from the browser."""
    return page.evaluate(
        """([on, init]) => !document.querySelector(on).dispatchEvent(
            new KeyboardEvent("keydown", {bubbles: true, cancelable: true, ...init}))""",
        [on, {"key": key, **modifiers}],
    )


MODIFIERS = ("ctrlKey", "metaKey", "altKey")


def test_keys_with_a_modifier_are_the_browsers(opened: Callable[..., Page]) -> None:
    page = opened("/", against("human"))
    page.locator("#moves [role=option]").first.wait_for()
    for on in ("body", "#play-board .view"):
        for modifier in MODIFIERS:
            for key in ("u", "a", "n", "/", "Escape", "1", "ArrowLeft", "+"):
                assert not pressed(page, key, on, **{modifier: True}), (on, modifier, key)
    assert not page.locator("#setup").is_visible() and page.locator("#analysis *").count() == 0
    assert pressed(page, "n") and page.locator("#setup").is_visible()
    page.locator("#cancel").click()
    place = f"/games/{CONFIG}/0001/0000/0001?ply=3"
    page = opened(place)
    page.locator("#ply-status", has_text="Ply 3 of").wait_for()
    for on, own in (("body", ("ArrowLeft", "Home")), ("#game-board .view", ("PageUp", "Home"))):
        for key in own:
            for modifier in MODIFIERS:
                assert not pressed(page, key, on, **{modifier: True}), (on, modifier, key)
    assert page.locator("#slider").input_value() == "3"


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


def test_a_seat_may_have_simulations_of_its_own(opened: Callable[..., Page]) -> None:
    page = opened("/", against("human"))
    page.locator("#moves [role=option]").first.wait_for()
    asked = []

    def note(request: Any) -> None:
        if request.url.endswith("/api/choose"):
            asked.append((request.post_data_json["player"], request.post_data_json["simulations"]))

    page.on("request", note)
    page.keyboard.press("n")
    seats = page.locator("#set-seats .seat")
    own = seats.nth(0).locator("[type=number]")
    assert not own.is_visible()  # a person's, so far
    for seat, spec in enumerate(("champion", "generation:0000")):
        seats.nth(seat).locator("select").select_option(spec)
    seats.nth(0).locator("select").focus()
    for key in ("Tab", "3", "Enter"):
        page.keyboard.press(key)
    page.locator("#log li").nth(3).wait_for()
    page.locator("#pause").click()
    assert set(asked) == {("champion", 3), ("generation:0000", 2)}
    page.reload()
    page.locator("#seats li", has_text="champion, 3 sims").wait_for()
    page.keyboard.press("n")
    assert own.input_value() == "3" and seats.nth(1).locator("[type=number]").input_value() == ""
    seats.nth(0).locator("select").select_option("random")
    assert not own.is_visible()


def test_after_a_swap_the_players_sit_on_each_others_seats(opened: Callable[..., Page]) -> None:
    game = {**against("random"), "swap_rule": True, "players": ["random", "human"]}
    page = opened("/", game)
    page.locator("#moves [role=option]").first.wait_for()
    page.locator("#filter").fill("swap")
    page.locator("#filter").press("Enter")
    page.locator("#status", has_text="Seat 1 (sides swapped)").wait_for()  # it is mine now
    page.locator("#moves [role=option]").first.wait_for()
    seats = page.locator("#seats li").all_inner_texts()
    assert "human" in seats[0] and "random" in seats[1]


def test_an_analysis_is_given_up_by_the_next_move(opened: Callable[..., Page]) -> None:
    page = opened("/", against("human"))
    page.route("**/api/analyze", lambda route: None)  # thinks for ever
    page.locator("#moves [role=option]").first.wait_for()
    page.locator("#analyze").click()
    page.locator("#analysis", has_text="thinks…").wait_for()
    with page.expect_event("requestfailed", lambda asked: asked.url.endswith("/api/analyze")):
        page.locator("#moves [role=option]").first.click()
    page.locator("#log li").first.wait_for()
    assert page.locator("#analysis *").count() == 0


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


def test_the_keys_of_a_recorded_game_are_named_and_leave_the_page_its_own(
    opened: Callable[..., Page],
) -> None:
    page = opened(f"/games/{CONFIG}/0001/0000/0001?ply=2")
    board = "#game-board .view"
    at = page.locator("#ply-status")
    at.filter(has_text="Ply 2 of").wait_for()
    for key in ("PageUp", "PageDown"):
        assert not pressed(page, key)  # scrolls the page
    for key, on, ply in (
        ("ArrowRight", "body", 3),
        ("ArrowLeft", "body", 2),
        ("PageDown", board, 3),
        ("PageUp", board, 2),
        ("Home", board, 0),
    ):
        assert pressed(page, key, on)
        at.filter(has_text=f"Ply {ply} of").wait_for()
    assert pressed(page, "ArrowRight", board)  # its cursor's
    assert page.locator("[data-cell].cursor").count() == 1
    assert at.inner_text().startswith("Ply 0 of")
    page.locator("#games summary", has_text="Keys").click()
    named = set(page.locator("#games kbd:visible").all_inner_texts())
    assert {"←", "→", "Home", "End", "PageUp", "PageDown"} <= named


def test_a_recorded_game_is_played_on_against_whom_one_likes(
    opened: Callable[..., Page], client: Client
) -> None:
    place = f"{CONFIG}/0001/0000/0001"
    game = client.get(f"/api/games/{place}").json
    page = opened(f"/games/{place}?ply=5")
    page.locator("#ply-status", has_text="Ply 5 of").wait_for()
    page.locator("#go-on").click()
    page.locator("#setup").wait_for()
    asked = {"config": CONFIG, "moves": game["moves"][:5]}
    before = client.post("/api/position", asked).json
    recorded = [ply["text"].replace("_", " ") for ply in before["played"] if not ply["forced"]]
    assert log(page) == recorded and page.locator("#pause").inner_text() == "Continue"
    seats = page.locator("#set-seats select")
    assert [seat.input_value() for seat in seats.all()] == ["human", "champion"]
    assert page.locator("#set-keep").is_checked() and page.locator("#set-swap").is_disabled()
    seats.nth(before["position"]["player"] - 1).select_option("generation:0000")
    seats.nth(2 - before["position"]["player"]).select_option("human")
    page.locator("#set-simulations").fill("2")
    page.locator("#set-simulations").press("Enter")
    page.locator(f"#log li:nth-child({len(recorded) + 1})").wait_for()  # it has answered
    page.locator("#moves [role=option]").first.wait_for()
    assert log(page)[: len(recorded)] == recorded
    assert "generation:0000" in page.locator("#seats").inner_text()
    kept = page.evaluate("JSON.parse(sessionStorage.getItem('ringrift-game'))")
    assert kept["moves"][:5] == game["moves"][:5] and kept["simulations"] == 2
    page.locator("#new").click()  # another game has another position, or asks for this one
    assert not page.locator("#set-keep").is_checked() and page.locator("#set-keep").is_enabled()
    page.locator("#set-config").select_option("hex8_2p")
    assert page.locator("#set-keep").is_disabled()
    assert [seat.input_value() for seat in seats.all()] == ["human", "heuristic"]
    page.locator("#setup .main").click()
    page.locator("#config", has_text="hex8_2p").wait_for()
    assert log(page) == []


def test_a_finished_game_is_not_played_on(opened: Callable[..., Page]) -> None:
    page = opened(f"/games/{CONFIG}/0001/0000/0001")
    page.locator("#ply-status", has_text="Ply 0 of").wait_for()
    assert page.locator("#go-on").is_enabled()
    page.locator("#last").click()
    page.locator("#ply", has_text="The game is over").wait_for()
    assert page.locator("#go-on").is_disabled()


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


@pytest.fixture()
def elsewhere(client: Client, tmp_path: Path) -> Iterator[int]:
    """Port of another server of this machine, with a page that links to a game and asks for a list."""
    game = client.access.url(f"/games/{CONFIG}/0001/0000/0001?ply=2")
    listed = client.access.url(f"/api/games/{CONFIG}")
    (tmp_path / "index.html").write_text(f'<a href="{game}">a game</a><img src="{listed}">')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])  # another site to a browser; the same
def test_another_page_may_link_to_a_game_and_ask_for_nothing(
    browser: Any, client: Client, elsewhere: int, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(RecordedGames, "generations", lambda _, config: made.append(config) or [])
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(WAIT)
    listed = client.access.url(f"/api/games/{CONFIG}")
    with page.expect_event("requestfailed", lambda asked: asked.url == listed):
        page.goto(f"http://{host}:{elsewhere}/")
    assert made == []
    page.locator("a").click()
    page.locator("#ply-status", has_text="Ply 2 of").wait_for()
    context.close()


def test_what_is_damaged_is_listed_with_the_reason(browser: Any, damaged: Client) -> None:
    for open_page in opening(browser, damaged):
        for place, shown in (
            (CONFIG, ["0001–3", "plan.json is corrupt", "0000the heuristic2"]),
            (f"{CONFIG}/0001", ["0000––", "shard.arrow", "00011", "0002––", "no artefact"]),
        ):
            rows = open_page(f"/games/{place}").locator("#listing tbody tr")
            rows.first.wait_for()
            texts = [re.sub(r"\s", "", row) for row in rows.all_inner_texts()]
            assert len(texts) == len(shown)
            for text, words in zip(texts, shown, strict=True):
                assert re.sub(r"\s", "", words) in text


def test_the_heuristics_games_tell_of_no_surprise(opened: Callable[..., Page]) -> None:
    page = opened(f"/games/{CONFIG}/0000/0000")
    assert page.locator("#listing tbody tr").first.locator("td").last.inner_text() == "–"
    page = opened(f"/games/{CONFIG}/0000/0000/0000")
    page.locator("#ply", has_text="legal moves").wait_for()
    assert "Surprise" not in page.locator("#ply").inner_text()


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


def test_a_narrow_window_is_played_in_by_touch(opened: Callable[..., Page]) -> None:
    narrow = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
    page = opened("/", against("random"), **narrow)
    option = page.locator("#moves [role=option]")
    option.first.wait_for()
    page.locator('[data-cell="3,4"]').tap()
    page.locator('[data-cell="3,4"].picked').wait_for()
    assert option.count() == 3 and page.evaluate("scrollY") == 0
    box = option.nth(1).bounding_box()  # to be seen without scrolling, just below the board
    assert box["y"] + box["height"] <= 640
    option.nth(1).tap()
    page.locator("#status", has_text="Seat 1 moves a stack").wait_for()
    assert log(page) == ["place ring to 3,4 count 2"]
    page.locator("#new").tap()
    page.locator("#set-config").select_option("hex8_4p")
    parts = ("#set-seats select >> nth=3", "#set-seats [type=number]:visible >> nth=0")
    page.locator("#set-seats select").nth(3).select_option("rollout")
    for part in ("#setup", *parts, "#set-seed"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 320, part
    for seat in page.locator("#set-seats select").all()[1:]:
        seat.select_option("random")
    page.locator("#setup .main").tap()
    page.locator("#config", has_text="hex8_4p").wait_for()
    assert not page.locator("#setup").is_visible() and page.locator("#seats li").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
