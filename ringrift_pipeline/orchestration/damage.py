"""What was found damaged and put aside, told once: whoever found it, and however the loop goes on."""

from __future__ import annotations

from ringrift_pipeline.orchestration.names import generation_key
from ringrift_pipeline.orchestration.notify import Alert
from ringrift_pipeline.orchestration.outbox import Outbox
from ringrift_pipeline.store import Quarantined, Store, quarantined, reason_of
from ringrift_pipeline.store.kinds import EMA_MODEL, SHARD_PREFIX

DAMAGED = "damaged"  # kind of an alert

_PLAYED = (
    "It is played again when it is next needed, and serves if that gives the same bytes; if not, the "
    "next plan does without it."
)
_MODEL = (
    "An earlier one of its generation serves if there is one. Else training goes on from an older "
    "generation's, and if it was champion the champion before it plays, which the check "
    "champion_verifies tells of until another is promoted."
)
_POINTER = "It was written again as the last line of champions.jsonl says."
_OTHER = "It is made again, or done without, when it is next needed."


def tell_damage(store: Store, outbox: Outbox, config: str) -> None:
    """Put an alert for everything that lies in the quarantine of a config. The notes of what was
    put before are not read.
    """
    for one in quarantined(store, config):
        if not outbox.holds(DAMAGED, _key(config, one)):
            outbox.put(_alert(store, config, one))


def _key(config: str, one: Quarantined) -> str:
    return f"{config}/{_text(one.name)}"


def _text(name: str) -> str:
    """A name as text, also one that is none: folders are not only ours to name."""
    return name.encode("utf-8", "backslashreplace").decode()


def _alert(store: Store, config: str, one: Quarantined) -> Alert:
    note = {key: _text(said) for key, said in reason_of(store, config, one.name).items()}
    key = None if one.generation is None else generation_key(one.generation)
    what = _text(one.kind or note["found_at"].rpartition("/")[2])
    where = config if key is None else f"{config} generation {key}"
    return Alert(
        kind=DAMAGED,
        key=_key(config, one),
        title=f"{where}: {what} was damaged",
        text=f"{note['found_at']}: {note['reason']}. It lies in the quarantine of {config} as "
        f"{_text(one.name)}. {_follows(what)}",
        config=config,
        generation=key,
        details=note,
    )


def _follows(what: str) -> str:
    """How the loop goes on without it."""
    if what.startswith(SHARD_PREFIX):
        return _PLAYED
    return {EMA_MODEL: _MODEL, "champion.json": _POINTER}.get(what, _OTHER)
