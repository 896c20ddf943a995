"""Collecting a generation's shards: an index of them and what was played."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ringrift_pipeline.selfplay.plan import Plan
from ringrift_pipeline.selfplay.playing import up_to_date
from ringrift_pipeline.selfplay.ragged import offsets_of
from ringrift_pipeline.store.kinds import made_by

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from ringrift_pipeline.store import Artefact, Store

KIND = "selfplay_shards"
INDEX = "shards.json"
SUMMARY = "summary.json"

_COLUMNS = (
    "game_id",
    "game",
    "ply",
    "player",
    "policy",
    "full_search",
    "selected",
    "outcome",
    "surprise",
    "game_plies",
    "reason",
)


def collect(store: Store, plan: Plan) -> Artefact:
    """Check that every shard of a plan has landed, and write their index and a summary.

    ``shards.json`` lists ``{"index", "games", "positions", "digest", "path"}``; ``summary.json``
    holds games, positions, rates, mean plies, wins by seat, draws, how games ended, and how many
    games are distinct. Where the champion met earlier models, ``opponents`` names them, and
    ``opponent_games`` and ``win_rate_opponent`` (the champion's share of the win against them, even
    being 1 / players) say how that went. ``mean_surprise`` and ``full_search_fraction`` are of what
    the champion decided; the heuristic, which has no prior to be surprised at, has no surprise.
    ``cut_short`` is the share of games that ended at ``selfplay.max_plies``.
    ``measures`` are those of `measures.measure_play`, which drift
    is judged by; ``replay`` the ids of games worth a look. The same numbers are metadata named ``selfplay/…``, with the measures' values.

    Raises
    ------
    MissingArtefactError
        naming the first shard that has not been played.
    """
    from ringrift_pipeline.selfplay.pictures import draw_entropy
    from ringrift_pipeline.selfplay.shards import shard_kind
    from ringrift_pipeline.store import CorruptArtefactError, write_json_atomic

    shards = [
        store.require(plan.config, plan.generation, shard_kind(index))
        for index in range(len(plan.shards))
    ]
    digests = [shard.digest for shard in shards]
    try:
        existing = store.current(plan.config, plan.generation, KIND)
    except CorruptArtefactError:
        existing = None
    if (
        existing is not None
        and existing.metadata.get("shards") == digests
        and up_to_date(existing)
        and existing.files.keys() >= {INDEX, SUMMARY}
    ):
        return existing
    summary, searches = _summary(plan, shards)
    metadata: dict[str, Any] = {"plan": plan.digest, "shards": digests, **made_by(KIND)}
    metadata |= {f"selfplay/{name}": value for name, value in summary.items()}
    metadata["measures"] = metadata.pop("selfplay/measures")
    metadata["replay"] = metadata.pop("selfplay/replay")
    metadata |= {
        f"selfplay/{name}": figure["value"]
        for name, figure in summary["measures"].items()
        if name != "plies"  # selfplay/mean_plies says it, of all games
    }
    index = [
        {
            "index": number,
            "games": shard.metadata["games"],
            "positions": shard.metadata["positions"],
            "digest": shard.digest,
            "path": shard.path.relative_to(Path(store.root)).as_posix(),
        }
        for number, shard in enumerate(shards)
    ]
    with store.create(plan.config, plan.generation, KIND, metadata=metadata) as draft:
        write_json_atomic(draft / INDEX, index)
        write_json_atomic(draft / SUMMARY, summary)
        draw_entropy(draft, *searches)
    return draft.artefact


def moves_of_games(shards: Iterable[Artefact]) -> pl.DataFrame:
    """The packed moves decided on in every game of the shards: ``game_id``, ``selected`` (a list).

    Raises
    ------
    ShardError
        if a file is no shard.
    """
    import polars as pl

    from ringrift_pipeline.selfplay.shards import SHARD_FILE, read_shard

    frames = []
    for shard in shards:
        table = read_shard(shard.file(SHARD_FILE), ("game_id", "selected"))
        frames.append(pl.DataFrame(pl.from_arrow(table)))
    return pl.concat(frames).group_by("game_id", maintain_order=True).agg("selected")


def _summary(
    plan: Plan, shards: list[Artefact]
) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The summary; ply, entropy and number of legal moves (K,) of the full searches."""
    from ringrift_pipeline.game import layout
    from ringrift_pipeline.selfplay.measures import measure_play
    from ringrift_pipeline.selfplay.shards import SHARD_FILE, read_shard

    games: list[dict[str, Any]] = []
    legal = own = full = surprise = 0.0
    against: list[np.ndarray] = []
    searches: list[np.ndarray] = []
    for shard, planned in zip(shards, plan.shards, strict=True):
        table = read_shard(shard.file(SHARD_FILE), _COLUMNS)
        games.append(_games(table, planned.get("opponent")))
        legal += games[-1].pop("legal").sum()
        own += games[-1].pop("own")
        full += games[-1].pop("full")
        surprise += games[-1].pop("surprise")
        searches.append(games[-1].pop("searches"))
        numbers = games[-1].pop("number")
        met = planned.get("opponent")
        games[-1]["alone"] = numbers >= (met["games"] if met else 0)
        if met:
            against.append(_champions_shares(met, numbers, games[-1]["outcome"]))
    joined = {name: np.concatenate([part[name] for part in games]) for name in games[0]}
    positions = int(joined["decisions"].sum())
    seconds = _busy_seconds(shards)
    outcome = joined["outcome"]
    clear = outcome.max(axis=1) > 1.0 - 1e-6
    wins = np.bincount(outcome.argmax(axis=1)[clear], minlength=outcome.shape[1])
    alone, whole = joined["alone"], joined["reason"] >= 0
    names = {-1: "cut_short"} | dict(enumerate(layout.REASON_NAMES))
    reasons, counts = np.unique(joined["reason"], return_counts=True)
    played = len(clear)
    summary = {
        "player": shards[0].metadata["player"],
        "games": played,
        "positions": positions,
        "games_per_s": played / seconds,
        "positions_per_s": positions / seconds,
        "seconds": seconds,
        "mean_plies": float(joined["plies"].mean()),
        "mean_decisions": positions / played,
        "mean_legal_moves": legal / positions,
        "full_search_fraction": full / max(own, 1),
        **({"mean_surprise": surprise / full} if surprise else {}),
        "distinct_games": len(np.unique(joined["trace"])),
        "draws": int((whole & ~clear).sum()),
        "cut_short": float(1.0 - whole.mean()),
        **{f"wins_seat_{seat + 1}": int(count) for seat, count in enumerate(wins)},
        "mean_outcome": [float(share) for share in outcome.mean(axis=0)],
        "endings": {
            names[int(reason)]: int(count) for reason, count in zip(reasons, counts, strict=True)
        },
        "measures": measure_play(
            joined["plies"][alone], outcome[alone], joined["entropy"][alone], whole[alone]
        ),
        **_opponents(plan, against),
        "replay": _shown_games(joined),
    }
    ply, entropy, legal_moves = np.concatenate(searches, axis=1)
    return summary, (ply.astype(np.int64), entropy, legal_moves.astype(np.int64))


