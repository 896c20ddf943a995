"""``ringrift export``: a model as a folder with ONNX, weights, card and example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ringrift_pipeline.commands.console import print_json, say
from ringrift_pipeline.commands.options import Common, InputError


def export(
    common: Common,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]", help="New folder to write. Default: ./ringrift-CONFIG-GENERATION."
        ),
    ] = None,
    player: Annotated[
        str,
        typer.Option("--player", help="The model: champion, generation:NNNN or a model's folder."),
    ] = "champion",
) -> None:
    """Write a model as a folder: ONNX, safetensors, config.json, model card, a solved position.

    Needs the extra `onnx`: pip install 'ringrift-pipeline[onnx]'. `examples/onnx_policy.py FOLDER`
    reproduces the policy on the shipped position with onnxruntime and numpy alone.
    """
    from ringrift_pipeline.game import get_rules
    from ringrift_pipeline.network import ModelError, load_model
    from ringrift_pipeline.network.export import ExportError, export_model
    from ringrift_pipeline.search.loading import model_folder

    if player in ("random", "heuristic", "rollout"):
        raise InputError(
            f"--player {player}: it has no network; name champion, generation:NNNN or a folder"
        )
    source, calibration = model_folder(player, common.config, common.root)
    try:
        network = load_model(source)
    except ModelError as error:
        raise InputError(f"--player {player}: {error}") from error
    pairs = zip(source.parts, source.parts[1:], strict=False)
    generation = next((name for place, name in pairs if place == "generations"), None)
    facts: dict[str, Any] = {"player": player, "value_temperature": calibration.temperature}
    if generation is not None:
        facts["generation"] = int(generation)
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
