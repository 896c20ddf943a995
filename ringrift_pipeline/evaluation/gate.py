"""The promotion gate: intervals, a sequential test on rotated sets, floors against baselines.

The unit of evidence is the *rotated set*: the games of one opening with the candidate in every
seat once. Its score is the candidate's mean share of the win, so a set of two games has up to five
outcomes (three where nobody draws) and the test below is the pentanomial one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri

from ringrift_pipeline.evaluation.ratings import expected_share

if TYPE_CHECKING:
    from ringrift_pipeline.enhancements.config_stages import EvaluationConfig

__all__ = [
    "Floor",
    "GateDecision",
    "SprtResult",
    "decide",
    "sequential_test",
    "set_interval",
    "sprt",
    "wilson_interval",
]


def sequential_test(settings: EvaluationConfig) -> dict[str, Any]:
    """The sequential test that the settings ask for, as `sprt` and `decide` take it."""
    return {
        "elo0": settings.elo0,
        "elo1": settings.elo1,
        "alpha": settings.alpha,
        "beta": settings.beta,
    }


def wilson_interval(wins: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson (1927) score interval of a proportion.

    Args:
        wins: successes, shares count in part; 0 <= wins <= n.
        n: trials, an effective number may be fractional; 0 gives (0, 1).
        confidence: in (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    if not (math.isfinite(wins) and math.isfinite(n) and 0.0 <= wins <= n):
        raise ValueError(f"wins must lie in [0, n], got {wins} of {n}")
    if n == 0:
        return 0.0, 1.0
    z = float(ndtri(0.5 + confidence / 2.0))
    p = wins / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Of no wins, or of nothing else, the interval ends there, which rounding may miss.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def set_interval(
    scores: Sequence[float] | np.ndarray, players: int = 2, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson interval of the win rate from rotated sets.

    The number of games is divided by the sets' design effect where games of a set go together
    (never multiplied where they cancel), so the interval is not too narrow either way.

    Args:
        scores: mean share of the win of each set, in [0, 1].
        players: games in a set.
        confidence: in (0, 1).
    """
    values = _scores(scores)
    if not values.size:
        return 0.0, 1.0
    mean, games = float(values.mean()), values.size * players
    effect = 1.0
    if values.size > 1 and 0.0 < mean < 1.0:
        effect = max(1.0, float(values.var(ddof=1)) * players / (mean * (1.0 - mean)))
    return wilson_interval(mean * games / effect, games / effect, confidence)


def _scores(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0.0) & (values <= 1.0)).all():
        raise ValueError("set scores must be a flat list of numbers in [0, 1]")
    return values


# -- sequential test ------------------------------------------------------------------------


@dataclass(frozen=True)
class SprtResult:
    """State of a sequential probability ratio test.

    Attributes:
        llr: log likelihood ratio of elo1 against elo0.
        lower, upper: bounds; at or below lower elo0 is accepted, at or above upper elo1.
        verdict: "accept" (the candidate is elo1 better), "reject" or "continue".
        sets: rotated sets looked at.
        score: their mean, the candidate's share of the win.
        elo0, elo1, alpha, beta: the test.
    """

    llr: float
    lower: float
    upper: float
    verdict: str
    sets: int
    score: float
    elo0: float
    elo1: float
    alpha: float
    beta: float

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def _tilted(support: np.ndarray, p: np.ndarray, mean: float) -> np.ndarray:
    """Likeliest distribution of frequencies `p` over `support` that has this mean.

    It is p / (1 + t * (support - mean)) with the t that makes it sum to 1 (Owen 1988, empirical
    likelihood); t lies between the poles of the denominators, where the condition is monotone.
    """
    offset = support - mean

    def condition(t: float) -> float:
        return float((p * offset / (1.0 + t * offset)).sum())

    low, high = -1.0 / offset.max(), -1.0 / offset.min()
    inset = 1e-9 * (high - low)
    t = float(brentq(condition, low + inset, high - inset, xtol=1e-13))
    return p / (1.0 + t * offset)


def sprt(
    scores: Sequence[float] | np.ndarray,
    elo0: float = 0.0,
    elo1: float = 35.0,
    alpha: float = 0.05,
    beta: float = 0.05,
    players: int = 2,
) -> SprtResult:
    """Generalised sequential probability ratio test on rotated sets.

    The log likelihood ratio is that of the likeliest multinomial distributions of set scores whose
    means are what elo0 and elo1 predict (Van den Bergh's pentanomial model, for sets of any size),
    so draws and dependence within a set need no parameter. A thousandth of a set at each end of
    the scale keeps both hypotheses possible.

    Args:
        scores: mean share of the win of each rotated set so far, in order.
        elo0: strength difference, Elo, up to which the candidate is rejected.
        elo1: strength difference from which it is accepted; > elo0.
        alpha: error rate at elo0 (accepted though no better).
        beta: error rate at elo1 (rejected though better).
        players: seats; the candidate holds one, its opponent all the others.

    Raises:
        ValueError: for scores outside [0, 1], elo0 >= elo1 or error rates outside (0, 0.5).
    """
    if not (math.isfinite(elo0) and math.isfinite(elo1) and elo0 < elo1):
        raise ValueError(f"elo0 must be below elo1, got {elo0} and {elo1}")
    if not (0 < alpha < 0.5 and 0 < beta < 0.5):
        raise ValueError(f"alpha and beta must lie in (0, 0.5), got {alpha} and {beta}")
    if players not in (2, 3, 4):
        raise ValueError(f"players must be 2, 3 or 4, got {players}")
    values = _scores(scores)
    lower, upper = math.log(beta / (1 - alpha)), math.log((1 - beta) / alpha)
    llr, score = 0.0, float(values.mean()) if values.size else float("nan")
    if values.size:
        support, counts = np.unique(np.round(values, 9), return_counts=True)
        ends = np.array([0.0, 1.0])
        support = np.concatenate([support, ends])
        p = np.concatenate([counts.astype(np.float64), np.full(2, 1e-3)])
        support, which = np.unique(support, return_inverse=True)
        p = np.bincount(which, weights=p) / p.sum()
        null = _tilted(support, p, expected_share(elo0, players))
        better = _tilted(support, p, expected_share(elo1, players))
        llr = float(values.size * (p * np.log(better / null)).sum())
    verdict = "accept" if llr >= upper else "reject" if llr <= lower else "continue"
    return SprtResult(llr, lower, upper, verdict, int(values.size), score, elo0, elo1, alpha, beta)


