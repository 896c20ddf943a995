"""Bytes change in files that are no artefacts: loose checkpoints, exported models."""

from __future__ import annotations

import contextlib
import logging
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ringrift_pipeline.enhancements.checkpoint_averaging import average_checkpoints
from ringrift_pipeline.enhancements.checkpoint_files import write_checkpoint
from ringrift_pipeline.enhancements.ewc_regularization import EWCRegularizer
from ringrift_pipeline.network.export import ExportError, verify_export

from . import tally
from .conftest import NOW
from .tally import Cases
from .test_corruption import CHANGES, SOME, Reader, chunks
from .tracing import Zygote


@contextlib.contextmanager
def warnings_of(name: str) -> Iterator[list[logging.LogRecord]]:
    """What a logger says meanwhile."""
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = said.append  # type: ignore[method-assign]
    logging.getLogger(name).addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger(name).removeHandler(handler)


def regularizer() -> EWCRegularizer:
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Linear(40, 8))
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    ewc = EWCRegularizer(model)
    state = ewc.state_dict() | {"fisher": {n: w.square() for n, w in weights.items()}}
    ewc.load_state_dict(state | {"anchors": weights, "tasks": 1})
    return ewc


def loose_files(folder: Path) -> dict[str, tuple[Path, Reader]]:
    """Files that the enhancement modules keep wherever they are told to, and what reads them."""
    torch.manual_seed(0)
    checkpoint, ewc = folder / "checkpoint.safetensors", folder / "ewc.safetensors"
    tensors = {"weights": torch.randn(300, 7), "steps": torch.tensor(3)}
    write_checkpoint(checkpoint, tensors, {"said": "by a test"})
    regularizer().save_state(ewc)

    def restored(path: Path) -> list[dict[str, torch.Tensor]]:
        made = regularizer()
        made.load_state(path)
        return [made.fisher, made.anchors]

    return {
        "average_checkpoints": (checkpoint, lambda path: average_checkpoints([path])),
        "EWCRegularizer.load_state": (ewc, restored),
    }


LOOSE = ("average_checkpoints", "EWCRegularizer.load_state")


def damage_loose(path: Path, read: Reader, cases: int, rng: random.Random) -> None:
    whole, sound = path.read_bytes(), read(path)
    for case in range(cases):
        change = CHANGES[case % len(CHANGES)]
        path.write_bytes(change(whole, rng))
        with warnings_of("ringrift_pipeline.enhancements.checkpoint_files") as said:
            try:
                found = read(path)
            except ValueError as error:
                assert path.name in str(error)
            else:  # both names that tell of a hash were hit by a swap, and nothing else
                assert "has no SHA-256" in said[0].getMessage(), change.__name__
                torch.testing.assert_close(found, sound, rtol=0, atol=0)
    path.write_bytes(whole)
    torch.testing.assert_close(read(path), sound, rtol=0, atol=0)


@pytest.mark.bounded
@pytest.mark.parametrize("name", LOOSE)
def test_some_changes_of_a_loose_file(name: str, tmp_path: Path) -> None:
    damage_loose(*loose_files(tmp_path)[name], 4 * SOME, random.Random(name))


@pytest.mark.parametrize("name", LOOSE)
def test_every_change_of_a_loose_file(name: str, tmp_path: Path) -> None:
    cases = Cases("changed bytes", name)
    path, read = loose_files(tmp_path)[name]
    for start, size in chunks():

        def chunk(start: int = start, size: int = size) -> int:
            damage_loose(path, read, size, random.Random(f"{tally.seed()} {name} {start}"))
            return size

        cases.run(f"from {start}", chunk, size=size)
    cases.settle()


def damage_export(folder: Path, cases: int, rng: random.Random) -> None:
    """Of any file of an export, its list of sums among them."""
    files = sorted(folder.iterdir())
    for case in range(cases):
        path, change = rng.choice(files), CHANGES[case % len(CHANGES)]
        whole = path.read_bytes()
        path.write_bytes(change(whole, rng))
        with pytest.raises(ExportError, match=re.escape(str(folder))):
            verify_export(folder)
            raise AssertionError(f"nobody noticed: {path} {change.__name__}")
        path.write_bytes(whole)
    assert {*verify_export(folder), "SHA256SUMS"} == {path.name for path in files}


def test_every_change_of_an_export(zygote: Zygote, copy_of: Callable[[str], Path]) -> None:
    cases = Cases("changed bytes", "an export")
    root = copy_of("end")
    assert zygote.run(root, "export", NOW) == 0, zygote.log.read_text()
    for start, size in chunks():

        def chunk(start: int = start, size: int = size) -> int:
            rng = random.Random(f"{tally.seed()} export {start}")
            damage_export(root / "exported" / "model", size, rng)
            return size

        cases.run(f"from {start}", chunk, size=size)
    cases.settle()
