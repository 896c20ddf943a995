"""One real generation through the real job: every room, every check, the sensor's decision."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from dagster import (
    AssetKey,
    AssetMaterialization,
    DagsterInstance,
    build_sensor_context,
)

from ringrift_pipeline.cli import run
from ringrift_pipeline.definitions import defs
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.champion import champion_event
from ringrift_pipeline.orchestration.checks import CHECKS
from ringrift_pipeline.orchestration.metadata import MOST_NUMBERS
from ringrift_pipeline.orchestration.summary import summarize
from ringrift_pipeline.store import Store

from .conftest import Played, observations, plotted
from .test_ablation import run_job as run_ablation
from .test_schedules import play_gauntlet

pytestmark = pytest.mark.slow


def test_every_step_succeeds_and_every_blocking_check_passes(played: Played) -> None:
    failed = [event.step_key for event in played.result.all_events if event.is_step_failure]
    assert failed == []
    results = {check.check_name: check for check in played.result.get_asset_check_evaluations()}
    assert set(results) == {check.name for check in CHECKS}
    for check in CHECKS:
        if check.blocking:
            assert results[check.name].passed, results[check.name].description


def test_all_artefacts_verify(played: Played) -> None:
    store = Store(played.data)
    for name in names.ASSETS:
        assert store.require(played.config, 0, name).files


def test_metadata_are_typed_numbers_under_the_fields_names(played: Played) -> None:
    for name in names.ASSETS:
        key = AssetKey([played.config, name])
        event = played.instance.get_latest_materialization_event(key)
        assert event is not None and event.asset_materialization is not None
        assert event.asset_materialization.partition == "0000"
        metadata = event.asset_materialization.metadata
        plotted = [k for k in metadata if k.startswith(("train/", "val/", "selfplay/", "eval/"))]
        assert 1 <= len(plotted) <= MOST_NUMBERS, name
        assert all(isinstance(metadata[k].value, (int, float)) for k in plotted)
        assert "digest" in metadata and "path" in metadata
    evaluation = played.instance.get_latest_materialization_event(
        AssetKey([played.config, "evaluation"])
    )
    assert evaluation is not None and evaluation.asset_materialization is not None
    assert "eval/elo_low" in evaluation.asset_materialization.metadata


def test_the_reliability_diagram_is_in_the_event(played: Played) -> None:
    event = played.instance.get_latest_materialization_event(
        AssetKey([played.config, "calibration_report"])
    )
    assert event is not None and event.asset_materialization is not None
    text = event.asset_materialization.metadata["reliability"].value
    data = base64.b64decode(str(text).split("base64,")[1].rstrip(")"))
    assert data.startswith(b"\x89PNG")


PICTURES = {
    "selfplay_shards": {"policy_entropy"},
    "quality_scores": {"quality"},
    "hard_examples": {"gallery"},
    "checkpoint": {"loss"},
    "ensemble": {"disagreement"},
    "calibration_report": {"reliability"},
    "evaluation": {"rating_curve"},
}


def test_pictures_are_small_and_the_whole_ones_are_beside_them(played: Played) -> None:
    for name, pictures in PICTURES.items():
        metadata = materialization(played, name).metadata
        for picture in pictures:
            text = str(metadata[picture].value)
            assert text.startswith(f"![{picture}](data:image/") and len(text) < 50_100, name
            whole = Path(str(metadata[f"{picture}, whole (file on the server)"].value))
            assert whole.is_file() and ".full." in whole.name


def test_every_asset_with_a_table_shows_its_columns(played: Played) -> None:
    from ringrift_pipeline.selfplay.shards import SHARD_SCHEMA

    graph = defs.get_repository_def().asset_graph
    store = Store(played.data)
    shown: dict[str, list[str]] = {}
    for name in names.ASSETS:
        kind = "selfplay-shard-0000" if name == "selfplay_shards" else name
        files = store.require(played.config, 0, kind).files
        if any(Path(file).suffix in (".parquet", ".arrow") for file in files):
            defined = graph.get(AssetKey([played.config, name])).metadata
            metadata = {**defined, **materialization(played, name).metadata}
            found = metadata["dagster/column_schema"]
            schema = getattr(found, "value", found)
            assert all(column.description and column.type for column in schema.columns), name
            shown[name] = [column.name for column in schema.columns]
    assert set(shown) == {
        "selfplay_shards", "quality_scores", "hard_examples", "calibration_report", "evaluation",
    }  # fmt: skip
    assert shown["selfplay_shards"] == SHARD_SCHEMA(played.config).names


def test_nothing_plots_more_than_fifteen_numbers(copied: Store, played: Played) -> None:
    for name in names.ASSETS:
        assert len(plotted(materialization(played, name).metadata)) <= MOST_NUMBERS, name
    checks = played.result.get_asset_check_evaluations()
    assert len(checks) == len(CHECKS)
    for check in checks:
        assert len(plotted(check.metadata)) <= MOST_NUMBERS, check.check_name
    gate = copied.require(played.config, 0, "evaluation").read_json("report.json")["gate"]
    gate["sprt"] = {"llr": 3.1, "alpha": 0.05, "beta": 0.05, "elo0": 0.0, "elo1": 35.0}
    rating = {"rating": 1250.0, "low": 1200.0, "high": 1300.0}
    model = copied.require(played.config, 0, "ema_model")
    copied.promote(played.config, 0, model, {"gate": gate, "rating": rating})
    champion = copied.champion(played.config)
    assert champion is not None
    with DagsterInstance.ephemeral() as instance:
        event = champion_event(instance, champion)
    assert event is not None and event.metadata["generation"].value == "0000"
    assert plotted(event.metadata) == ["eval/elo", "eval/elo_low", "eval/elo_high", "eval/sprt_llr"]


@pytest.mark.whole
def test_with_what_is_observed_an_asset_plots_no_more(copied: Store, played: Played) -> None:
    """A table of its numbers has those of all its events, of whatever generation."""
    with DagsterInstance.ephemeral() as instance:
        (ablation,) = observations(run_ablation(instance))
    checkpoint = {*plotted(materialization(played, "checkpoint").metadata)}
    assert len(checkpoint.union(plotted(ablation.metadata))) <= MOST_NUMBERS

    model = copied.require(played.config, 0, "ema_model")
    for generation in range(11, -1, -1):
        with copied.create(played.config, generation, "ema_model") as draft:
            for name in model.files:
                shutil.copyfile(model.file(name), draft / name)
            (draft / "note").write_text(str(generation))
        copied.promote(played.config, generation, draft.artefact, {"gate": {}})
    result, (gauntlet,) = play_gauntlet(games=2, predecessors=11, baselines=["random"])
    assert result.success and gauntlet.metadata["eval/games"].value == 24
    promotion = ["eval/elo", "eval/elo_low", "eval/elo_high", "eval/sprt_llr"]
    assert len({*promotion, *plotted(gauntlet.metadata)}) <= MOST_NUMBERS
    assert "eval/win_rate_random" in gauntlet.metadata


def test_data_versions_are_the_digests(played: Played) -> None:
    for name in names.ASSETS:
        made = materialization(played, name)
        assert made.tags is not None
        digest = str(made.metadata["digest"].value)
        assert made.tags["dagster/data_version"] == digest[:16], name


def test_games_are_linked_to_the_page_that_shows_them(played: Played) -> None:
    from ringrift_pipeline.web.games import RecordedGames

    recorded = RecordedGames(played.data)
    hardest = str(materialization(played, "hard_examples").metadata["replay: hardest"].value)
    shards = materialization(played, "selfplay_shards").metadata
    links = [hardest, str(shards["replay: longest"].value)]
    assert "replay: most surprising" not in shards  # the heuristic played
    for link in links:
        place, _, ply = link.removeprefix("http://127.0.0.1:3001/games/").partition("?ply=")
        game = recorded.game(*place.split("/"))
        assert game["config"] == played.config
        if ply:
            assert int(ply) in [entry["ply"] for entry in game["timeline"]]
    lengths = [
        recorded.game(played.config, "0000", shard["shard"], game["game"])["plies"]
        for shard in recorded.shards(played.config, "0000")
        for game in recorded.games(played.config, "0000", shard["shard"])
    ]
    longest = links[1].removeprefix("http://127.0.0.1:3001/games/")
    assert recorded.game(*longest.split("/"))["plies"] == max(lengths)


def materialization(played: Played, name: str) -> AssetMaterialization:
    event = played.instance.get_latest_materialization_event(AssetKey([played.config, name]))
    assert event is not None and event.asset_materialization is not None
    return event.asset_materialization


def test_a_second_run_makes_nothing_anew(played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGRIFT_DATA", str(played.data))
    store = Store(played.data)
    before = {name: store.require(played.config, 0, name).path for name in names.ASSETS}
    written = files(played.data / played.config / "generations")
    job = defs.get_repository_def().get_job(names.job_name(played.config))
    keys = [AssetKey([played.config, name]) for name in names.ASSETS]
    result = job.execute_in_process(
        partition_key="0000",
        instance=played.instance,
        asset_selection=keys,
        tags={names.BACKFILL_TAG: "again"},
    )
    assert result.success
    after = {name: store.require(played.config, 0, name).path for name in names.ASSETS}
    assert after == before
    assert len(written) > len(names.ASSETS)
    assert files(played.data / played.config / "generations") == written


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file below a folder: which it is, and when it was written."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def test_the_sensor_decides_and_the_summary_tells(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGRIFT_DATA", str(played.data))
    sensor = defs.get_repository_def().get_sensor_def(names.SENSOR)
    with build_sensor_context(
        instance=played.instance, repository_def=defs.get_repository_def()
    ) as context:
        result = sensor.evaluate_tick(context)
    assert result.run_requests == []  # generation 0 was the last one asked for
    store = Store(played.data)
    summary = summarize(store, played.config, 0)
    gate = store.require(played.config, 0, "evaluation").read_json("report.json")["gate"]
    assert summary.decided and summary.promoted is gate["promote"]
    assert summary.reasons == gate["reasons"]
    missing = [name for name, value in summary.to_dict().items() if value is None]
    assert missing == []
    assert (store.champion(played.config) is not None) is gate["promote"]


def test_its_champion_is_exported_with_what_is_known_of_it(
    copied: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    config, folder = "square8_2p", tmp_path / "champion"
    model = copied.require(config, 0, "ema_model")
    copied.promote(config, 0, model, {"gate": {"reasons": []}})
    line = ["export", str(folder), "--player", "champion", "--data", str(copied.root), "--json"]
    assert run(line) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["generation"] == 0 and said["training_games"] == 8
    assert said["model_digest"] == model.digest
    report = copied.require(config, 0, "evaluation").read_json("report.json")
    own = report["ratings"]["generation:0000"]
    card = (folder / "README.md").read_text()
    for words in (
        f"# RingRift {config}",
        "license: mit",
        "MIT license",
        "| training games | 8 |",
        f"Rating {own['rating']:.0f}, 95% interval {own['low']:.0f} to {own['high']:.0f}",
        "heuristic is 1200",
        "| random | 4 |",
        "**passed**" if report["gate"]["promote"] else "**not passed**",
        *report["gate"]["reasons"],
        "## Limits",
        f"It plays `{config}` and no other board",
        "sha256sum --check SHA256SUMS",
        "| ONNX | differs from torch by at most ",
    ):
        assert words in card, words
    facts = json.loads((folder / "config.json").read_text())["facts"]
    assert facts["evaluation"]["rating"] == own["rating"]
