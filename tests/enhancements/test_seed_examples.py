"""What people bring along still works: the seed's examples, its names, the reference's arguments."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import ringrift_pipeline.enhancements as library

from .small_training import Net, adam, make_batch, weights_of

SHARED = Path(__file__).resolve().parents[3] / "shared"
THEIRS = "app.training.enhancements"


def shared(name: str) -> str:
    """A document that lies beside the repository; the test is skipped where it does not."""
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{name} is not here ({path} is missing)")
    return path.read_text(encoding="utf-8")


# --- the seed's README ----------------------------------------------------------------------


def examples() -> list[str]:
    text = shared("seed-training-enhancements.md")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2 and all(THEIRS in block for block in blocks)
    return [block.replace(THEIRS, library.__name__) for block in blocks]


def test_the_direct_import_runs_as_it_stands() -> None:
    scope: dict[str, Any] = {}
    exec(compile(examples()[0], "seed", "exec"), scope)
    assert scope["accumulator"].accumulation_steps == 4
    assert scope["accumulator"].effective_batch_size == 4
    assert scope["miner"].buffer_size == 1000
    assert scope["config"].effective_batch_size == scope["config"].training.batch_size


@pytest.mark.parametrize("form", ["mapping", "tuple"])
def test_the_facade_runs_as_it_stands(form: str) -> None:
    model = Net(5)
    before = weights_of(model)
    batches: list[Any] = [make_batch(step) for step in range(8)]
    if form == "tuple":
        names = ("features", "policy_targets", "value_targets")
        batches = [tuple(batch[name] for name in names) for batch in batches]
    scope: dict[str, Any] = {"my_model": model, "my_optimizer": adam(model), "dataloader": batches}
    exec(compile(examples()[1], "seed", "exec"), scope)
    facade, stats = scope["facade"], scope["stats"]
    assert facade.steps == 2 and stats.stepped and not stats.should_stop  # two groups of four
    assert facade.config.enable_hard_mining and facade.config.enable_quality_scoring
    assert facade.miner.get_statistics()["total_samples_seen"] == (64 if form == "mapping" else 0)
    for old, new in zip(before, weights_of(model), strict=True):
        assert not torch.equal(old, new)


def test_every_module_and_class_of_the_seed_is_where_it_says() -> None:
    text = shared("seed-training-enhancements.md")
    rows = re.findall(r"^\| `(\w+)\.py`\s*\| `(\w+)`", text, re.MULTILINE)
    assert len(rows) == 16
    for module, name in rows:
        home = importlib.import_module(f"{library.__name__}.{module}")
        assert getattr(home, name) is getattr(library, name)


# --- the table of names ---------------------------------------------------------------------


def positional(function: Any) -> list[str]:
    """Names of the arguments that can be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in kinds and p.name not in ("self", "cls")]


def table_of_names() -> list[tuple[str, str, list[str] | None]]:
    """(class or "", name, arguments or None) of everything that the modules' table names."""
    found: list[tuple[str, str, list[str] | None]] = []
    for line in shared("ENHANCEMENTS.md").splitlines():
        columns = line.split("|")
        if len(columns) < 4 or not re.search(r"`\w+\.py`", columns[1]):
            continue
        owner = ""
        for token in re.findall(r"`([^`]+)`", columns[2]):
            match = re.match(r"(\w+)(?:\(([^)]*)\))?(?: |$)", token)
            if match is None:
                continue
            name, listed = match.groups()
            arguments = None
            if listed is not None:
                arguments = [a.partition("=")[0].strip() for a in listed.split(",")]
                arguments = [a for a in arguments if a.isidentifier()]
            if name[0].isupper():
                owner = name
                found.append((name, "", arguments))
            else:
                found.append(("" if hasattr(library, name) else owner, name, arguments))
    return found


