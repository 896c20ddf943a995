"""A model as a folder that people know what to do with: ONNX, safetensors, card, example."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ringrift_pipeline.network.checkpoint import SIDECAR_FILE, WEIGHTS_FILE, save_model
from ringrift_pipeline.network.encoder import encode_states
from ringrift_pipeline.network.encoding import ENCODING_VERSION, GLOBAL_NAMES, PLANE_NAMES
from ringrift_pipeline.network.model import RingRiftNetwork
from ringrift_pipeline.network.model_card import model_card
from ringrift_pipeline.network.move_logits import MASKED_LOGIT
from ringrift_pipeline.network.moves import MOVE_KIND_NAMES
from ringrift_pipeline.network.onnx_check import Agreement, answers, compare
from ringrift_pipeline.network.onnx_export import (
    OPSET,
    ExportError,
    export_onnx,
    first_choices,
)
from ringrift_pipeline.store import read_bounded, write_bytes_atomic, write_json_atomic
from ringrift_pipeline.store.atomic import (
    TEMPORARY,
    ensure_folder,
    fsync_path,
    remove_abandoned,
    temporary_folder,
)
from ringrift_pipeline.store.manifest import ManifestMismatch, hash_file, walk_files

if TYPE_CHECKING:
    from ringrift_pipeline.game import Rules

ONNX_FILE = "model.onnx"
CONFIG_FILE = "config.json"
POSITION_FILE = "position.npz"
CARD_FILE = "README.md"
SUMS_FILE = "SHA256SUMS"
PARTS = (ONNX_FILE, WEIGHTS_FILE, SIDECAR_FILE, CONFIG_FILE, POSITION_FILE, CARD_FILE)

FILES = {
    f"`{ONNX_FILE}`": f"the network, opset {OPSET}, batch and number of moves free",
    f"`{WEIGHTS_FILE}`, `{SIDECAR_FILE}`": "the weights, for `ringrift_pipeline.network.load_model`",
    f"`{CONFIG_FILE}`": "shapes, and the meaning of every plane, global and move kind",
    f"`{POSITION_FILE}`": "a position, its legal moves, and the policy and value the network gives",
    f"`{SUMS_FILE}`": f"check them all with `sha256sum --check {SUMS_FILE}` or `ringrift export --verify FOLDER`",
}


def export_model(
    folder: str | Path, network: RingRiftNetwork, rules: Rules, facts: dict[str, Any] | None = None
) -> Path:
    """Write ``network`` for the games of ``rules`` into the new folder ``folder``.

    The folder appears whole or not at all, also when the power goes. It holds ``model.onnx``;
    ``model.safetensors`` and ``model.json``, which ``load_model`` reads; ``config.json``, with the
    meaning of every input and the ``facts`` (JSON types, as `model_card` takes them) as they are;
    ``position.npz``, an encoded position with its moves (JSON records as in the trace format) and
    the policy and value that the network gives it; a model card ``README.md``; and ``SHA256SUMS``
    for ``sha256sum --check``.

    Where onnxruntime is installed, the ONNX file is run on several positions and must give what
    torch gives, to 1e-4; card and ``config.json`` have the largest deviation, or that it was not
    checked.

    Raises:
        ExportError: the folder exists, the packages that write ONNX are not installed, or ONNX
            gives something else than torch.
        ValueError: the network is for boards of another geometry.
    """
    folder = Path(folder).absolute()
    if folder.exists():
        raise ExportError(f"{folder} exists: name a folder that does not")
    ensure_folder(folder.parent)
    for abandoned in folder.parent.glob(f"{TEMPORARY}*"):  # by an export that was killed
        remove_abandoned(abandoned)
    facts = dict(facts or {})
    made, lock = temporary_folder(folder.parent)
    try:
        save_model(made, network, facts)
        export_onnx(made / ONNX_FILE, network, rules)
        agreement = compare(made / ONNX_FILE, network, rules)
        config = _config(network, rules, facts, agreement)
        write_json_atomic(made / CONFIG_FILE, config)
        np.savez(made / POSITION_FILE, **_solved_position(network, rules))  # type: ignore[arg-type]
        shown = {"encoding": ENCODING_VERSION, **facts, "ONNX": _said(agreement)}
        card = model_card(network, rules, shown, FILES)
        write_bytes_atomic(made / CARD_FILE, card.encode())
        _seal(made)
        try:
            os.rename(made, folder)  # refuses a folder that has come to hold something
        except OSError as error:
            raise ExportError(f"{folder} cannot be written: {error}") from error
        fsync_path(folder.parent)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    finally:
        os.close(lock)
    return folder


def _seal(made: Path) -> None:
    """Write the sums of all parts, and make everything durable. Raises ExportError for a part that is
    gone.
    """
    try:
        sums = [f"{hash_file(made / name)['sha256']}  {name}\n" for name in sorted(PARTS)]
        write_bytes_atomic(made / SUMS_FILE, "".join(sums).encode())
        for name in (*PARTS, SUMS_FILE, ""):
            fsync_path(made / name)
        verify_export(made)
    except FileNotFoundError as error:
        raise ExportError(
            f"{error.filename} was written and is gone, so that nothing is exported: export it again"
        ) from error


_SUMS = re.compile(r"(?:[0-9a-f]{64}  [^\s/]+\n)+")


def verify_export(folder: str | Path) -> list[str]:
    """Check an exported folder against its ``SHA256SUMS``; returns the names of the files listed.

    Every file that is listed must be there with its hash, and no other but the sums themselves. They
    say that nothing was damaged, not that nobody changed it.

    Raises:
        ExportError: a file is missing, not listed or not what was exported, or the sums are none: it
            says which file.
    """
    folder = Path(folder)
    again = "export the model again, or copy the folder anew"
    try:
        sums = read_bounded(folder / SUMS_FILE, 1 << 16).decode("ascii")
        there = {name for name, _ in walk_files(folder)} - {SUMS_FILE}
    except (OSError, ValueError, ManifestMismatch) as error:
        raise ExportError(f"{folder / SUMS_FILE} cannot be checked: {error}; {again}") from error
    lines = sums.splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    if not _SUMS.fullmatch(sums) or len(listed) != len(lines):
        raise ExportError(f"{folder / SUMS_FILE} is no list of SHA-256 and names; {again}")
    if odd := sorted(there ^ listed.keys()):
        what = "is not listed in" if odd[0] in there else "is missing, though listed in"
        raise ExportError(f"{folder / odd[0]} {what} {SUMS_FILE}; {again}")
    for name, digest in listed.items():
        if hash_file(folder / name)["sha256"] != digest:
            raise ExportError(
                f"{folder / name} is not what was exported: its SHA-256 differs; {again}"
            )
    return list(listed)


def _solved_position(network: RingRiftNetwork, rules: Rules) -> dict[str, Any]:
    """An encoded position, its moves' records and what the network, not its ONNX form, says of it."""
    from ringrift_pipeline.game.records import move_to_record

    states, moves, counts = first_choices(rules)
    features = encode_states(rules, states, moves, counts)
    records = [json.dumps(move_to_record(rules, states[0], code)) for code in moves[0].tolist()]
    return features | {"moves": np.array([records])} | answers(network, rules, features)


