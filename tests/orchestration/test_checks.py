"""Every check fails on what it is there for: real artefacts, each broken in its own way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from dagster import AssetCheckKey, DagsterInstance
from safetensors.numpy import load_file, save_file

from ringrift_pipeline.definitions import defs
from ringrift_pipeline.enhancements.training_config import TrainingConfig
from ringrift_pipeline.evaluation import decide
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.orchestration.champion import last_reported
from ringrift_pipeline.orchestration.checks import CHECKS, objections
from ringrift_pipeline.orchestration.integrity import _ancestors, same_verdict
from ringrift_pipeline.orchestration.step import Step
from ringrift_pipeline.selfplay import Plan, load_plan, plan_generation, play_shards
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import build_window
from ringrift_pipeline.training.averaging import LAST

from .conftest import TINY

pytestmark = pytest.mark.slow

CONFIG = "square8_2p"


# what these judge is the course of several generations: see test_regressions
OF_SEVERAL = {"window_fresh", "play_steady", "gate_passed", "champions_rise"}


def run_check(asset: str, name: str, generation: str = "0000") -> Any:
    """Run a check as the job does; its evaluation."""
    job = defs.get_repository_def().get_job(names.job_name(CONFIG))
    keys = {AssetCheckKey(names.asset_key(CONFIG, asset), name)}
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(names.partitions_name(CONFIG), [generation])
        subset = job.get_subset(asset_selection=set(), asset_check_selection=keys)
        result = subset.execute_in_process(
            partition_key=generation, instance=instance, raise_on_error=False
        )
        (evaluation,) = result.get_asset_check_evaluations()
        return evaluation


def replace(
    store: Store,
    kind: str,
    change: Callable[[Path], object] | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Land a changed copy of the current artefact, as a faulty step would."""
    old = store.require(CONFIG, 0, kind)
    with store.create(CONFIG, 0, kind, {**old.metadata, **(metadata or {})}) as draft:
        for name in old.files:
            shutil.copyfile(old.file(name), draft / name)
        if change is not None:
            change(draft.path)
            for path in filter(Path.is_file, draft.path.iterdir()):
                path.rename(draft / path.name)  # it is the draft's, also if it was added


def edit_json(name: str, change: Callable[[Any], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return edit


def edit_table(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (path,) = folder.glob("*.parquet")
        change(pl.read_parquet(path)).write_parquet(path)

    return edit


def edit_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dtype == np.float32)
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, path)


def drop_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path)


def in_bfloat16(divergence: float | None) -> dict[str, Any]:
    """What a model says whose policy is that far from float32's in search's arithmetic."""
    return {
        "search_precision": "bfloat16",
        "val/precision_policy_kl": divergence,
        "precision_positions": 100,
    }


