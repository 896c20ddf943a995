"""What each asset is checked for: functions from a step to a verdict, one a check.

They read the artefact again, as whoever uses it next would, and never trust what its maker said
while making it. Rooms and heavy libraries are imported inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ringrift_pipeline.orchestration.step import Step
from ringrift_pipeline.store import (
    Artefact,
    CorruptArtefactError,
    MissingArtefactError,
    serving_champion,
)
from ringrift_pipeline.store.kinds import RATING

if TYPE_CHECKING:
    import polars as pl


MOST_COPIES = 0.1  # share of a generation's games
LEAST_GAMES = 50  # held out, below which a calibration error's interval means little
NO_WORSE = 0.01  # nats: what a few steps, or a model that has learned all there is, may lose


@dataclass(frozen=True)
class Judgement:
    """``passed``, one sentence why, and the numbers it rests on. ``stops``: whether a failure of a
    check that blocks does.
    """

    passed: bool
    why: str
    numbers: dict[str, float | int | str] = field(default_factory=dict)
    stops: bool = True


def judge(check: Callable[[Step], Judgement], step: Step) -> Judgement:
    """The check's judgement; what is missing, corrupt or cannot be read fails whatever asks for it
    (a room's typed errors are ValueErrors).
    """
    try:
        return check(step)
    except (CorruptArtefactError, MissingArtefactError, ValueError) as error:
        return Judgement(False, str(error))
    except (KeyError, TypeError, AttributeError) as error:  # no report or table of ours
        return Judgement(False, f"cannot be read: {type(error).__name__}: {error}")


def champion_verifies(step: Step) -> Judgement:
    """The champion's files are what was promoted. Where they are not, the champion before it serves,
    which is told until another is promoted; this blocks where there is none to fall back to.
    """
    champion = serving_champion(step.store, step.config)
    if champion is None:
        return Judgement(True, "no champion yet: the heuristic plays")
    numbers: dict[str, float | int | str] = {"generation": f"{champion.generation:04d}"}
    lost = champion.stands_in_for
    if lost is not None:
        why = f"generation {champion.generation:04d} serves as champion in the place of {lost}"
        return Judgement(False, why, numbers, stops=False)
    return Judgement(True, "every file has the hash it was promoted with", numbers)


def shards_complete(step: Step) -> Judgement:
    """Every shard of the plan is there, verifies, is the one collected, and holds its games."""
    plan = step.plan()
    index = step.store.require(step.config, step.generation, "selfplay_shards")
    listed = {entry["index"]: entry["digest"] for entry in index.read_json("shards.json")}
    games = positions = 0
    for shard in plan.shards:
        kind = f"selfplay-shard-{shard['index']:04d}"
        artefact = step.store.require(step.config, step.generation, kind)
        if listed.get(shard["index"]) != artefact.digest:
            return Judgement(False, f"{kind} is not the shard that was collected")
        if artefact.metadata["games"] != shard["games"]:
            return Judgement(
                False,
                f"{kind} has {artefact.metadata['games']} games, the plan says {shard['games']}",
            )
        games += artefact.metadata["games"]
        positions += artefact.metadata["positions"]
    return Judgement(
        True, f"{len(plan.shards)} shards verify", {"games": games, "positions": positions}
    )


def games_differ(step: Step) -> Judgement:
    """The generation's games are not copies of each other (a seed used twice would do that)."""
    from ringrift_pipeline.selfplay.collecting import moves_of_games

    kinds = (f"selfplay-shard-{shard['index']:04d}" for shard in step.plan().shards)
    played = moves_of_games(step.store.require(step.config, step.generation, k) for k in kinds)
    copies = played.height - played["selected"].n_unique()
    share = copies / max(played.height, 1)
    return Judgement(
        played.height > 0 and share <= MOST_COPIES,
        f"{copies} of {played.height} games are copies of another",
        {"selfplay/duplicate_share": share},
    )


def scores_sound(step: Step, table: pl.LazyFrame) -> Judgement:
    """One score in [0, 1] for every game of the generation, and they tell games apart."""
    import polars as pl

    frame = table.select("game_id", "generation", "score").collect()
    own = frame.filter(pl.col("generation") == step.generation).height
    games = step.plan().games
    sound = pl.col("score").is_finite() & pl.col("score").is_between(0.0, 1.0)
    bad = frame.height - frame.filter(sound).height  # a null is not sound either
    numbers: dict[str, float | int | str] = {"games": frame.height, "outside": bad}
    if frame["game_id"].n_unique() != frame.height:
        return Judgement(False, "a game has two scores", numbers)
    if own != games:
        return Judgement(False, f"{own} games have a score, {games} were played", numbers)
    if bad:
        return Judgement(False, f"{bad} scores are not in [0, 1]", numbers)
    if frame.height > 1 and frame["score"].n_unique() == 1:
        return Judgement(False, "all games have the same score", numbers)
    return Judgement(
        True, f"{frame.height} games scored", {**numbers, "distinct": frame["score"].n_unique()}
    )


def examples_sound(step: Step, table: pl.LazyFrame) -> Judgement:
    """Every example is one position with a finite hardness and a reason."""
    import polars as pl

    frame = table.select("game_id", "ply", "hardness", "reason").collect()
    numbers: dict[str, float | int | str] = {"examples": frame.height}
    if frame.height == 0:
        mined = step.store.require(step.config, step.generation, "hard_examples").metadata
        if mined.get("scored_rows") == 0:
            return Judgement(True, "all games of the generation are held out", numbers)
        return Judgement(False, "no example was mined", numbers)
    if frame.select("game_id", "ply").is_duplicated().any():
        return Judgement(False, "a position is listed twice", numbers)
    bad = frame.filter(~pl.col("hardness").is_finite().fill_null(False)).height
    if bad:
        return Judgement(False, f"{bad} examples have no finite hardness", numbers)
    if (frame["reason"].str.len_chars().fill_null(0) == 0).any():
        return Judgement(False, "an example has no reason", numbers)
    return Judgement(
        True,
        f"{frame.height} positions of {frame['game_id'].n_unique()} games",
        {**numbers, "games": frame["game_id"].n_unique()},
    )


def losses_finite(step: Step) -> Judgement:
    """Training ended on finite losses and finite weights."""
    artefact = step.store.require(step.config, step.generation, "checkpoint")
    losses = {
        name: value
        for name, value in artefact.metadata.items()
        if "loss" in name and name.startswith(("train/", "val/"))
    }
    # the store's strict JSON has no NaN: a loss that was not finite is null there
    bad = [name for name, value in losses.items() if value is None or not math.isfinite(value)]
    if not losses:
        return Judgement(False, "the checkpoint says nothing of its losses")
    if bad:
        return Judgement(False, f"{', '.join(bad)} is not finite")
    broken = _non_finite(artefact)
    if broken:
        return Judgement(False, f"weights {', '.join(broken[:3])} are not finite")
    why = "losses and weights are finite"
    left_out = artefact.metadata.get("train/steps_left_out")
    if left_out:
        why += f"; {left_out} steps were left out, {artefact.metadata['train/rollbacks']} rollbacks"
    return Judgement(True, why, dict(list(losses.items())[:8]))


def training_learned(step: Step) -> Judgement:
    """On games held out the loss is not more than 0.01 nats above that of the model it started
    from, beyond doubt, and the policy is better than choosing evenly among the legal moves.

    An even choice among n moves costs log n; log of the mean number of moves bounds its mean.
    """
    artefact = step.store.require(step.config, step.generation, "checkpoint")
    shards = step.store.require(step.config, step.generation, "selfplay_shards")
    learned: float = artefact.metadata["val/loss_policy"]
    if not artefact.metadata["val/policy_rows"]:
        return Judgement(False, "no held-out game has a full search to judge the policy by")
    even = math.log(shards.metadata["selfplay/mean_legal_moves"])
    numbers: dict[str, float | int | str] = {"val/loss_policy": learned, "even_choice": even}
    why = f"policy loss {learned:.3f} on held-out games, at most {even:.3f} for an even choice"
    if not learned < even:
        return Judgement(False, why, numbers)
    if artefact.metadata.get("val/gain_high") is None:
        return Judgement(True, f"{why}; {_not_compared(artefact)}", numbers)
    gain, low, high = (float(artefact.metadata[f"val/gain{end}"]) for end in ("", "_low", "_high"))
    numbers |= {"val/gain": gain, "val/gain_low": low, "val/gain_high": high}
    than = f"than its parent's on the same games ({-high:+.4f} to {-low:+.4f})"
    if high < -NO_WORSE:
        return Judgement(False, f"the loss is {-gain:.4f} higher {than}", numbers)
    return Judgement(True, f"{why}; the loss is {abs(gain):.4f} {_way(gain)} {than}", numbers)


def _not_compared(artefact: Artefact) -> str:
    """Why a training is not compared with its parent."""
    about = artefact.metadata
    if about.get("parent_generation") is None:
        return "there is no earlier model to compare with"
    if "val/gain" in about:
        return "one held-out game is too few to compare with its parent by"
    return f"not compared with its parent: {about.get('parent_note')}"


def _way(gain: float) -> str:
    return "lower" if gain >= 0.0 else "higher"


def _tensors(artefact: Artefact) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(artefact.file("model.safetensors"))


def _non_finite(artefact: Artefact) -> list[str]:
    import numpy as np

    return [
        name
        for name, tensor in _tensors(artefact).items()
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all()
    ]


def average_fits(step: Step) -> Judgement:
    """The candidate has the checkpoint's tensors, all finite; without averaging the same numbers."""
    import numpy as np

    from ringrift_pipeline.training.averaging import LAST

    average = step.store.require(step.config, step.generation, "ema_model")
    checkpoint = step.store.require(step.config, step.generation, "checkpoint")
    ours, theirs = _tensors(average), _tensors(checkpoint)
    shapes = {name: tensor.shape for name, tensor in ours.items()}
    if shapes != {name: tensor.shape for name, tensor in theirs.items()}:
        odd = sorted(shapes.keys() ^ theirs.keys()) or sorted(
            name for name in shapes if shapes[name] != theirs[name].shape
        )
        return Judgement(False, f"tensors differ from the checkpoint's: {', '.join(odd[:3])}")
    broken = _non_finite(average)
    if broken:
        return Judgement(False, f"weights {', '.join(broken[:3])} are not finite")
    norm = math.sqrt(
        sum(float(np.square(tensor, dtype=np.float64).sum()) for tensor in ours.values())
    )
    away = math.sqrt(
        sum(
            float(np.square(tensor - theirs[name], dtype=np.float64).sum())
            for name, tensor in ours.items()
        )
    )
    numbers: dict[str, float | int | str] = {"distance": away / max(norm, 1e-12), "norm": norm}
    if away and average.metadata.get("weights") == LAST:
        return Judgement(False, "it is to be the checkpoint's last weights, and is not", numbers)
    return Judgement(True, "same tensors, all finite", numbers)


def precision_holds(step: Step) -> Judgement:
    """In the arithmetic that search uses the policy is what it is in float32: on held-out positions
    the mean KL divergence is at most 0.001 nats.
    """
    from ringrift_pipeline.network import DIVERGENCE, MOST_DIVERGENCE, UNMEASURED

    model = step.store.require(step.config, step.generation, "ema_model").metadata
    if UNMEASURED in model:
        return Judgement(False, f"it could not be measured: {model[UNMEASURED]}")
    if DIVERGENCE not in model:
        return Judgement(True, "not measured: it was made by an earlier version, which did not")
    precision, divergence = model["search_precision"], model[DIVERGENCE]
    if precision == "float32":
        return Judgement(True, "search computes in float32")
    where = f"on {model['precision_positions']} held-out positions"
    if divergence is None:
        return Judgement(False, f"in {precision} the policy is not finite {where}")
    return Judgement(
        divergence <= MOST_DIVERGENCE,
        f"in {precision} the policy is {divergence:.2g} nats from that in float32, in the mean "
        f"{where}; at most {MOST_DIVERGENCE:g} is allowed",
        {DIVERGENCE: divergence},
    )


def members_verify(step: Step) -> Judgement:
    """Every member of the ensemble is a model of this store that verifies."""
    from ringrift_pipeline.selfplay.opponents import listed_members

    artefact = step.store.require(step.config, step.generation, "ensemble")
    members = listed_members(artefact)
    most = step.plan().settings.ensemble.members
    if not 1 <= len(members) <= most:
        return Judgement(False, f"{len(members)} members, between 1 and {most} were asked for")
    for member in members:
        found = step.store.open(step.store.root / member["path"], verify=True)
        if found.digest != member["digest"]:
            return Judgement(False, f"{member['path']} is not the model that was listed")
    return Judgement(True, f"{len(members)} members verify", {"members": len(members)})


def calibration_sound(step: Step) -> Judgement:
    """The numbers are possible, the temperature does not make the error clearly worse, and the
    error that is left is not above ``calibration.max_error`` beyond doubt: of all held-out games, of
    those that judge the temperature where one is applied.
    """
    artefact = step.store.require(step.config, step.generation, "calibration_report")
    report = artefact.read_json("report.json")
    numbers = {name: report[name] for name in ("ece_before", "ece_after", "temperature")}
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in numbers.values()):
        return Judgement(False, "the report holds a number that is not finite")
    before, after, temperature = numbers.values()
    if temperature <= 0.0:
        return Judgement(False, f"temperature {temperature} is not positive", numbers)
    if not report["positions"]:
        return Judgement(False, "no held-out position was judged", numbers)
    why = f"calibration error {before:.3f} before scaling, {after:.3f} after"
    if abs(after) > abs(before) + report["deviation_threshold"]:
        return Judgement(False, why, numbers)
    if report["applied"]:
        left, (low, high), games = (
            after,
            report["ece_after_interval"],
            report["fit"]["games_judged"],
        )
    else:
        left, games = report["held_out"]["calibration_error"], report["games"]
        low, high = report["held_out"]["calibration_error_interval"]
    if games < LEAST_GAMES:
        return Judgement(True, f"{why}, of {games} games: too few to hold a bound", numbers)
    most = step.plan().settings.calibration.max_error
    numbers |= {"ece_low": low, "ece_high": high, "most": most}
    return Judgement(
        low <= most,
        f"{why}; {left:.3f} ({low:.3f} to {high:.3f}) is left, of {games} games, at most {most:g} is "
        "allowed",
        numbers,
    )


