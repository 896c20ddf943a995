"""``ringrift export``: a model as a folder with ONNX, weights, card and example."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ringrift_pipeline.commands.console import print_json, say
from ringrift_pipeline.commands.options import Common, InputError

if TYPE_CHECKING:
    from ringrift_pipeline.store import Artefact, Store


def export(
    common: Common,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]",
            help="New folder to write. Default: ./ringrift-CONFIG-generation-NNNN.",
        ),
    ] = None,
    player: Annotated[
        str,
        typer.Option("--player", help="The model: champion, generation:NNNN or a model's folder."),
    ] = "champion",
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Write nothing; check FOLDER, which an export has written."),
    ] = False,
) -> None:
    """Write a model as a folder: ONNX, safetensors, config.json, model card, a solved position.

    Needs the extra `onnx`: pip install 'ringrift-pipeline[onnx]'. `examples/onnx_policy.py FOLDER`
    reproduces the policy on the shipped position with onnxruntime and numpy alone.
    """
    if verify:
        return _verify(common, folder)
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import ModelError, load_model
    from ringrift_pipeline.network.export import ExportError, export_model
    from ringrift_pipeline.search.loading import model_folder
    from ringrift_pipeline.search.value_temperature import store_of
    from ringrift_pipeline.store.layout import MANIFEST

    if player in ("random", "heuristic", "rollout"):
        raise InputError(
            f"--player {player}: it has no network; name champion, generation:NNNN or a folder"
        )
    source, calibration, _ = model_folder(player, common.config, common.root)
    try:
        network = load_model(source)
    except ModelError as error:
        raise InputError(f"--player {player}: {error}") from error
    pairs = zip(source.parts, source.parts[1:], strict=False)
    generation = next((name for place, name in pairs if place == "generations"), None)
    facts: dict[str, Any] = {"player": player, "value_temperature": calibration.temperature}
    if generation is not None:
        facts["generation"] = int(generation)
    if (source / MANIFEST).is_file():
        store = store_of(source, common.root)
        facts |= record(store, store.open(source, verify=False))
    named = f"generation-{generation}" if generation else source.name
    target = folder or Path(f"ringrift-{common.config}-{named}")
    try:
        written = export_model(target, network, get_rules(common.config), facts)
    except (ExportError, ValueError) as error:
        raise InputError(str(error)) from error
    files = {path.name: path.stat().st_size for path in sorted(written.iterdir())}
    if common.as_json:
        print_json({"folder": str(written), "files": files, **facts})
    else:
        say(f"{written}: {', '.join(files)}, {sum(files.values()) / 1e6:.1f} MB")


def _verify(common: Common, folder: Path | None) -> None:
    from ringrift_pipeline.network.export import ExportError, verify_export

    if folder is None:
        raise InputError("--verify: name the folder that an export has written")
    try:
        files = verify_export(folder)
    except ExportError as error:
        raise InputError(str(error)) from error
    if common.as_json:
        print_json({"folder": str(folder), "verified": files})
    else:
        say(f"{folder}: {', '.join(files)} are what was exported")


def record(store: Store, model: Artefact) -> dict[str, Any]:
    """What a store knows of a model: the games it was learned from, how it was evaluated, and what
    the gate says of that. Other models' evaluations, and damaged artefacts, do not count.
    """
    from ringrift_pipeline.selfplay.evaluated import evaluation_of
    from ringrift_pipeline.store import CorruptArtefactError

    games = 0
    for generation in store.generations(model.config):
        if generation <= model.generation:
            with suppress(CorruptArtefactError):
                shards = store.current(model.config, generation, "selfplay_shards", verify=False)
                games += int(shards.metadata.get("selfplay/games", 0)) if shards else 0
    found: dict[str, Any] = {"training_games": games, "model_digest": model.digest}
    evaluated = evaluation_of(store, model)
    if evaluated is not None:
        found["evaluation"] = evaluation_facts(evaluated[1])
    return found


def evaluation_facts(report: dict[str, Any]) -> dict[str, Any]:
    """Of an evaluation's report, what a model card says."""
    own = report["ratings"][report["candidate"]["name"]]
    anchor = next(name for name, row in report["ratings"].items() if row["anchor"])
    kept = ("opponent", "games", "win_rate", "low", "high")
    return {
        "rating": own["rating"],
        "rating_low": own["low"],
        "rating_high": own["high"],
        "anchor": anchor,
        "anchor_rating": report["ratings"][anchor]["rating"],
        "confidence": report["confidence"],
        "games": report["games"],
        "simulations": report["simulations"],
        "matches": [{name: match[name] for name in kept} for match in report["matches"]],
        "gate_passed": report["gate"]["promote"],
        "reasons": report["gate"]["reasons"],
    }