def _said(agreement: Agreement | None) -> str:
    """Of the comparison with torch, what the model card says."""
    if agreement is None:
        return "not checked: onnxruntime was not installed"
    return f"differs from torch by at most {agreement.deviation:.1e} on {agreement.positions} positions"


def _config(
    network: RingRiftNetwork, rules: Rules, facts: dict[str, Any], agreement: Agreement | None
) -> dict[str, Any]:
    size, planes = int(rules.size), len(PLANE_NAMES)
    return {
        "game": "RingRift",
        "config": rules.config,
        "board": {"size": size, "geometry": rules.geometry, "cells": len(rules.cells)},
        "players": int(rules.players),
        "network": network.config.to_dict(),
        "parameters": network.num_parameters,
        "encoding": ENCODING_VERSION,
        "opset": OPSET,
        "largest_deviation_from_torch": agreement and agreement.deviation,
        "inputs": {
            "planes": {"type": "uint8", "shape": ["batch", planes, size, size]},
            "globals": {"type": "float32", "shape": ["batch", len(GLOBAL_NAMES)]},
            "move_kind": {"type": "uint8", "shape": ["batch", "moves"]},
            "move_cells": {"type": "int16", "shape": ["batch", "moves", 3]},
            "move_rank": {"type": "int16", "shape": ["batch", "moves"]},
            "legal_mask": {"type": "bool", "shape": ["batch", "moves"]},
        },
        "outputs": {
            "policy_logits": {"type": "float32", "shape": ["batch", "moves"]},
            "policy": {"type": "float32", "shape": ["batch", "moves"]},
            "value": {"type": "float32", "shape": ["batch", int(rules.players)]},
        },
        "padding": {
            "move_kind": 0,
            "move_cells": -1,
            "move_rank": 0,
            "policy_logits": MASKED_LOGIT,
        },
        "plane_names": list(PLANE_NAMES),
        "global_names": list(GLOBAL_NAMES),
        "move_kind_names": list(MOVE_KIND_NAMES),
        "facts": facts,
    }
