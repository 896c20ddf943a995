"""A person's first hour: launch a generation in the browser, watch the next start, look at every
asset, play a move against what was trained.
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster import RunsFilter

from ringrift_pipeline.orchestration.champion import reconcile
from ringrift_pipeline.orchestration.failure_sensor import first_failure
from ringrift_pipeline.orchestration.instance import open_instance
from ringrift_pipeline.orchestration.names import ASSETS, CHAMPION, PARTITION_TAG, job_name
from ringrift_pipeline.store import Artefact, Store

from .conftest import Program

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CONFIG = "square8_2p"
TINY: dict[str, Any] = {
    "preset": "smoke",
    "device": "cpu",
    "selfplay": {"games": 8, "games_per_shard": 4, "parallel_games": 4, "workers": 1},
    "search": {"simulations": 4, "cheap_simulations": 2, "max_considered": 4},
    "network": {"blocks": 1, "channels": 8, "value_channels": 4},
    "training": {"max_steps": 4, "batch_size": 32, "holdout_fraction": 0.3, "threads": 1},
    "calibration": {"bins": 3, "bootstrap": 20, "min_games": 2},
    "evaluation": {"games": 4, "max_games": 4, "simulations": 2, "anchor_games": 4},
}
MODULE = "ringrift_pipeline.definitions"
GENERATION = 1800.0  # seconds for a tiny generation on a machine that is very busy
WAIT = 300_000  # ms; no step of a quiet machine takes more than a few seconds
EDITOR = "document.querySelector('.CodeMirror').CodeMirror"
PARTITION_QUERIES = ("ConfigPartitionForAssetJobQuery", "ConfigPartitionSelectionQuery")
PICTURES = {
    "selfplay_shards": "policy_entropy",
    "quality_scores": "quality",
    "hard_examples": "gallery",
    "checkpoint": "loss",
    "ensemble": "disagreement",
    "calibration_report": "reliability",
    "evaluation": "rating_curve",
}
NUMBERS = {
    "selfplay_shards": "selfplay/positions",
    "quality_scores": "selfplay/quality_mean",
    "hard_examples": "train/hardness_mean",
    "checkpoint": "val/loss",
    "ema_model": "val/loss",
    "ensemble": "val/ensemble_loss",
    "calibration_report": "val/log_loss_before",
    "evaluation": "eval/elo",
}
PASSED = {
    "selfplay_shards": "shards_complete",
    "quality_scores": "scores_sound",
    "hard_examples": "examples_sound",
    "checkpoint": "losses_finite",
    "ema_model": "average_fits",
    "ensemble": "members_verify",
    "calibration_report": "bins_schema",
    "evaluation": "evaluation_sound",
}
RUNS = """{ runsOrError { ... on Runs { results { status tags { key value } } } } }"""


def states(address: str) -> dict[str, str]:
    """Status of the newest run of every generation, by its key; RETRIED for a failed one of which
    Dagster has not noted that it retries it no more (on a busy machine a run may start too late).
    """
    request = urllib.request.Request(
        f"{address}/graphql",
        json.dumps({"query": RUNS}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        runs = json.load(answer)["data"]["runsOrError"]["results"]
    found: dict[str, str] = {}
    for run in runs:
        tags = {tag["key"]: tag["value"] for tag in run["tags"]}
        retried = run["status"] == "FAILURE" and tags.get("dagster/will_retry") != "false"
        found.setdefault(tags.get("dagster/partition", ""), "RETRIED" if retried else run["status"])
    return found


def wait_for_success(address: str, data: Path, generation: str) -> None:
    end = time.monotonic() + GENERATION
    while (state := states(address).get(generation)) != "SUCCESS":
        assert state not in ("FAILURE", "CANCELED"), why(data, generation)
        assert time.monotonic() < end, f"generation {generation} is {state}"
        time.sleep(1.0)


def why(data: Path, generation: str) -> list[Any]:
    """What ended the runs of a generation."""
    with open_instance(data) as instance:
        runs = instance.get_runs(RunsFilter(tags={PARTITION_TAG: generation}))
        return [(run.status.value, *first_failure(instance, run.run_id)) for run in runs]


def skip_the_greeting(page: Any) -> None:
    """The UI greets whoever comes for the first time."""
    button = page.get_by_role("button", name="Skip")
    if button.count():
        button.first.click()


@pytest.fixture
def page(browser: Any) -> Any:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(WAIT)
    yield opened
    context.close()


def test_a_generation_from_the_launchpad_the_next_by_the_sensor_and_a_move_against_it(
    page: Any,
    program: Callable[..., Program],
    shot: Callable[[Any, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "data"
    monkeypatch.setenv("RINGRIFT_PLAY_URL", f"http://127.0.0.1:{free_port()}")
    address = program(
        "ui", "--data", str(data), "--config", CONFIG, "--port", str(free_port())
    ).address()

    # the launchpad: an out-of-range value is refused by name, a good one runs
    page.goto(f"{address}/locations/{MODULE}/jobs/{job_name(CONFIG)}/playground")
    skip_the_greeting(page)
    choose_partition(page, "0000")
    write_config(page, {**TINY, "training": {**TINY["training"], "batch_size": -4}})
    page.get_by_role("button", name="Launch Run").click()
    page.get_by_text("training.batch_size").first.wait_for()
    shot(page, "refused")
    assert states(address) == {}
    page.keyboard.press("Escape")
    page.get_by_text("training.batch_size").first.wait_for(state="hidden")
    write_config(page, {**TINY, "last_generation": 1})
    shot(page, "launchpad")
    page.get_by_role("button", name="Launch Run").click()
    wait_for_success(address, data, "0000")

    # the sensor starts the next one
    wait_for_success(address, data, "0001")
    store = Store(data)
    assert store.newest(CONFIG, "evaluation") == 1

    page.goto(f"{address}/locations/__repository__@{MODULE}/asset-groups/{CONFIG}/lineage")
    for name in ASSETS:
        page.get_by_text(name, exact=True).first.wait_for()
    shot(page, "lineage")
    for name in ASSETS:
        look_at(page, shot, f"{address}/assets/{CONFIG}/{name}", store.require(CONFIG, 1, name))
    look_at_the_champion(page, address, data)
    follow_a_replay_link(page, address)

    # what was trained is played against
    play = program("play", "--data", str(data), "--port", "0", "--no-browser", "--config", CONFIG)
    page.goto(play.address())
    page.locator("svg.board").wait_for()
    play_a_move(page, "generation:0001")
    shot(page, "play")


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def asks(request: Any) -> tuple[str, dict[str, Any]]:
    """What the page asks the server for: the name of the query, and its variables."""
    try:
        asked = request.post_data_json
        return str(asked["operationName"]), dict(asked["variables"])
    except (TypeError, KeyError, ValueError):
        return "", {}


def choose_partition(page: Any, key: str) -> None:
    """Choose it, and wait for the configuration it brings: that replaces whatever was written."""
    from playwright.sync_api import TimeoutError as TooLate

    for left in reversed(range(10)):  # a list that was opened before the page was done stays empty
        page.get_by_placeholder("Partition").click()
        try:
            page.get_by_text(key, exact=True).first.wait_for(timeout=15_000)
            break
        except TooLate:
            if not left:
                raise
            page.keyboard.press("Escape")
    with page.expect_response(lambda answer: asks(answer.request)[0] in PARTITION_QUERIES):
        page.get_by_text(key, exact=True).first.click()
    page.get_by_text("Generating configuration...").wait_for(state="hidden")
    page.get_by_text(f"partition: {key}", exact=True).first.wait_for()  # a tag of the run now


def write_config(page: Any, settings: dict[str, Any]) -> None:
    """Write it into the editor, and wait until the server has checked just that."""
    written = {"resources": {"settings": {"config": settings}}}

    def checks_it(answer: Any) -> bool:
        name, variables = asks(answer.request)
        return name == "PreviewConfigQuery" and said(variables["runConfigData"]) == written

    def said(text: str) -> Any:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return None

    page.locator(".CodeMirror").first.wait_for()
    with page.expect_response(checks_it):
        page.evaluate(f"text => {EDITOR}.setValue(text)", yaml.safe_dump(written))
    assert said(page.evaluate(f"() => {EDITOR}.getValue()")) == written


def look_at(page: Any, shot: Callable[[Any, str], None], address: str, made: Artefact) -> None:
    """An asset's page has its numbers, a check that passed, and the picture opens."""
    name = made.kind
    see(page, f"{address}?view=overview", "Metadata")
    shown = page.locator("tr", has=page.get_by_text(NUMBERS[name], exact=True)).first.inner_text()
    assert number_in(shown) == pytest.approx(made.metadata[NUMBERS[name]], rel=1e-4), name
    picture = PICTURES.get(name)
    if picture is not None:
        row = page.locator("tr", has=page.get_by_text(picture, exact=True)).first
        row.get_by_text("[Show Markdown]").click()
        image = page.locator("[role=dialog] img").first
        image.wait_for()
        assert image.evaluate("image => image.complete && image.naturalWidth") > 100, name
        shot(page, name)
        page.keyboard.press("Escape")
    else:
        shot(page, name)
    see_it_passed(page, address, name)


