"""What is in a data root, told so that two of the same content compare equal whenever each was made."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ringrift_pipeline.selfplay import load_plan
from ringrift_pipeline.selfplay.shards import column, read_shard
from ringrift_pipeline.store import Artefact, CorruptArtefactError, Store

TIMED = {"shards.json", "summary.json"}  # they say how long it took
# An artefact's folder is named by the moment at which it landed.
FOLDER = re.compile(rb"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{8}")


def contents(artefact: Artefact) -> dict[str, str]:
    """Names and hashes of an artefact's files; names of folders in them do not count."""
    found = {}
    for name in artefact.files:
        if name in TIMED:
            continue
        data = (artefact.path / name).read_bytes()
        if name.endswith(".json"):
            data = FOLDER.sub(b"*", data)
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def made(root: Path) -> dict[str, Any]:
    """Every plan, the files of every current artefact by hash, every promotion, what was exported."""
    store = Store(root)
    found: dict[str, Any] = {}
    for config in store.configs():
        for generation in store.generations(config):
            where = f"{config} {generation}"
            found[f"{where} plan"] = _plan(store, config, generation)
            for kind in store.kinds(config, generation):
                try:
                    artefact = store.current(config, generation, kind)
                except CorruptArtefactError:
                    continue
                if artefact is not None:
                    found[f"{where} {kind}"] = contents(artefact)
        champion = store.champion(config)
        found[f"{config} champion"] = champion and (champion.generation, champion.digest)
        found[f"{config} promotions"] = [one.generation for one in store.champions(config)]
    if (root / "exported" / "model").exists():
        found["exported"] = exported(root / "exported" / "model")
    return found


def _plan(store: Store, config: str, generation: int) -> bytes:
    plan = store.read_plan(config, generation)
    del plan["created"]
    if plan["ensemble"] is not None:
        plan["ensemble"]["digest"] = "*"  # its list of members names folders
    return FOLDER.sub(b"*", json.dumps(plan, sort_keys=True).encode())


def exported(folder: Path) -> list[str]:
    """The lines of an export's sums, all of which are right."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    assert {line.partition("  ")[2] for line in lines} | {"SHA256SUMS"} == {
        path.name for path in folder.iterdir()
    }
    return lines


def everything(root: Path, config: str, last: int, games: int) -> dict[str, Any]:
    """`made`, when generations 0 to ``last`` are finished: each has its games, each of them once,
    and of every kind but decisions nothing but one content has ever landed.
    """
    store = Store(root)
    assert store.generations(config) == list(range(last + 1))
    found = made(root)
    for generation in range(last + 1):
        played: list[str] = []
        for index in range(len(load_plan(store, config, generation).shards)):
            shard = store.require(config, generation, f"selfplay-shard-{index:04d}")
            played += dict.fromkeys(column(read_shard(shard.file("shard.arrow")), "game_id"))
        assert len(played) == len(set(played)) == games
        found[f"{generation} games"] = sorted(played)
        for kind in store.kinds(config, generation):
            landed = {
                str(sorted(contents(one).items()))
                for one in store.artefacts(config, generation, kind)
            }
            assert len(landed) == 1 or kind == "decision", f"{generation} {kind}: {len(landed)}"
    return found