# -- decision -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floor:
    """Candidate and champion against one baseline, as the gate saw them.

    Attributes:
        baseline: name.
        share: candidate's share of the win against it.
        low, high: interval of the share.
        even: share of equals, 1 / players.
        champion_share: champion's share against it, None where not known or no champion.
        required: whether the candidate had to pass.
        passed: whether it did.
    """

    baseline: str
    share: float
    low: float
    high: float
    even: float
    champion_share: float | None
    required: bool
    passed: bool


@dataclass(frozen=True)
class GateDecision:
    """Verdict of the gate.

    Attributes:
        promote: the candidate becomes champion.
        reasons: sentences for people, the decisive ones first.
        floors: one for each baseline.
        sprt: the test against the champion, None where there is none or it was not met.
        first: there was no champion yet, floors alone decided.
    """

    promote: bool
    reasons: list[str]
    floors: list[Floor] = field(default_factory=list)
    sprt: SprtResult | None = None
    first: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def decide(
    baselines: Mapping[str, Sequence[float] | np.ndarray],
    champion: Sequence[float] | np.ndarray | None = None,
    champion_shares: Mapping[str, float] | None = None,
    *,
    players: int = 2,
    has_champion: bool | None = None,
    elo0: float = 0.0,
    elo1: float = 35.0,
    alpha: float = 0.05,
    beta: float = 0.05,
    confidence: float = 0.95,
) -> GateDecision:
    """Decide whether a candidate becomes champion.

    With a champion: the sequential test against it must accept, and the candidate must not lose
    to any baseline that the champion beats (a baseline against which the champion's record is not
    known counts as beaten). Without one, the baseline floor decides alone: the candidate must not
    lose to any baseline, and must beat ``random`` beyond doubt, where it is among them.

    "Lose" is a share of the win below even; "beyond doubt" an interval above even.

    Args:
        baselines: name -> set scores of the candidate against it.
        champion: set scores against the champion; None without one.
        champion_shares: name -> champion's share of the win against the baseline.
        players: seats of the game.
        has_champion: default whether `champion` is given. Where there is one that was not met,
            nothing is promoted.
        elo0, elo1, alpha, beta: of the test, see `sprt`.
        confidence: of the floors' intervals.

    Raises:
        ValueError: for bad scores, or neither baselines nor a champion to judge by.
    """
    if has_champion is None:
        has_champion = champion is not None
    if not baselines and not has_champion:
        raise ValueError("the gate needs games against a baseline or the champion")
    shares = dict(champion_shares or {})
    even = 1.0 / players
    floors, good, bad = [], [], []
    for name, scores in baselines.items():
        values = _scores(scores)
        if not values.size:
            raise ValueError(f"there are no games against the baseline {name!r}")
        share = float(values.mean())
        low, high = set_interval(values, players, confidence)
        known = shares.get(name)
        required = not has_champion or known is None or known > even
        certain = not has_champion and name == "random"
        passed = low > even if certain else share >= even
        floors.append(Floor(name, share, low, high, even, known, required, passed))
        record = f"{share:.0%} of the wins against {name} ({low:.0%} to {high:.0%})"
        if not required:
            good.append(f"{record}; the champion does not beat it either, so no floor there")
        elif passed:
            good.append(f"{record}, even is {even:.0%}: floor passed")
        elif certain:
            bad.append(f"{record}: not beyond doubt above even ({even:.0%})")
        else:
            beaten = f", which the champion beats ({known:.0%})" if known is not None else ""
            bad.append(f"loses to {name}{beaten}: {record}, even is {even:.0%}")

    test = None
    if has_champion and champion is None:
        bad.insert(0, "the champion was not met: name champion among evaluation.opponents")
    elif has_champion and champion is not None:
        test = sprt(champion, elo0, elo1, alpha, beta, players)
        numbers = (
            f"log likelihood ratio {test.llr:.2f}, bounds {test.lower:.2f} and {test.upper:.2f}, "
            f"after {test.sets} rotated sets"
        )
        if test.sets:
            numbers += f", {test.score:.0%} of the wins"
        if test.verdict == "accept":
            good.insert(0, f"better than the champion, {elo1:g} against {elo0:g} Elo: {numbers}")
        elif test.verdict == "reject":
            bad.insert(0, f"not {elo1:g} Elo better than the champion: {numbers}")
        else:
            line = f"not proven better than the champion: {numbers}; more games would tell"
            best = sprt(np.ones(test.sets), elo0, elo1, alpha, beta, players)
            # So many games may prove nothing, whoever wins them.
            if test.sets and best.verdict != "accept":
                line = (
                    f"not proven better than the champion: {numbers}; not even "
                    f"{test.sets * players} wins could (they make {best.llr:.2f}): raise "
                    "evaluation.max_games, or evaluation.elo1 to look for bigger steps only"
                )
            bad.insert(0, line)
    else:
        line = "no champion yet: the baseline floor decides"
        (bad if bad else good).insert(0, line)
    return GateDecision(not bad, bad + good, floors, test, not has_champion)