def flip(store: Store, kind: str, name: str) -> None:
    path = store.require(CONFIG, 0, kind).file(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def champion_flipped(store: Store) -> None:
    model = store.require(CONFIG, 0, "ema_model")
    store.promote(CONFIG, 0, model, {"gate": {}})
    flip(store, "ema_model", "model.safetensors")


def shard_copied(store: Store) -> None:
    """Both shards hold the same games, as if they had had one seed."""
    from ringrift_pipeline.selfplay.shards import SHARD_FILE, open_shard

    first = store.require(CONFIG, 0, "selfplay-shard-0000").file(SHARD_FILE)

    def change(folder: Path) -> None:
        import pyarrow as pa

        with open_shard(first) as reader:
            metadata, table = reader.schema.metadata, reader.read_all()
        ids = table.column("game_id").to_pylist()
        renamed = [f"{CONFIG}-0000-0001-{name.rsplit('-', 1)[1]}" for name in ids]
        field = table.schema.field("game_id")
        table = table.set_column(0, field, pa.array(renamed, pa.string()))
        with pa.OSFile(str(folder / SHARD_FILE), "wb") as sink:
            schema = table.schema.with_metadata(metadata)
            with pa.ipc.new_file(sink, schema) as out:
                out.write_table(table.cast(schema))

    replace(store, "selfplay-shard-0001", change)


def edit_shard(name: str, value: Any) -> Callable[[Path], None]:
    """Set a column's first value, as a faulty player would, in a file that is whole."""

    def edit(folder: Path) -> None:
        import pyarrow as pa

        from ringrift_pipeline.selfplay.shards import SHARD_FILE, open_shard

        with open_shard(folder / SHARD_FILE) as reader:
            metadata, table = reader.schema.metadata, reader.read_all()
        values = table.column(name).to_pylist()
        values[0] = value(values[0])
        field = table.schema.field(name)
        place = table.schema.get_field_index(name)
        table = table.set_column(place, field, pa.array(values, field.type))
        with pa.OSFile(str(folder / SHARD_FILE), "wb") as sink:
            schema = table.schema.with_metadata(metadata)
            with pa.ipc.new_file(sink, schema) as out:
                out.write_table(table.cast(schema))

    return edit


def odd_shard(name: str, value: Callable[[Any], Any]) -> Callable[[Store], None]:
    return lambda store: replace(store, "selfplay-shard-0001", edit_shard(name, value))


def more_columns(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(more=pl.lit(1))


def more_of(path: Path) -> None:
    more_columns(pl.read_parquet(path)).write_parquet(path)


def edit_games(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "games.parquet"
        change(pl.read_parquet(path)).write_parquet(path)

    return edit


def won_by_the_candidate(games: pl.DataFrame) -> pl.DataFrame:
    """Every game of two is made a win of the candidate's."""
    seat = pl.col("players").list.eval(pl.element() == f"generation:{0:04d}")
    return games.with_columns(
        shares=seat.list.eval(pl.element().cast(pl.Float64)),
        ranks=seat.list.eval((~pl.element()).cast(pl.Int64)).cast(games.schema["ranks"]),
        winner=(seat.list.arg_max() + 1).cast(games.schema["winner"]),
    )


def without(opponent: str) -> Callable[[Path], None]:
    """No game against an opponent was played, and none is told of."""

    def edit(folder: Path) -> None:
        edit_games(lambda t: t.filter(pl.col("match") != opponent))(folder)

        def change(report: dict[str, Any]) -> None:
            report["matches"] = [m for m in report["matches"] if m["opponent"] != opponent]

        edit_json("report.json", change)(folder)

    return edit


def window_changed(store: Store, change: Callable[[Path], object]) -> None:
    """Another window than the one that hash and shards give, and a checkpoint trained on it."""
    replace(store, "window", change)
    window = store.require(CONFIG, 0, "window")
    replace(store, "checkpoint", metadata={"window": window.digest})


def one_row_on_the_other_side(folder: Path) -> None:
    held = np.load(folder / "holdout.npy")
    held[np.flatnonzero(held)[0]] = False
    np.save(folder / "holdout.npy", held)


def held_out_mined(store: Store) -> None:
    from ringrift_pipeline.training import open_window

    row = int(open_window(store.require(CONFIG, 0, "window").path).holdout_rows[0])
    first = pl.int_range(pl.len()) == 0
    change = edit_table(
        lambda t: t.with_columns(row=pl.when(first).then(row).otherwise(pl.col("row")))
    )
    replace(store, "hard_examples", change)


def held_out_copied(store: Store) -> None:
    """Every game is there twice: what is held out is also trained on, under another id."""
    from ringrift_pipeline.training import mine_hard_examples

    shard_copied(store)
    plan = load_plan(store, CONFIG, 0)
    window = build_window(store, plan)
    mine_hard_examples(store, plan)
    replace(store, "checkpoint", metadata={"window": window.digest})


def gauntlet_played(
    store: Store, change: Callable[[pl.DataFrame], pl.DataFrame] = lambda games: games
) -> None:
    """A champion, and a gauntlet with the games of its evaluation; ``change`` is made to them when
    the report has been written.
    """
    from ringrift_pipeline.evaluation import set_scores

    own = store.require(CONFIG, 0, "evaluation")
    games = pl.read_parquet(own.file("games.parquet"))
    name = own.read_json("report.json")["candidate"]["name"]
    matches = [
        {"opponent": match, "win_rate": float(set_scores(part, name).mean())}
        for (match,), part in games.group_by("match")
    ]
    store.promote(CONFIG, 0, store.require(CONFIG, 0, "ema_model"), {"gate": {}})
    with store.create(CONFIG, 0, "gauntlet") as draft:
        (draft / "report.json").write_text(json.dumps({"champion": name, "matches": matches}))
        change(games).write_parquet(draft / "games.parquet")


def ablation_made(
    store: Store, change: Callable[[pl.DataFrame], pl.DataFrame] = lambda table: table
) -> None:
    """An ablation of one comparison; ``change`` is made to its table when it has been told of."""
    from ringrift_pipeline.evaluation import tables
    from ringrift_pipeline.training.tables import polars_schema

    schema = polars_schema(tables.ABLATION)
    row = {name: 0.5 for name in schema} | {
        "enhancement": "mining",
        "setting": "on alone",
        "measure": "policy_loss",
        "verdict": "better",
    }
    with store.create(CONFIG, 0, "ablation", {"verdicts": {"mining": "helps"}}) as draft:
        change(pl.DataFrame([row], schema)).write_parquet(draft / "table.parquet")


def won_by_seat_2(games: pl.DataFrame) -> pl.DataFrame:
    lost, won = pl.lit([1, 0]), pl.lit([0.0, 1.0])
    return games.with_columns(ranks=lost, shares=won, winner=pl.lit(2, pl.Int8))


def turned_about(games: pl.DataFrame) -> pl.DataFrame:
    """Won by whoever lost."""
    winner = pl.col("winner")
    return games.with_columns(
        pl.col("ranks", "shares").list.reverse(),
        winner=pl.when(winner > 0).then(3 - winner).otherwise(0).cast(pl.Int8),
    )


OTHER = "fresh weights: the parent differs in channels"
Break = Callable[[Store], object]

BREAKS: list[tuple[str, Break, str]] = [
    ("champion_verifies", champion_flipped, "SHA-256"),
    (
        "gauntlet_sound",
        lambda s: gauntlet_played(s, more_columns),
        "generation 0000: games.parquet",
    ),
    ("gauntlet_sound", lambda s: gauntlet_played(s, lambda t: t.head(t.height - 1)), "incomplete"),
    (
        "gauntlet_sound",
        lambda s: gauntlet_played(s, lambda t: t.filter(pl.col("match") != "random")),
        "the report tells of matches with",
    ),
    (
        "gauntlet_sound",
        lambda s: gauntlet_played(s, lambda t: t.with_columns(pl.col("ranks").list.head(1))),
        "have not one player, rank and share",
    ),
    (
        "gauntlet_sound",
        lambda s: gauntlet_played(s, lambda t: t.with_columns(match=pl.col("match").reverse())),
        "a player who is not of their match",
    ),
    (
        "gauntlet_sound",
        lambda s: gauntlet_played(
            s, lambda t: won_by_seat_2(t).with_columns(pl.col("ranks").list.reverse())
        ),
        "that do not agree",
    ),
    ("gauntlet_sound", lambda s: gauntlet_played(s, turned_about), "the report says"),
    ("shards_complete", lambda s: flip(s, "selfplay-shard-0001", "shard.arrow"), "SHA-256"),
    ("shards_complete", lambda s: replace(s, "selfplay-shard-0001", shorten), "was collected"),
    ("games_differ", shard_copied, "copies"),
    ("games_differ", lambda s: flip(s, "selfplay-shard-0000", "shard.arrow"), "SHA-256"),
    ("shards_sound", odd_shard("surprise", lambda _: float("nan")), "not finite in 1 of"),
    ("shards_sound", odd_shard("policy", lambda p: [2.0, *p[1:]]), "no distribution"),
    ("shards_sound", odd_shard("policy", lambda p: [float("nan"), *p[1:]]), "no distribution"),
    ("shards_sound", odd_shard("policy", lambda p: [*p, 0.0]), "differ in number"),
    ("shards_sound", odd_shard("selected", lambda _: 1), "was not legal"),
    ("shards_sound", odd_shard("outcome", lambda o: [0.7, 0.7]), "shares of the win"),
    ("shards_sound", odd_shard("search_value", lambda v: [1.5, -0.5]), "values after search"),
    ("shards_sound", odd_shard("root_value", lambda v: [0.5, 0.2]), "values before search"),
    ("shards_sound", odd_shard("ply", lambda _: 10_000), "not after the one before"),
    (
        "scores_schema",
        lambda s: replace(s, "quality_scores", edit_table(more_columns)),
        "does not match its schema",
    ),
    (
        "scores_schema",
        lambda s: replace(
            s, "quality_scores", edit_table(lambda t: t.with_columns(score=pl.lit(1.5)))
        ),
        "score",
    ),
    (
        "examples_schema",
        lambda s: replace(
            s, "hard_examples", edit_table(lambda t: t.with_columns(reason=pl.lit("a whim")))
        ),
        "reason",
    ),
    (
        "bins_schema",
        lambda s: replace(s, "calibration_report", edit_table(lambda t: t.drop("games"))),
        "games",
    ),
    ("games_schema", lambda s: replace(s, "evaluation", edit_games(more_columns)), "more"),
    (
        "games_schema",
        lambda s: replace(s, "evaluation", lambda f: more_of(f / "ratings.parquet")),
        "more",
    ),
    (
        "games_schema",
        lambda s: replace(s, "rating_list", lambda f: more_of(f / "ratings.parquet")),
        "more",
    ),
    (
        "games_schema",
        lambda s: replace(s, "anchor_games", edit_games(more_columns)),
        "anchor_games of generation 0000: games.parquet",
    ),
    (
        "games_schema",
        lambda s: replace(
            s, "anchor_games", edit_games(lambda t: t.with_columns(shares=pl.lit([0.5, 0.5])))
        ),
        "that do not agree",
    ),
    (
        "games_schema",
        lambda s: replace(
            s, "anchor_games", edit_games(lambda t: t.filter(pl.col("match") == "rollout"))
        ),
        "0 sets of heuristic",
    ),
    ("ablation_sound", lambda s: ablation_made(s, more_columns), "table.parquet"),
    (
        "ablation_sound",
        lambda s: ablation_made(s, lambda t: t.with_columns(verdict=pl.lit("worse"))),
        "its table gives {'mining': 'hurts'}",
    ),
    ("no_leakage", held_out_mined, "1 hard examples are of held-out games"),
    (
        "no_leakage",
        lambda s: window_changed(s, one_row_on_the_other_side),
        "1 games are on both sides",
    ),
    ("no_leakage", held_out_copied, "move for move"),
    (
        "no_leakage",
        lambda s: replace(s, "checkpoint", metadata={"window": "0" * 64}),
        "another window",
    ),
    (
        "gate_sound",
        lambda s: replace(
            s,
            "evaluation",
            edit_json("report.json", lambda r: r["gate"].update(promote=not r["gate"]["promote"])),
        ),
        "its games say",
    ),
    (
        "gate_sound",
        lambda s: replace(
            s, "evaluation", edit_json("report.json", lambda r: r.update(gate={"reasons": []}))
        ),
        "its games say",
    ),
    (
        "gate_sound",
        lambda s: replace(
            s,
            "evaluation",
            edit_json("report.json", lambda r: r.update(champion={"digest": "0" * 64})),
        ),
        "the plan's champion is none",
    ),
    (
        "gate_sound",
        lambda s: replace(
            s,
            "evaluation",
            edit_games(lambda t: t.with_columns(shares=pl.col("shares").list.reverse())),
        ),
        "winner, ranks and shares of the win that do not agree",
    ),
    (
        "gate_sound",
        lambda s: replace(s, "evaluation", edit_games(won_by_the_candidate)),
        "its games 1.0000",
    ),
    (
        "gate_sound",
        lambda s: replace(s, "evaluation", without("heuristic")),
        "to be met were heuristic, random",
    ),
    (
        "evaluation_sound",
        lambda s: replace(s, "evaluation", edit_json("report.json", lambda r: r.pop("gate"))),
        "cannot be read: KeyError: 'gate'",
    ),
    (
        "evaluation_sound",
        lambda s: replace(s, "evaluation", metadata={"eval/elo": 2345.0}),
        "the asset shows eval/elo 2345.0",
    ),
    (
        "training_learned",
        lambda s: replace(
            s,
            "checkpoint",
            metadata={"val/gain": -0.2, "val/gain_low": -0.3, "val/gain_high": -0.1},
        ),
        "0.2000 higher than its parent's",
    ),
    (
        "calibration_sound",
        lambda s: replace(
            s,
            "calibration_report",
            edit_json(
                "report.json",
                lambda r: (
                    r.update(games=50, ece_before=0.3, ece_after=0.3, applied=False),
                    r["held_out"].update(
                        calibration_error=0.3, calibration_error_interval=[0.2, 0.4]
                    ),
                ),
            ),
        ),
        "0.300 (0.200 to 0.400) is left, of 50 games, at most 0.15 is allowed",
    ),
    (
        "calibration_sound",
        lambda s: replace(
            s,
            "calibration_report",
            edit_json(
                "report.json",
                lambda r: r.update(
                    ece_before=0.3,
                    ece_after=0.3,
                    ece_after_interval=[0.2, 0.4],
                    applied=True,
                    fit={"games_judged": 60},
                ),
            ),
        ),
        "is left, of 60 games, at most 0.15 is allowed",
    ),
    ("scores_sound", lambda s: flip(s, "quality_scores", "scores.parquet"), "SHA-256"),
    (
        "scores_sound",
        lambda s: replace(s, "quality_scores", edit_table(lambda t: t.head(t.height - 1))),
        "were played",
    ),
    (
        "scores_sound",
        lambda s: replace(
            s, "quality_scores", edit_table(lambda t: t.with_columns(score=pl.lit(1.5)))
        ),
        "not in [0, 1]",
    ),
    (
        "scores_sound",
        lambda s: replace(
            s,
            "quality_scores",
            edit_table(lambda t: t.with_columns(score=pl.lit(None, pl.Float64))),
        ),
        "not in [0, 1]",
    ),
    ("examples_sound", lambda s: flip(s, "hard_examples", "hard_examples.parquet"), "SHA-256"),
    (
        "examples_sound",
        lambda s: replace(s, "hard_examples", edit_table(lambda t: t.vstack(t.head(1)))),
        "listed twice",
    ),
    (
        "examples_sound",
        lambda s: replace(
            s, "hard_examples", edit_table(lambda t: t.with_columns(hardness=pl.lit(np.inf)))
        ),
        "finite",
    ),
    (
        "examples_sound",
        lambda s: replace(s, "hard_examples", edit_table(lambda t: t.head(0))),
        "no example",
    ),
    ("losses_finite", lambda s: replace(s, "checkpoint", edit_weights), "not finite"),
    (
        "losses_finite",
        lambda s: replace(s, "checkpoint", metadata={"train/loss_policy": None}),
        "train/loss_policy",
    ),
    (
        "training_learned",
        lambda s: replace(s, "checkpoint", metadata={"val/loss_policy": 9.0}),
        "even choice",
    ),
    (
        "parent_trained_on",
        lambda s: replace(s, "checkpoint", metadata={"parent_generation": 3, "parent_note": OTHER}),
        f"{OTHER}; what generation 0003 had learned is not in this model",
    ),
    ("average_fits", lambda s: replace(s, "ema_model", edit_weights), "not finite"),
    ("average_fits", lambda s: replace(s, "ema_model", drop_tensor), "differ"),
    (
        "average_fits",
        lambda s: replace(s, "ema_model", metadata={"weights": LAST}),
        "last weights, and is not",
    ),
    (
        "precision_holds",
        lambda s: replace(s, "ema_model", metadata=in_bfloat16(0.0011)),
        "0.0011 nats",
    ),
    (
        "precision_holds",
        lambda s: replace(s, "ema_model", metadata=in_bfloat16(None)),
        "not finite",
    ),
    (
        "members_verify",
        lambda s: replace(
            s, "ensemble", edit_json("members.json", lambda m: m[0].update(digest="0" * 64))
        ),
        "not the model",
    ),
    (
        "members_verify",
        lambda s: replace(
            s, "ensemble", edit_json("members.json", lambda m: m[0].update(path="../../data"))
        ),
        "leads elsewhere",
    ),
    (
        "members_verify",
        lambda s: replace(s, "ensemble", edit_json("members.json", lambda m: m.clear())),
        "0 members",
    ),
    (
        "calibration_sound",
        lambda s: replace(
            s, "calibration_report", edit_json("report.json", lambda r: r.update(ece_after=0.9))
        ),
        "after",
    ),
    (
        "calibration_sound",
        lambda s: replace(
            s, "calibration_report", edit_json("report.json", lambda r: r.update(ece_after=None))
        ),
        "not finite",
    ),
    (
        "evaluation_sound",
        lambda s: replace(s, "ema_model", lambda f: (f / "note").write_text("another model")),
        "not the current",
    ),
    (
        "evaluation_sound",
        lambda s: replace(
            s, "evaluation", edit_json("report.json", lambda r: r["matches"][0].update(games=3))
        ),
        "whole sets",
    ),
    (
        "evaluation_sound",
        lambda s: replace(
            s, "evaluation", edit_json("report.json", lambda r: r.update(ratings={}))
        ),
        "no rating",
    ),
    (
        "beats_random",
        lambda s: replace(s, "evaluation", metadata={"eval/win_rate_random": 0.25}),
        "25%",
    ),
]


def shorten(folder: Path) -> None:
    (folder / "shard.arrow").write_bytes((folder / "shard.arrow").read_bytes() + b"\0")


def asset_of(check: str) -> str:
    return next(recipe.asset for recipe in CHECKS if recipe.name == check)


def test_there_is_a_break_for_every_check() -> None:
    assert {name for name, _, _ in BREAKS} | OF_SEVERAL == {check.name for check in CHECKS}


@pytest.mark.parametrize(
    ("check", "broken", "words"),
    BREAKS,
    ids=[f"{name}-{number}" for number, (name, _, _) in enumerate(BREAKS)],
)
def test_the_check_fails(check: str, broken: Break, words: str, copied: Store) -> None:
    broken(copied)
    result = run_check(asset_of(check), check)
    assert not result.passed
    assert words in result.description
    assert "What to do: " in result.description
    recipe = next(recipe for recipe in CHECKS if recipe.name == check)
    assert result.blocking is recipe.blocking
    assert result.severity.value == ("ERROR" if recipe.blocking else "WARN")


def test_a_generation_whose_games_are_all_held_out_goes_on(copied: Store) -> None:
    nothing = edit_table(lambda table: table.head(0))
    replace(copied, "hard_examples", nothing, metadata={"scored_rows": 0})
    result = run_check("hard_examples", "examples_sound")
    assert result.passed and "all games of the generation are held out" in result.description


def test_a_verdict_is_its_numbers_and_not_its_words(copied: Store) -> None:
    """A version that words its reasons otherwise finds the evaluations of the one before sound."""

    def reworded(report: dict[str, Any]) -> None:
        report["gate"]["reasons"] = ["as it was said before"]
        report["gate"].pop("first")  # not noted then
        report["gate"]["floors"][0]["champion_share"] = 0.5  # a record that is gone by now

    replace(copied, "evaluation", edit_json("report.json", reworded))
    assert run_check("evaluation", "gate_sound").passed


def test_every_number_of_a_verdict_counts() -> None:
    wins, champion = [0.5, 1.0] * 30, [1.0] * 20 + [0.0, 0.5] * 8
    found = decide({"random": wins}, champion, {"random": 0.9}).to_dict()

    def said(**changes: Any) -> dict[str, Any]:
        return {**json.loads(json.dumps(found)), **changes}

    floor, test = said()["floors"][0], said()["sprt"]
    assert same_verdict(said(reasons=["in other words"], first=None, more=1), found)
    assert same_verdict(said(sprt=test | {"llr": test["llr"] * (1 + 1e-12)}), found)
    for changed in (
        said(promote=not found["promote"]),
        said(promote=None),
        said(sprt=None),
        said(sprt={}),
        said(sprt=test | {"llr": test["llr"] + 0.01}),
        said(sprt=test | {"verdict": "accept"}),
        said(sprt=test | {"sets": test["sets"] + 1}),
        said(floors=[]),
        said(floors=[{}]),
        said(floors=[floor, floor]),
        said(floors=[floor | {"share": floor["share"] + 1e-6}]),
        said(floors=[floor | {"required": not floor["required"]}]),
        {},
        None,
        [],
    ):
        assert not same_verdict(changed, found), changed
    first = decide({"random": wins}).to_dict()
    assert same_verdict(json.loads(json.dumps(first)), first) and not same_verdict(first, found)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({}, "there is no earlier model to compare with"),
        ({"parent_generation": 3, "parent_note": OTHER}, f"not compared with its parent: {OTHER}"),
        ({"parent_generation": 3, "val/gain": 0.1}, "one held-out game is too few to compare"),
    ],
)
def test_a_training_that_is_compared_with_nothing_says_why(
    about: dict[str, Any], words: str, copied: Store
) -> None:
    replace(copied, "checkpoint", metadata=about)
    check = run_check("checkpoint", "training_learned")
    assert check.passed and words in check.description
    assert run_check("checkpoint", "parent_trained_on").passed is (OTHER not in words)


def test_a_gauntlet_that_is_what_its_report_says_passes(copied: Store) -> None:
    said = run_check(names.CHAMPION, "gauntlet_sound")
    assert said.passed and "no champion has played" in said.description
    gauntlet_played(copied)
    said = run_check(names.CHAMPION, "gauntlet_sound")
    assert said.passed and "games in whole rotated sets" in said.description
    # what is wrong with it stops nothing
    gauntlet_played(copied, more_columns)
    found = objections(Step(CONFIG, 0, copied, lambda *_: None, lambda: False))
    assert not any("gauntlet" in one for one in found)


def test_an_ablation_whose_table_is_what_is_told_passes(copied: Store) -> None:
    said = run_check("checkpoint", "ablation_sound")
    assert said.passed and said.description == "no ablation of this generation"
    ablation_made(copied)
    said = run_check("checkpoint", "ablation_sound")
    assert said.passed and "1 comparisons" in said.description


def holding_out(store: Store, generation: int, share: float, noted: bool = True) -> Plan:
    """A generation's plan with another share held out; not ``noted``, as earlier versions wrote."""
    settings = load_plan(store, CONFIG, 0).settings
    path = store.root / CONFIG / "generations" / f"{generation:04d}" / "plan.json"
    changed = {"training.holdout_fraction": share, "mining.enabled": False}
    path.unlink(missing_ok=True)
    plan = plan_generation(store, CONFIG, generation, settings.with_overrides(changed))
    if noted:
        return plan
    path.unlink()
    old = {name: value for name, value in plan.raw.items() if name != "holdout"}
    return Plan.from_dict(store.write_plan(CONFIG, generation, old))


@pytest.mark.parametrize("leaks", [True, False])
def test_no_game_that_an_ancestor_trained_on_is_held_out(copied: Store, leaks: bool) -> None:
    holding_out(copied, 0, 0.1)
    plan = holding_out(copied, 1, 0.3, noted=not leaks)
    assert plan.parent is not None and plan.parent["generation"] == 0
    play_shards(copied, plan, workers=1)
    window = build_window(copied, plan)
    with copied.create(CONFIG, 1, "checkpoint", {"window": window.digest}):
        pass
    result = run_check("checkpoint", "no_leakage", "0001")
    assert result.passed is not leaks
    if leaks:
        assert "1 held-out games were trained on by generation 0000" in result.description
        # of a model that does not come from that one there is nothing to say
        (copied.root / CONFIG / "generations" / "0001" / "plan.json").unlink()
        copied.write_plan(CONFIG, 1, {**plan.raw, "parent": None})
        window = build_window(copied, load_plan(copied, CONFIG, 1))
        with copied.create(CONFIG, 1, "checkpoint", {"window": window.digest}):
            pass
        assert run_check("checkpoint", "no_leakage", "0001").passed


def test_ancestors_are_followed_past_a_plan_that_is_gone(store: Store) -> None:
    settings = TrainingConfig.preset("smoke")
    for generation in range(5):
        plan = plan_generation(store, CONFIG, generation, settings)
        if generation != 3:  # nothing descends from it
            with store.create(CONFIG, generation, "ema_model") as draft:
                (draft / "model.json").write_text("{}")
    step = Step(CONFIG, 4, store, lambda *_: None, lambda: False)
    assert [one.generation for one in _ancestors(step, plan, 0)] == [2, 1, 0]
    (store.root / CONFIG / "generations" / "0002" / "plan.json").unlink()
    assert [one.generation for one in _ancestors(step, plan, 0)] == [1, 0]
    assert [one.generation for one in _ancestors(step, plan, 1)] == [1]


def test_a_damaged_champion_plays_nothing(copied: Store) -> None:
    champion_flipped(copied)
    job = defs.get_repository_def().get_job(names.job_name(CONFIG))
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(names.partitions_name(CONFIG), ["0001"])
        result = job.get_subset(
            asset_selection={names.asset_key(CONFIG, "selfplay_shards")},
            asset_check_selection={
                AssetCheckKey(names.asset_key(CONFIG, names.CHAMPION), "champion_verifies")
            },
        ).execute_in_process(partition_key="0001", instance=instance, raise_on_error=False)
    assert not result.success
    assert [one.passed for one in result.get_asset_check_evaluations()] == [False]
    assert copied.generations(CONFIG) == [0]  # nothing was even planned


def test_a_champion_before_a_damaged_one_plays_and_the_check_warns(copied: Store) -> None:
    first = copied.require(CONFIG, 0, "ema_model")
    copied.promote(CONFIG, 0, first, {"gate": {}})
    copied.write_plan(CONFIG, 1, copied.read_plan(CONFIG, 0) | {"generation": 1})
    with copied.create(CONFIG, 1, "ema_model") as draft:
        for name in first.files:
            shutil.copyfile(first.file(name), draft / name)
    copied.promote(CONFIG, 1, draft.artefact, {"gate": {}})
    (draft.artefact.path / "model.safetensors").write_bytes(b"rotten")
    for _ in range(2):  # as long as it stands in
        said = run_check(names.CHAMPION, "champion_verifies", "0002")
        assert not said.passed and said.blocking and said.severity.value == "WARN"
        assert (
            "generation 0000 serves as champion in the place of generation 0001" in said.description
        )
    job = defs.get_repository_def().get_job(names.job_name(CONFIG))
    key = AssetCheckKey(names.asset_key(CONFIG, names.CHAMPION), "champion_verifies")
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(names.partitions_name(CONFIG), ["0002"])
        result = job.get_subset(
            asset_selection={names.asset_key(CONFIG, "selfplay_shards")},
            asset_check_selection={key},
        ).execute_in_process(
            run_config={"resources": {"settings": {"config": TINY}}},
            partition_key="0002",
            instance=instance,
            raise_on_error=False,
        )
        assert result.success
        assert last_reported(instance, CONFIG) == first.digest
    plan = copied.read_plan(CONFIG, 2)
    assert plan["champion"]["generation"] == plan["parent"]["generation"] == 0
    assert copied.require(CONFIG, 2, "selfplay_shards").metadata["selfplay/player"] == "network"


def test_objections_are_what_the_blocking_checks_say(copied: Store) -> None:
    step = Step(CONFIG, 0, copied, lambda *_: None, lambda: False)
    assert objections(step) == []
    replace(copied, "hard_examples", edit_table(lambda t: t.with_columns(reason=pl.lit("a whim"))))
    found = objections(step)
    assert any(one.startswith("hard_examples: examples_schema: ") for one in found)


def test_a_failed_blocking_check_stops_what_comes_after(
    copied: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ringrift_pipeline.training as training

    asked: list[str] = []
    monkeypatch.setattr(
        training, "average", lambda store, plan, **_: asked.append("average"), raising=False
    )
    replace(copied, "quality_scores", edit_table(lambda t: t.head(1)))
    monkeypatch.setattr(
        training,
        "score_games",
        lambda store, plan, **_: store.require(plan.config, plan.generation, "quality_scores"),
        raising=False,
    )
    job = defs.get_repository_def().get_job(names.job_name(CONFIG))
    with DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(names.partitions_name(CONFIG), ["0000"])
        result = job.execute_in_process(
            partition_key="0000", instance=instance, raise_on_error=False
        )
        assert not result.success
        made = {event.asset_key.path[-1] for event in result.get_asset_materialization_events()}
    assert made == {"selfplay_shards", "quality_scores"}
    assert asked == []