def see_it_passed(page: Any, address: str, name: str) -> None:
    """One of an asset's checks, which the newest run has passed."""
    see(page, f"{address}?view=checks&checkDetail={PASSED[name]}", PASSED[name])
    page.get_by_text("Passed", exact=True).first.wait_for()


def see(page: Any, address: str, text: str) -> None:
    """Open a page that says ``text``."""
    from playwright.sync_api import TimeoutError as TooLate

    page.goto(address)
    said = page.get_by_text(text, exact=True).first
    try:
        said.wait_for(timeout=60_000)
    except TooLate:  # it asks for what it shows once; on a busy machine an answer may be lost
        page.reload()
        said.wait_for()


def number_in(row: str) -> float:
    """The number of a row of metadata: the last of its cells that is one."""
    return float(re.findall(r"-?[\d,]+(?:\.\d+)?(?:e-?\d+)?", row)[-1].replace(",", ""))


def look_at_the_champion(page: Any, address: str, data: Path) -> None:
    """Its page says which generation it is and what it is rated."""
    store = Store(data)
    if store.champion(CONFIG) is None:  # hardly trained, it may not have passed the gate
        report = store.require(CONFIG, 0, "evaluation").read_json("report.json")
        rating = report["ratings"]["generation:0000"]
        model = store.require(CONFIG, 0, "ema_model")
        store.promote(CONFIG, 0, model, {"gate": report["gate"], "rating": rating})
    with open_instance(data) as instance:
        reconcile(instance, store)
    champion = store.champion(CONFIG)
    assert champion is not None
    page.goto(f"{address}/assets/{CONFIG}/{CHAMPION}?view=overview")
    row = page.locator("tr", has=page.get_by_text("generation", exact=True)).first
    assert f"{champion.generation:04d}" in row.inner_text()
    row = page.locator("tr", has=page.get_by_text("eval/elo", exact=True)).first
    rating = champion.reason["rating"]["rating"]
    assert number_in(row.inner_text()) == pytest.approx(rating, rel=1e-4)