def test_every_name_of_the_table_exists_with_its_arguments_in_order() -> None:
    names = table_of_names()
    assert len(names) > 80
    for owner, name, arguments in names:
        value = getattr(library, owner) if owner else library
        value = getattr(value, name) if name else value
        if arguments is None or not owner:
            continue
        have = list(inspect.signature(value).parameters)
        at = [have.index(argument) for argument in arguments]
        assert at == sorted(at), f"{owner}.{name}: {arguments} but {have}"


# --- the reference's arguments --------------------------------------------------------------

# Every public method of the reference's modules, with its arguments in order.
REFERENCE = {
    "AdaptiveGradientClipper": "initial_max_norm percentile history_size min_clip max_clip "
    "initial_clip",
    "AdaptiveGradientClipper.get_stats": "",
    "AdaptiveGradientClipper.reset": "",
    "AdaptiveGradientClipper.update_and_clip": "parameters",
    "AdaptiveLRScheduler": "optimizer base_lr min_lr max_lr elo_lookback loss_lookback "
    "elo_stagnation_threshold loss_oscillation_threshold lr_increase_factor lr_decrease_factor "
    "warmup_epochs",
    "AdaptiveLRScheduler.current_lr": None,
    "AdaptiveLRScheduler.step": "train_loss current_elo val_loss",
    "AdaptiveLRScheduler.warm_restart": "lr_factor",
    "CalibrationAutomation": "deviation_threshold check_interval min_samples window_size",
    "CalibrationAutomation.add_samples": "predictions outcomes",
    "CalibrationAutomation.compute_optimal_temperature": "model dataloader device lr max_iter",
    "CalibrationAutomation.get_calibration_history": "",
    "CalibrationAutomation.should_recalibrate": "epoch",
    "CheckpointAverager": "num_checkpoints checkpoint_dir keep_on_disk",
    "CheckpointAverager.add_checkpoint": "state_dict epoch",
    "CheckpointAverager.cleanup": "",
    "CheckpointAverager.get_averaged_state_dict": "",
    "CheckpointAverager.num_stored": None,
    "DataQualityScorer": "min_game_length max_game_length optimal_game_length max_elo_diff "
    "decisive_bonus draw_penalty freshness_decay_hours freshness_weight",
    "DataQualityScorer.compute_freshness_score": "game_timestamp current_time",
    "DataQualityScorer.compute_sample_weights": "scores temperature",
    "DataQualityScorer.score_game": "game_id game_length winner elo_p1 elo_p2 move_entropy "
    "game_timestamp pre_computed_quality",
    "EWCRegularizer": "model lambda_ewc normalize_fisher",
    "EWCRegularizer.compute_fisher": "dataloader criterion num_samples device",
    "EWCRegularizer.load_state": "path",
    "EWCRegularizer.penalty": "model",
    "EWCRegularizer.save_state": "path",
    "EvaluationFeedbackHandler": "optimizer config_key min_lr max_lr elo_history_window "
    "lr_increase_factor lr_decrease_factor lr_plateau_factor elo_rising_threshold "
    "elo_falling_threshold",
    "EvaluationFeedbackHandler.apply_lr_adjustment": "current_epoch",
    "EvaluationFeedbackHandler.get_current_lr": "",
    "EvaluationFeedbackHandler.get_elo_history": "",
    "EvaluationFeedbackHandler.get_status": "",
    "EvaluationFeedbackHandler.should_adjust_lr": "",
    "EvaluationFeedbackHandler.subscribe": "",
    "GameQualityScore": "game_id total_score length_score elo_score diversity_score "
    "decisive_score freshness_score",
    "GameQualityScore.to_dict": "",
    "GradientAccumulator": "accumulation_steps max_grad_norm",
    "GradientAccumulator.clip_gradients": "model",
    "GradientAccumulator.effective_batch_size": None,
    "GradientAccumulator.scale_loss": "loss",
    "GradientAccumulator.should_step": "batch_idx",
    "GradientAccumulator.step": "optimizer model scaler",
    "HardExample": "index loss uncertainty times_sampled last_seen_step",
    "HardExampleMiner": "buffer_size hard_fraction loss_threshold_percentile uncertainty_weight "
    "decay_rate min_samples_before_mining max_times_sampled",
    "HardExampleMiner.create_mixed_batch_indices": "batch_size all_indices",
    "HardExampleMiner.get_all_sample_weights": "dataset_size min_weight max_weight",
    "HardExampleMiner.get_hard_indices": "num_samples return_scores",
    "HardExampleMiner.get_sample_weights": "indices base_weight hard_weight",
    "HardExampleMiner.get_statistics": "",
    "HardExampleMiner.get_stats": "",
    "HardExampleMiner.record_batch": "indices losses uncertainties",
    "HardExampleMiner.reset": "",
    "HardExampleMiner.update_errors": "indices errors",
    "ModelEnsemble": "model_class model_kwargs device",
    "ModelEnsemble.add_model": "model_or_path weight name",
    "ModelEnsemble.get_model": "name",
    "ModelEnsemble.model_names": None,
    "ModelEnsemble.num_models": None,
    "ModelEnsemble.sample_model": "",
    "ModelEnsemble.update_weight": "name weight",
    "PerSampleLossRecord": "sample_idx loss policy_loss value_loss epoch batch_idx",
    "PerSampleLossTracker": "max_samples history_epochs percentile_hard",
    "PerSampleLossTracker.get_hardest_samples": "n",
    "PerSampleLossTracker.get_sample_history": "sample_idx",
    "PerSampleLossTracker.get_statistics": "",
    "PerSampleLossTracker.record_batch": "batch_indices losses epoch batch_idx",
    "PerSampleLossTracker.reset_epoch": "",
    "QualityWeightedSampler": "scores num_samples replacement temperature",
    "SeedManager": "seed deterministic benchmark",
    "SeedManager.advance": "steps",
    "SeedManager.fork": "offset",
    "SeedManager.get_generator": "offset",
    "SeedManager.get_seed_info": "",
    "SeedManager.get_worker_init_fn": "",
    "SeedManager.load_state": "state",
    "SeedManager.save_state": "",
    "SeedManager.set_global_seed": "",
    "TrainingConfig.from_dict": "config",
    "TrainingConfig.get_effective_batch_size": "",
    "TrainingConfig.to_dict": "",
    "TrainingConfig.validate": "",
    "TrainingEnhancementsFacade": "config",
    "TrainingEnhancementsFacade.compute_freshness_weight": "game_timestamp current_time",
    "TrainingEnhancementsFacade.compute_per_sample_loss": "policy_logits policy_targets value_pred "
    "value_targets reduction",
    "TrainingEnhancementsFacade.get_curriculum_lr_scale": "progress",
    "TrainingEnhancementsFacade.get_epoch_statistics": "",
    "TrainingEnhancementsFacade.get_hard_indices": "num_samples",
    "TrainingEnhancementsFacade.get_hardest_samples": "n",
    "TrainingEnhancementsFacade.get_weighted_loss": "per_sample_losses batch_indices",
    "TrainingEnhancementsFacade.is_mining_active": None,
    "TrainingEnhancementsFacade.on_epoch_end": "",
    "TrainingEnhancementsFacade.record_batch": "batch_indices per_sample_losses uncertainties",
    "TrainingEnhancementsFacade.reset": "",
    "TrainingEnhancementsFacade.set_total_epochs": "total_epochs",
    "WarmRestartsScheduler": "optimizer T_0 T_mult eta_min eta_max last_epoch warmup_steps",
    "WarmRestartsScheduler.current_lr": None,
    "WarmRestartsScheduler.get_last_lr": "",
    "WarmRestartsScheduler.get_schedule_info": "",
    "WarmRestartsScheduler.load_state_dict": "state_dict",
    "WarmRestartsScheduler.num_restarts": None,
    "WarmRestartsScheduler.state_dict": "",
    "WarmRestartsScheduler.step": "epoch",
    "WarmRestartsScheduler.step_epoch": "",
    "average_checkpoints": "checkpoint_paths device",
    "compute_per_sample_loss": "policy_logits policy_targets value_pred value_targets "
    "policy_weight reduction",
    "create_evaluation_feedback_handler": "optimizer config_key",
    "set_reproducible_seed": "seed deterministic",
}

