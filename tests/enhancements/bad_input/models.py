"""Rows of losses, ensembles, calibration and consolidation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..small_training import ACTIONS, BATCH, SEATS, Net, make_batch
from .changes import (
    ARRAYS,
    META,
    SHORT,
    Broken,
    Change,
    Kind,
    any_of,
    becomes,
    choice,
    flag,
    holding,
    number,
    of_class,
    tensor,
    whole,
)
from .row import Arguments, Row, built, device, optimizer, shares, state_row

NO_ITERABLES = (np.array(3), torch.tensor(1.0), object())


def loss_arguments(it: Any, folder: Path) -> Arguments:
    policy = torch.softmax(
        torch.randn(BATCH, ACTIONS, generator=torch.Generator().manual_seed(1)), 1
    )
    return {
        "policy_logits": policy.log().requires_grad_(),
        "policy_targets": policy,
        "value_pred": torch.zeros(BATCH, SEATS),
        "value_targets": torch.from_numpy(shares()).float(),
        "legal_mask": torch.ones(BATCH, ACTIONS, dtype=torch.bool),
    }


def loss_kinds() -> dict[str, Kind]:
    integers = Change("int64", lambda good: good.detach().long())
    return {
        "policy_logits": tensor(integers),
        "policy_targets": tensor(holding(math.nan), holding(-0.5), holding(9.0), holding(math.inf)),
        "value_pred": tensor(integers),
        "value_targets": tensor(holding(math.nan), holding(-0.5), holding(9.0), holding(math.inf)),
        "legal_mask": any_of(
            SHORT, META, becomes("rubbish"), becomes(3), becomes(torch.ones(BATCH, ACTIONS)),
            becomes(torch.zeros(BATCH, ACTIONS, dtype=torch.bool)), becomes(None, fine=True),
        ),
    }  # fmt: skip


# of two shapes that differ, either may be named
SHAPES = {
    "policy_logits": "policy_logits|policy_targets|legal_mask|value_pred",
    "policy_targets": "policy_targets",
    "value_pred": "value_pred|value_targets",
    "value_targets": "value_pred|value_targets",
    "legal_mask": "legal_mask|illegal",
}


def optional_flag() -> Kind:
    return Kind((*flag().changes[1:], becomes(None, fine=True)))


def loss_rows() -> list[Row]:
    return [
        Row(
            "compute_per_sample_loss",
            {
                **loss_kinds(),
                "policy_weight": number(0.0),
                "value_weight": number(0.0),
                "reduction": choice(),
                "value_kind": choice(),
                "validate": optional_flag(),
            },
            lambda it, folder: {
                **loss_arguments(it, folder),
                "policy_weight": 1.0,
                "value_weight": 1.0,
                "reduction": "none",
                "value_kind": "logits",
            },
            says=SHAPES,
        ),
        Row(
            "compute_loss_parts",
            {
                **loss_kinds(),
                "policy_weight": number(0.0),
                "value_weight": number(0.0),
                "value_kind": choice(),
                "validate": optional_flag(),
                "with_entropy": flag(),
            },
            lambda it, folder: {
                **loss_arguments(it, folder),
                "policy_weight": 1.0,
                "value_weight": 1.0,
                "value_kind": "logits",
                "with_entropy": True,
            },
            says=SHAPES,
        ),
        Row(
            "compute_per_sample_loss:none",
            {"reduction": any_of(becomes("mean"), becomes("none", fine=True))},
            lambda it, folder: {
                **{name: value[:0] for name, value in loss_arguments(it, folder).items()},
                "reduction": "sum",
            },
        ),
        Row(
            "TrainingEnhancementsFacade.compute_per_sample_loss",
            {**loss_kinds(), "reduction": choice()},
            lambda it, folder: {**loss_arguments(it, folder), "reduction": "none"},
            "facade",
            says=SHAPES,
        ),
    ]


def ensemble_rows() -> list[Row]:
    owner = "ModelEnsemble"

    def batches(it: Any, folder: Path) -> Arguments:
        student = Net(9)
        return {
            "student": student,
            "batches": [make_batch(1)["features"]],
            "optimizer": torch.optim.SGD(student.parameters(), lr=0.1),
            "value_weight": 1.0,
        }

    name = any_of(*map(becomes, ("rubbish", "", None, 3, [], *ARRAYS, np.array(["m1"]))))
    return [
        built(
            owner,
            {
                "model_class": of_class(Net(), optional=True),
                "model_kwargs": any_of(
                    becomes(3), becomes("rubbish"), becomes([1]), becomes(None, fine=True)
                ),
                "device": device(),
                "value_kind": choice(),
                "seed": whole(0, 2**128),
            },
            model_class=Net,
        ),
        Row(
            f"{owner}.add_model",
            {
                "model_or_path": any_of(*map(becomes, (None, 3, "nothing", __file__, [], Net))),
                "weight": number(0.0),
                "name": any_of(becomes("m1"), becomes(3), becomes([]), becomes(None, fine=True)),
            },
            lambda it, folder: {"model_or_path": Net(), "weight": 1.0, "name": "free"},
            "ensemble",
        ),
        Row(
            f"{owner}.get_model",
            {"name": any_of(*map(becomes, (None, 3, *ARRAYS)), becomes("rubbish", fine=True))},
            lambda it, folder: {"name": "m1"},
            "ensemble",
        ),
        Row(
            f"{owner}.update_weight",
            {"name": name, "weight": number(0.0)},
            lambda it, folder: {"name": "m1", "weight": 2.0},
            "ensemble",
        ),
        Row(
            f"{owner}.predict",
            {
                "features": any_of(
                    *map(becomes, (None, "rubbish", 3)), META, becomes(torch.ones(3, 9))
                ),
                "legal_mask": any_of(
                    SHORT,
                    META,
                    becomes("rubbish"),
                    becomes(torch.ones(BATCH, ACTIONS)),
                    becomes(torch.zeros(BATCH, ACTIONS, dtype=torch.bool)),
                    becomes(None, fine=True),
                ),
            },
            lambda it, folder: {
                "features": make_batch(0)["features"],
                "legal_mask": torch.ones(BATCH, ACTIONS, dtype=torch.bool),
            },
            "ensemble",
        ),
        Row(
            f"{owner}.sample_model",
            {"generator": of_class(optional=True), "mode": choice(), "curve": choice()},
            lambda it, folder: {
                "generator": np.random.default_rng(0),
                "mode": "pfsp",
                "curve": "hard",
            },
            "ensemble",
        ),
        Row(
            f"{owner}.record_result",
            {"name": name, "score": number(0.0, 2.0), "games": number(0.0, above=True)},
            lambda it, folder: {"name": "m1", "score": 1.0, "games": 2.0},
            "ensemble",
        ),
        Row(
            f"{owner}.pfsp_priorities",
            {"curve": choice()},
            lambda it, folder: {"curve": "even"},
            "ensemble",
        ),
        Row(
            f"{owner}.distill",
            {
                "student": of_class(None, Broken(), Broken((torch.ones(BATCH, 4), torch.ones(3)))),
                "batches": any_of(*map(becomes, ([], None, 3, ["rubbish"], [None], *NO_ITERABLES))),
                "optimizer": of_class(None, Net()),
                "value_weight": number(0.0),
            },
            batches,
            "ensemble",
        ),
        state_row(owner, "ensemble"),
    ]


def ewc_rows() -> list[Row]:
    owner = "EWCRegularizer"
    other = nn.Linear(2, 2)
    another_shape = Net()
    another_shape.body = nn.Linear(3, 7)
    another_model = of_class(None, optimizer(), other, another_shape)

    def batch_with(**changes: Any) -> Change:
        return Change(f"a batch with {changes}", lambda good: [make_batch(1) | changes])

    return [
        built(
            owner,
            {
                "model": of_class(None, nn.Identity(), optimizer()),
                "lambda_ewc": number(0.0),
                "normalize_fisher": any_of(*map(becomes, ("rubbish", 3, None))),
                "gamma": number(0.0, 1.0, above=True),
                "anchor": choice(),
                "seed": whole(0),
                "heads": any_of(
                    *map(becomes, (3, "rubbish", {"policy": "rubbish"})), becomes(None, fine=True)
                ),
            },
            model=Net(),
        ),
        Row(
            f"{owner}.compute_fisher",
            {
                "dataloader": any_of(
                    *map(becomes, (None, 3, "rubbish", [], [None], [3], [{}], [()], *NO_ITERABLES)),
                    batch_with(features=torch.ones(3, 9)),
                    batch_with(features=torch.full((BATCH, 6), math.nan)),
                    batch_with(features=torch.ones(BATCH, 6, device="meta")),
                    batch_with(legal_mask=torch.ones(BATCH, 5)),
                ),
                "criterion": any_of(
                    *map(becomes, (3, "rubbish", int, lambda: 0, nn.Linear(2, 2))),
                    becomes(None, fine=True),
                ),
                "num_samples": whole(1),
                "device": device(),
            },
            lambda it, folder: {
                "dataloader": [make_batch(1)],
                "criterion": None,
                "num_samples": BATCH,
                "device": None,
            },
            "ewc",
            says={"dataloader": "dataloader|features|legal_mask|batch|gradient"},
        ),
        Row(
            f"{owner}.penalty", {"model": another_model}, lambda it, folder: {"model": Net()}, "ewc"
        ),
        Row(
            f"{owner}.add_gradient",
            {"model": another_model},
            lambda it, folder: {"model": Net()},
            "ewc",
        ),
        Row(
            f"{owner}.unprotected",
            {"model": of_class(None, optimizer())},
            lambda it, folder: {"model": Net()},
            "ewc",
        ),
        Row(
            f"{owner}.save_state",
            {"path": any_of(*map(becomes, (None, 3, [], object())))},
            lambda it, folder: {"path": folder / "ewc.safetensors"},
            "ewc",
        ),
        Row(
            f"{owner}.load_state",
            {"path": any_of(*map(becomes, (None, 3, [], object(), "nothing", __file__)))},
            lambda it, folder: (
                it.save_state(folder / "ewc.safetensors") or {"path": folder / "ewc.safetensors"}
            ),
            "ewc",
        ),
        state_row(owner, "ewc", "state"),
    ]