def follow_a_replay_link(page: Any, address: str) -> None:
    """An asset's link to a recorded game opens it."""
    page.goto(f"{address}/assets/{CONFIG}/selfplay_shards?view=overview")
    row = page.locator("tr", has=page.get_by_text("replay: longest", exact=True)).first
    page.goto(str(row.locator("a").first.get_attribute("href")))
    page.locator("#game-title", has_text=f"{CONFIG}-0001-").wait_for()
    page.locator("svg.board").first.wait_for()


def play_a_move(page: Any, opponent: str) -> None:
    """A new game against it; one move by clicking, and its answer."""
    page.locator("#play-board .view").focus()
    page.keyboard.press("n")
    page.locator("#set-config").select_option(CONFIG)
    page.locator("#set-seats select").nth(0).select_option("human")
    page.locator("#set-seats select").nth(1).select_option(opponent)
    page.locator("#set-simulations").press("Enter")
    page.locator("#seats li", has_text=opponent).wait_for()
    page.locator('[data-cell="3,4"]').click()
    page.locator("#moves [role=option]").first.click()
    page.locator("#log li", has_text="place ring to 3,4").wait_for()
    page.locator("[data-cell].can").first.click()
    page.locator("#status", has_text="Seat 1 places rings").wait_for()
    assert len(page.locator("#log li").all()) >= 4  # the network has answered