# Where we differ, and why. A name here must differ, or it has no business here.
DEPARTURES = {
    "AdaptiveGradientClipper": "initial_clip was a second name of initial_max_norm",
    "CalibrationAutomation.compute_optimal_temperature": "the optimum is found, not descended to: "
    "no lr, no max_iter",
    "EvaluationFeedbackHandler.subscribe": "there is no event bus: the caller reports evaluations",
    "GradientAccumulator.clip_gradients": "step clips, after unscaling",
    "HardExampleMiner.get_all_sample_weights": "get_sample_weights(range(n))",
    "HardExampleMiner.get_stats": "a second form of get_statistics",
    "HardExampleMiner.update_errors": "a second name of record_batch",
    "TrainingConfig.from_dict": "its one argument is data, a mapping as theirs",
    "TrainingConfig.get_effective_batch_size": "the property effective_batch_size",
    "TrainingConfig.validate": "a config that exists is valid (pydantic has another validate)",
    "TrainingEnhancementsFacade": "the seed's README has model and optimizer first",
    "TrainingEnhancementsFacade.compute_freshness_weight": "a term of DataQualityScorer's",
}


# Where a call takes a file: what it may be, and what theirs may be that ours may not.
OTHER_FILES = {
    "average_checkpoints": "safetensors, never what torch.save writes: a pickle can run code",
    "ModelEnsemble.add_model": "likewise",
}