def _shown_games(games: dict[str, np.ndarray]) -> dict[str, str]:
    """Ids of the games that a person would look at first; of the longest, whole ones before those
    that were cut short. None is surprising where the heuristic played, which records no surprise.
    """
    plies, whole = games["plies"], games["reason"] >= 0
    chosen = {"longest": max(range(len(plies)), key=lambda game: (whole[game], plies[game]))}
    surprise = games["surprise_a_decision"]
    if surprise.any():
        chosen["most surprising"] = int(surprise.argmax())
    ids: list[str] = games["id"].tolist()
    return {what: ids[place] for what, place in chosen.items()}


def _champions_shares(
    opponent: dict[str, Any], numbers: np.ndarray, outcome: np.ndarray
) -> np.ndarray:
    """The champion's share of the win in a shard's games against its opponent."""
    met = numbers < opponent["games"]
    return outcome[met, _champions_seats(opponent, numbers[met], outcome.shape[1])]


def _champions_seats(opponent: dict[str, Any], numbers: np.ndarray, seats: int) -> np.ndarray:
    """Where the champion sits in each of the games against an opponent."""
    return (opponent["first_seat"] + numbers) % seats


def _opponents(plan: Plan, against: list[np.ndarray]) -> dict[str, Any]:
    """What came of the games against earlier models; nothing where there were none."""
    if not against:
        return {}
    shares = np.concatenate(against)
    met = [shard["opponent"] for shard in plan.shards if shard.get("opponent")]
    return {
        "opponents": sorted({f"generation:{entry['generation']:04d}" for entry in met}),
        "opponent_games": len(shares),
        "win_rate_opponent": float(shares.mean(dtype=np.float64)),
    }


def _games(table: pa.Table, opponent: dict[str, Any] | None) -> dict[str, Any]:
    """Per-game figures of one shard, and sums over its decisions: ``own`` counts the champion's,
    ``full`` its full searches (an opponent makes none), whose surprise ``surprise`` is.
    """
    from ringrift_pipeline.selfplay.measures import policy_entropies
    from ringrift_pipeline.selfplay.shards import column, ragged_column

    ids = table.column("game_id").combine_chunks().dictionary_encode()
    game = ids.indices.to_numpy(zero_copy_only=False)
    first = np.unique(game, return_index=True)[1]
    selected = column(table, "selected")
    counts = np.bincount(game)
    starts = offsets_of(counts)
    traces = [hash(selected[starts[i] : starts[i + 1]].tobytes()) for i in range(len(counts))]
    lengths, policy = ragged_column(table, "policy")
    full = column(table, "full_search")
    entropies = policy_entropies(policy, lengths)
    entropy = np.bincount(game, np.where(full, entropies, 0.0))
    searched = np.bincount(game, full)
    surprise = column(table, "surprise").astype(np.float64)
    own = np.ones(len(game), np.bool_)
    if opponent is not None:
        numbers, seats = column(table, "game"), column(table, "outcome").shape[1]
        mine = column(table, "player") == _champions_seats(opponent, numbers, seats)
        own = (numbers >= opponent["games"]) | mine
    return {
        "id": np.array(ids.dictionary.to_pylist(), dtype=object),
        "surprise_a_decision": np.bincount(game, surprise) / counts,
        "entropy": np.where(searched > 0, entropy / np.maximum(searched, 1), np.nan),
        "number": column(table, "game")[first],
        "decisions": counts,
        "outcome": column(table, "outcome")[first],
        "plies": column(table, "game_plies")[first],
        "reason": column(table, "reason")[first],
        "trace": np.array(traces, np.int64),
        "legal": lengths,
        "own": own.sum(),
        "full": full.sum(),
        "surprise": surprise[full].sum(),
        "searches": np.stack([column(table, "ply"), entropies, lengths])[:, full],
    }


def _busy_seconds(shards: list[Artefact]) -> float:
    """Seconds in which at least one of the shards was being played."""
    spans = sorted(
        (shard.metadata["started"], shard.metadata["started"] + shard.metadata["seconds"])
        for shard in shards
    )
    busy, reached = 0.0, -np.inf
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return max(float(busy), 1e-9)