def evaluation_sound(step: Step) -> Judgement:
    """What was evaluated is the current candidate, over whole rotated sets, rated with intervals, and
    the numbers that the asset shows are the report's.
    """

    from ringrift_pipeline.evaluation.evaluating import games_of, numbers

    artefact = step.store.require(step.config, step.generation, "evaluation")
    model = step.store.require(step.config, step.generation, "ema_model")
    report = artefact.read_json("report.json")
    if report["candidate"]["digest"] != model.digest:
        return Judgement(False, "the model that was evaluated is not the current ema_model")
    players = int(step.config[-2])
    for match in report["matches"]:
        if match["games"] != match["sets"] * players or not match["sets"]:
            return Judgement(
                False,
                f"against {match['opponent']}: {match['games']} games are not whole sets of "
                f"{players} seats",
            )
        if not match["low"] <= match["win_rate"] <= match["high"]:
            return Judgement(
                False, f"against {match['opponent']}: the win rate is outside its interval"
            )
    played = sum(match["games"] for match in report["matches"])
    rows = games_of(artefact).height
    if rows != played:
        return Judgement(False, f"the report counts {played} games, {rows} were recorded")
    rating = report["ratings"].get(report["candidate"]["name"])
    if rating is None:
        return Judgement(False, "the candidate has no rating")
    low, middle, high = rating["low"], rating["rating"], rating["high"]
    if any(value is None or not math.isfinite(value) for value in (low, middle, high)):
        return Judgement(False, "the candidate's rating is not finite")
    if not low <= middle <= high:
        return Judgement(False, f"rating {middle:.0f} is outside its interval")
    shown = artefact.metadata
    for name, value in numbers(report).items():
        if name != "reasons" and shown.get(name, value) != value:
            return Judgement(False, f"the asset shows {name} {shown[name]}, the report {value}")
    scale = "" if RATING in shown else " where random play has 0"
    return Judgement(
        True,
        f"{played} games in whole rotated sets, rating {middle:.0f} ({low:.0f} to {high:.0f}){scale}",
        {"eval/games": played, **({RATING: shown[RATING]} if RATING in shown else {})},
    )


def beats_random(step: Step) -> Judgement:
    """The candidate wins more than its share against random play."""
    artefact = step.store.require(step.config, step.generation, "evaluation")
    rate = artefact.metadata.get("eval/win_rate_random")
    fair = 1.0 / int(step.config[-2])
    if rate is None:
        return Judgement(False, "no games against random were played")
    return Judgement(
        rate > fair,
        f"{rate:.0%} of games against random play won, {fair:.0%} would be chance",
        {"eval/win_rate_random": rate},
    )