def keeps_the_arguments(name: str) -> bool:
    owner, _, method = name.partition(".")
    value = getattr(library, owner)
    if method:
        if not hasattr(value, method):
            return False
        value = getattr(value, method)
    wanted = REFERENCE[name]
    if wanted is None:
        return isinstance(value, property)
    names = positional(value)
    parameters = inspect.signature(value).parameters
    ours = names[len(wanted.split()) :]  # which their calls do not give
    needed = [name for name in ours if parameters[name].default is inspect.Parameter.empty]
    return names[: len(wanted.split())] == wanted.split() and not needed


@pytest.mark.parametrize("name", REFERENCE)
def test_the_references_calls_still_fit(name: str) -> None:
    if name in DEPARTURES:
        assert not keeps_the_arguments(name), "no departure any more: take it off the list"
    else:
        assert keeps_the_arguments(name)


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.parametrize("old_format", [False, True])
def test_their_files_are_refused_with_the_way_out(
    name: str, old_format: bool, tmp_path: Path
) -> None:
    """The way out that the message gives is taken as it stands."""
    model = torch.nn.Linear(2, 2)
    file = tmp_path / "a.pt"
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=not old_format)

    def use(path: Path) -> dict[str, torch.Tensor]:
        if name == "average_checkpoints":
            return library.average_checkpoints([path])
        ensemble = library.ModelEnsemble(torch.nn.Linear, {"in_features": 2, "out_features": 2})
        ensemble.add_model(path)
        return ensemble.get_model(ensemble.model_names[0]).state_dict()

    with pytest.raises(ValueError, match="a.pt is not a safetensors file but a pickle") as refusal:
        use(file)
    line = re.search(r"safetensors\.torch\.save_file\(.*\)$", str(refusal.value))
    assert line is not None
    code = line.group().replace("'a.safetensors'", repr(str(tmp_path / "a.safetensors")))
    exec(code, {"model": model, "safetensors": safetensors})
    for key, tensor in use(tmp_path / "a.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[key])


def test_departures_are_of_the_reference() -> None:
    assert DEPARTURES.keys() | OTHER_FILES.keys() <= REFERENCE.keys()
    # and what takes the place of a method that is gone is there
    assert library.TrainingConfig().effective_batch_size >= 1
    miner = library.HardExampleMiner(buffer_size=4)
    assert miner.get_sample_weights(range(3)).tolist() == [1.0, 1.0, 1.0]
