"""What the reference gets wrong, and the test that would catch it here.

`COVERED` names, defect by defect as `shared/BASELINES.md` lists them, the tests that fail on it.
Those named "proof: ..." are in `defect_proofs`, which shows that they can fail.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from ringrift_pipeline.enhancements import TrainingConfig
from tests.syntax import tree_of

from .defect_proofs import PROOFS, add_two, both_are_there, name_by_epoch
from .test_seed_examples import shared

TESTS = Path(__file__).resolve().parents[1]
GROUPS = [name for name in TrainingConfig.model_fields if name.islower() and name != "seed"]
PACKAGE = TESTS.parent / "ringrift_pipeline"

# Head of the list in BASELINES.md -> defect -> tests ("file::test", below tests/). A name that
# begins with "proof: " is one of PROOFS.
COVERED: dict[str, dict[str, tuple[str, ...]]] = {
    "Facade": {
        "no such constructor, no train_step": (
            "enhancements/test_seed_examples.py::test_the_facade_runs_as_it_stands",
        ),
        "no gradient once mining is active": (
            "enhancements/test_training_facade.py"
            "::test_policy_and_value_get_gradients_once_mining_is_active",
        ),
        "batch positions for indices": (
            "enhancements/test_training_facade.py"
            "::test_mining_does_not_depend_on_the_order_in_a_batch",
            "enhancements/test_training_facade.py"
            "::test_mining_weights_enter_the_loss_by_data_set_index",
        ),
    },
    "HardExampleMiner": {
        "short batches before warm-up": ("proof: a mixed batch is full before warm-up",),
        "no cap": ("proof: max_times_sampled is a cap",),
        "one NaN silences it": ("proof: one NaN loss silences nothing",),
        "zero losses raise": ("proof: losses of zero can be drawn from",),
        "lengths truncated": ("proof: lengths that differ are refused",),
        "forgets within an epoch": ("proof: an epoch is not forgotten within itself",),
        "global generator": (
            "enhancements/test_hard_example_mining.py"
            "::test_seed_decides_and_the_global_generator_is_left_alone",
        ),
        "no state": (
            "enhancements/test_hard_example_mining.py"
            "::test_saved_and_loaded_the_miner_goes_on_bit_for_bit",
            "enhancements/test_resume_everything.py::test_resumed_equals_uninterrupted",
        ),
    },
    "Per-sample loss": {
        "masked logits give NaN": ("proof: -inf with target 0 is finite",),
        "evicts the recently touched": ("proof: the least recently seen is evicted",),
    },
    "Quality": {
        "half-life is none": ("proof: a half-life halves",),
        "length jumps": ("proof: the length score does not jump",),
        "total above 1": (
            "enhancements/test_data_quality_scoring.py"
            "::test_every_score_lies_in_unit_interval_and_frame_agrees_with_one_game",
        ),
        "best to worst only 2.3": ("proof: twice as good is drawn twice as often",),
        "no generator, no epoch": ("proof: a draw depends on seed and epoch alone",),
    },
    "CheckpointAverager": {
        "mean for EMA": ("proof: an exponential average is no mean",),
        "names collide": ("proof: two checkpoints of one epoch are two",),
        "dtypes change": (
            "enhancements/test_checkpoint_averaging.py::test_mean_of_the_last_k_against_numpy",
        ),
        "no state": (
            "enhancements/test_checkpoint_averaging.py"
            "::test_resumed_ema_equals_an_uninterrupted_one",
        ),
    },
    "EWC": {
        "squares the mean gradient": ("proof: Fisher does not depend on the batch size",),
        "normalises per tensor": (
            "enhancements/test_ewc_regularization.py::test_layers_keep_their_proportions",
        ),
        "crashes on (policy, value)": ("proof: Fisher does not depend on the batch size",),
        "a prefix disables it": (
            "enhancements/test_ewc_regularization.py::test_wrapped_models_are_the_same_model",
            "enhancements/test_ewc_regularization.py::test_a_model_that_does_not_fit_is_refused_by_name",
        ),
        "second task overwrites": (
            "enhancements/test_ewc_regularization.py"
            "::test_three_tasks_the_first_is_kept_and_without_it_is_lost",
        ),
    },
    "Gradients": {
        "clips before unscaling": (
            "enhancements/test_gradient_management.py::test_unscales_before_clipping",
        ),
        "remainder never stepped": (
            "enhancements/test_gradient_management.py"
            "::test_equals_the_large_batch_remainder_and_unequal_batches_included",
            "enhancements/test_training_facade.py"
            "::test_the_end_of_an_epoch_steps_with_the_remainder",
        ),
        "NaN poisons later steps": ("proof: one NaN gradient poisons nothing",),
        "global, not per parameter": ("proof: a spike in one parameter leaves the others alone",),
    },
    "Learning rate": {
        "restarts misplaced by epoch": ("proof: restarts by epoch are in their places",),
        "warm-up eats the cosine": (
            "enhancements/test_learning_rate_scheduling.py"
            "::test_warm_up_is_linear_and_eats_no_cosine",
        ),
        "loading leaves the optimizer's rate": (
            "enhancements/test_learning_rate_scheduling.py"
            "::test_equals_torch_step_for_step_also_after_save_and_load",
        ),
        "no warm-up ramp": (
            "enhancements/test_learning_rate_scheduling.py"
            "::test_warm_up_ramps_linearly_in_epochs_or_in_optimizer_steps",
        ),
        "ignores validation loss": (
            "enhancements/test_learning_rate_scheduling.py"
            "::test_plateau_is_sought_in_the_validation_loss",
        ),
        "falling is oscillating": ("proof: a falling loss does not oscillate",),
        "overwrites group rates": (
            "enhancements/test_learning_rate_scheduling.py"
            "::test_groups_keep_their_ratio_through_everything",
        ),
    },
    "Ensemble": {
        "cannot predict": (
            "enhancements/test_model_ensemble.py"
            "::test_policy_in_log_probabilities_value_in_probabilities",
        ),
        "flips the caller's model": (
            "enhancements/test_model_ensemble.py::test_caller_keeps_mode_gradients_and_weights",
        ),
    },
    "Evaluation feedback": {
        "history stays empty": (
            "enhancements/test_evaluation_feedback.py::test_an_evaluation_reaches_the_history",
        ),
        "each event twice": (
            "enhancements/test_evaluation_feedback.py"
            "::test_an_evaluation_counts_once_however_often_it_is_reported",
        ),
        "cuts the rate while Elo rises": (
            "enhancements/test_evaluation_feedback.py::test_a_rate_is_never_cut_while_elo_rises",
        ),
    },
    "Calibration": {
        "temperature always 1": (
            "enhancements/test_calibration.py::test_one_column_head_is_not_always_one",
        ),
        "out of range reads 0": (
            "enhancements/test_calibration.py::test_what_would_be_measured_wrongly_is_refused",
        ),
        "no bins, no confidence": (
            "enhancements/test_calibration.py::test_numbers_against_formulas_by_hand",
            "enhancements/test_calibration.py::test_positions_of_a_game_are_not_independent_evidence",
        ),
    },
    "Seeds": {
        "overflow": ("proof: workers of the largest 32-bit seed can be seeded",),
        "fork collides with worker": ("proof: a fork is no worker",),
        "deterministic needs CUDA": (
            "enhancements/test_seed_management.py::test_deterministic_is_real_without_cuda",
        ),
    },
    "TrainingConfig": {
        "no command line": (
            "enhancements/test_training_config.py::test_precedence_each_layer_beats_the_one_before",
            "cli/test_cli.py::test_settings_are_printed_on_request",
        ),
        "a batch size of -4": (
            "enhancements/test_training_config.py::test_bad_settings_are_refused_in_one_line",
        ),
        "no module reads it": (
            "enhancements/test_reference_defects.py::test_every_setting_is_read_by_some_module",
            "enhancements/test_training_facade.py::test_from_training_config_carries_every_setting",
        ),
    },
    "Policy encoding": {
        "moves share an index": (
            "network/test_moves.py::test_descriptions_are_distinct_on_random_games",
            "network/test_traces.py::test_descriptions_are_distinct_on_every_trace",
        ),
    },
    "Loop": {
        "promoted below the heuristic": (
            "evaluation/test_gate.py"
            "::test_no_model_is_promoted_that_loses_to_a_baseline_the_champion_beats",
            "evaluation/test_gate.py::test_first_champion_by_the_baseline_floor",
        ),
        "trained on stale data": (
            "training/test_stream_and_state.py::test_no_row_is_visited_more_often_than_allowed",
            "selfplay/test_plan.py::test_window_holds_the_newest_shards_until_there_are_games_enough",
        ),
        "never better than the heuristic": (
            "evaluation/test_gate.py::test_first_champion_by_the_baseline_floor",
            "training/test_loop.py::test_training_lowers_the_held_out_loss_and_reports_it",
        ),
    },
}


@pytest.mark.parametrize("name", PROOFS)
def test_ours_does_not_have_the_defect(name: str) -> None:
    PROOFS[name].holds(PROOFS[name].ours)


@pytest.mark.parametrize("name", PROOFS)
def test_the_test_catches_the_defect(name: str) -> None:
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        PROOFS[name].holds(PROOFS[name].theirs)


def test_two_checkpoints_of_one_epoch_are_two(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    both_are_there(add_two, tmp_path / "ours")
    with pytest.raises(AssertionError):
        both_are_there(name_by_epoch, tmp_path / "theirs")


# --- what no module of its own tests ----------------------------------------------------------


def test_every_setting_is_read_by_some_module() -> None:
    """A setting that nobody reads would be a promise not kept.

    A module reads ``mining.decay_rate`` if it names both the group (or its class) and the field.
    """
    configs = {"config_groups.py", "config_stages.py", "training_config.py"}
    classes = {name: type(getattr(TrainingConfig(), name)).__name__ for name in GROUPS}
    modules = []
    for path in PACKAGE.rglob("*.py"):
        if path.name not in configs:
            tree = tree_of(path.read_text(encoding="utf-8"))
            modules.append(
                {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
                | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            )
    read = set().union(*modules)
    # the effective values of a few settings are properties of the config itself
    tree = tree_of((PACKAGE / "enhancements" / "training_config.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in read:
            modules.append({n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)})
    unread = []
    for field in TrainingConfig.fields():
        group, _, name = field.name.rpartition(".")
        # a room that knows nothing of pydantic may have settings of its own with the same names
        of_class = classes.get(group, "")
        whose = {group, of_class, of_class.replace("Config", "Settings")} if group else {name}
        if not any(name in names and names & whose for names in modules):
            unread.append(field.name)
    assert not unread


# --- the table --------------------------------------------------------------------------------


@cache
def names_in(file: str) -> set[str]:
    tree = tree_of((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_test_of_the_table_exists() -> None:
    proofs = set(PROOFS) | {"two checkpoints of one epoch are two"}
    used = set()
    for head, defects in COVERED.items():
        for defect, names in defects.items():
            assert names, f"{head}: {defect} has no test"
            for name in names:
                if name.startswith("proof: "):
                    used.add(name.removeprefix("proof: "))
                    assert used <= proofs, f"{head}: {defect}"
                    continue
                file, _, test = name.partition("::")
                assert test in names_in(file), f"{head}: {defect}: {name} does not exist"
    assert used == proofs


def test_every_defect_of_the_baselines_is_in_the_table() -> None:
    text = shared("BASELINES.md").partition("### What it gets wrong")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^- \*\*([^*]+)\*\*: (.+)$", text, re.MULTILINE))
    assert listed.keys() == COVERED.keys()
    for head, words in listed.items():
        clauses = re.sub(r"\([^)]*\)", "", words).count(";") + 1
        assert len(COVERED[head]) >= clauses, f"{head}: {words}"
