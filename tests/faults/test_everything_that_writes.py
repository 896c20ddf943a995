"""A list of every function of the package that changes files, with what disturbs it in these tests;
and of every kind of artefact. What is new has to be put on it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ringrift_pipeline
from ringrift_pipeline.orchestration import names
from ringrift_pipeline.store import Store
from tests.syntax import tree_of

from . import stages
from .conftest import NOW, Roots
from .writers import WRITERS

PACKAGE = Path(ringrift_pipeline.__file__).parent
CHANGES = {
    "OSFile", "open_memmap", "memmap", "posix_fallocate", "tofile",
    "append_jsonl", "ftruncate", "link", "mkdir", "rename", "rmdir", "rmtree", "save_file",
    "savefig", "savez", "symlink", "temporary_folder", "touch", "truncate", "unlink",
    "write_bytes", "write_bytes_atomic", "write_bytes_once", "write_json_atomic", "write_parquet",
    "write_text",
}  # fmt: skip
LAND = {"create"}  # of a store, or of the parts of a work

# Not disturbed, and why.
SCRATCH = "outside the data root, or gone with the process that made it"
BUCKET = (
    "the cache of a bucket: tests/store/test_bucket.py kills uploads, and makes the bucket refuse"
)
LITTER = "removes what nobody reads any more; what stays goes the next time"
LOG = "a log, on which nothing rests: tests/orchestration/test_logs.py"

COVERED = {
    "drawing/charts.py:save_chart": "train",
    "enhancements/calibration_report.py:draw_reliability": SCRATCH,
    "enhancements/checkpoint_averaging.py:CheckpointAverager._drop": SCRATCH,
    "enhancements/checkpoint_averaging.py:CheckpointAverager._folder": SCRATCH,
    "enhancements/checkpoint_averaging.py:_remove": SCRATCH,
    "enhancements/checkpoint_files.py:write_checkpoint": "a loose checkpoint",
    "evaluation/ablation.py:_Work.land": "ablate",
    "evaluation/ablation.py:_land": "ablate",
    "evaluation/ablation_report.py:write_table": "ablate",
    "evaluation/ablation_runs.py:TrialResult.save": "ablate",
    "evaluation/evaluating.py:_PlayedJobs.keep": "evaluate",
    "evaluation/evaluating.py:evaluate": "evaluate",
    "evaluation/rating_curve.py:write_list": "rate",
    "evaluation/rating_list.py:play_anchors": "anchors",
    "evaluation/rating_list.py:rate_all": "rate",
    "game/compile.py:announced": SCRATCH,
    "game/compile.py:private_folder": SCRATCH,
    "network/checkpoint.py:save_model": "average",
    "network/export.py:_seal": "export",
    "network/export.py:export_model": "export",
    "orchestration/backend.py:Backend._make_folder": SCRATCH,
    "orchestration/backend.py:Backend._start_over": LITTER,
    "orchestration/backend.py:Backend._write_workspace": SCRATCH,
    "orchestration/backend.py:Backend.kill": SCRATCH,
    "orchestration/decisions.py:keep_decision": "a decision",
    "orchestration/gauntlet.py:run_gauntlet": "gauntlet",
    "orchestration/instance.py:_bring_up_to_date": "an earlier home",
    "orchestration/instance.py:own_instance": LITTER,
    "orchestration/instance.py:prepare_home": "the home",
    "orchestration/io_managers.py:JsonIOManager.handle_output": "a value",
    "orchestration/io_managers.py:ParquetIOManager.handle_output": "a table",
    "orchestration/outbox.py:Outbox._move": "an alert's delivery",
    "orchestration/outbox.py:Outbox.put": "an alert",
    "orchestration/presence.py:announced": "a presence",
    "orchestration/progress.py:_remove": "progress",
    "orchestration/progress.py:_write": "progress",
    "orchestration/retention.py:_remove": LITTER,
    "orchestration/services.py:Service.__init__": SCRATCH,
    "orchestration/services.py:_appended": LOG,
    "orchestration/services.py:_cut": LOG,
    "selfplay/collecting.py:collect": "selfplay",
    "selfplay/playing.py:play_with": "selfplay",
    "selfplay/shards.py:write_shard": "selfplay",
    "store/artefacts.py:_drop_pointer": "a quarantine",
    "store/artefacts.py:put_aside": "a quarantine",
    "store/artefacts.py:remove_kind": "a kind's removal",
    "store/artefacts.py:remove_landed": "a removal",
    "store/artefacts.py:write_pointer": "an artefact",
    "store/draft.py:Draft.__enter__": "an artefact",
    "store/draft.py:Draft.__exit__": "an artefact",
    "store/draft.py:Draft.__truediv__": "an artefact",
    "store/draft.py:Draft._land": "an artefact",
    "store/atomic.py:remove_unfinished": LITTER,
    "store/atomic.py:_replace_unless_exists": "a plan",
    "store/atomic.py:staged": "a plan",
    "store/atomic.py:_temporary_file": "a plan",
    "store/atomic.py:append_jsonl": "a promotion",
    "store/atomic.py:ensure_folder": "a plan",
    "store/atomic.py:remove_abandoned": "an artefact",
    "store/atomic.py:remove_tree": "a removal",
    "store/atomic.py:temporary_folder": "an artefact",
    "store/atomic.py:write_bytes_atomic": "a promotion",
    "store/atomic.py:write_bytes_once": "a plan",
    "store/atomic.py:write_json_atomic": "an alert",
    "store/attach.py:attach": BUCKET,
    "store/cache.py:Cache._download": BUCKET,
    "store/cache.py:Cache._fill": BUCKET,
    "store/cache.py:Cache.drop": BUCKET,
    "store/cache.py:Cache.look": BUCKET,
    "store/cache.py:Cache.make_room": BUCKET,
    "store/champion.py:_migrated": "an older history",
    "store/champion.py:_pointed": "a damaged champion",
    "store/champion.py:_reconcile": "a promotion",
    "store/champion.py:promote": "a promotion",
    "store/locks.py:named_lock": "a lock",
    "store/pending.py:Pending.added": BUCKET,
    "store/pending.py:Pending.drop": BUCKET,
    "store/records.py:Records._history": BUCKET,
    "store/records.py:Records._keep_plan": BUCKET,
    "store/remote.py:Remote._named": BUCKET,
    "store/retention.py:_remove": "retention",
    "store/store.py:Store.write_plan": "a plan",
    "store/switches.py:set_switches": "a switch",
    "training/auxiliary.py:save_heads": "train",
    "training/averaging.py:average": "average",
    "training/calibrating.py:calibrate": "calibrate",
    "training/consolidation.py:measure_fisher": "fisher",
    "training/ensembling.py:build_ensemble": "build_ensemble",
    "training/gallery.py:draw_gallery": "mine_hard_examples",
    "training/hard_examples.py:mine_hard_examples": "mine_hard_examples",
    "training/inputs.py:Parts.create": "evaluate",
    "training/loop.py:_land": "train",
    "training/mapped_columns.py:_allocate": "mine_hard_examples",
    "training/mapped_columns.py:make_column": "mine_hard_examples",
    "training/quality.py:score_games": "score_games",
    "training/saving.py:StateSaver._land": "train",
    "training/state.py:write_state": "train",
    "training/tables.py:write_table": "evaluate",
    "training/window.py:_Writer.close": "mine_hard_examples",
    "training/window.py:build_window": "mine_hard_examples",
}


def sites() -> Iterator[str]:
    """``store/atomic.py:append_jsonl`` for every function that changes a file itself."""
    for path in sorted(PACKAGE.rglob("*.py")):
        found: dict[str, None] = {}
        _walk(tree_of(path.read_text()), [], found)
        for name in found:
            yield f"{path.relative_to(PACKAGE).as_posix()}:{name}"


def _walk(node: ast.AST, inside: list[str], found: dict[str, None]) -> None:
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if isinstance(child, ast.Call) and changes(child):
            found[".".join(inside) or "(module)"] = None
        # a function within another one counts as that
        deeper = named and not (inside and inside[-1][0].islower())
        _walk(child, [*inside, child.name] if deeper else inside, found)  # type: ignore[attr-defined]


def changes(call: ast.Call) -> bool:
    """Does a call change files, as far as its name says?"""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id in CHANGES or (function.id == "open" and opens_to_write(call))
    if not isinstance(function, ast.Attribute):
        return False
    owner = ast.unparse(function.value)
    name = function.attr
    if name in LAND:
        return owner.rpartition(".")[2].strip("_") in ("store", "parts")
    if name == "open":
        return opens_to_write(call)
    if name == "replace":  # of a path or of os; that of a text has two arguments
        return owner == "os" or (len(call.args) == 1 and not call.keywords)
    return name in CHANGES


def opens_to_write(call: ast.Call) -> bool:
    words = [ast.unparse(argument) for argument in (*call.args, *(k.value for k in call.keywords))]
    return any(
        re.fullmatch(r"'[rwaxbt+]*[wax+][rwaxbt+]*'", word) or "O_CREAT" in word for word in words
    )


@pytest.mark.bounded
def test_whatever_writes_is_on_the_list() -> None:
    found = set(sites())
    assert not found - set(COVERED), "disturb these, and say where"
    assert not set(COVERED) - found, "these are gone"
    known = {*WRITERS, *stages.NAMES, *stages.LATER, SCRATCH, BUCKET, LITTER, LOG}
    assert {where for where in COVERED.values() if where not in known} == set()


@pytest.mark.bounded
@pytest.mark.parametrize(
    "text",
    (
        "path.write_text('x')",
        "open(path, 'a+b', buffering=0)",
        "path.open('w')",
        "os.open(path, os.O_RDWR | os.O_CREAT)",
        "os.replace(one, other)",
        "temporary.replace(path)",
        "step.store.create(config, 0, 'kind')",
        "self._parts.create('0001')",
    ),
)
def test_the_walk_would_find_what_writes(text: str) -> None:
    (call,) = (node for node in ast.walk(tree_of(text)) if isinstance(node, ast.Call))
    assert changes(call)


def kinds_in_the_code() -> Iterator[str]:
    """Values of all constants that are named as kinds of artefacts are."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in tree_of(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                ours = path.name == "kinds.py" and path.parent.name == "store"
                if re.fullmatch(r"(\w+_)?(KIND|PART)", name) or (
                    ours
                    and name not in ("CODE_VERSIONS", "RATING", "RATING_OVER_RANDOM")
                    and not name.endswith(("FILE", "MEMBERS"))
                ):
                    for value in ast.walk(node.value):
                        if isinstance(value, ast.Constant) and isinstance(value.value, str):
                            yield value.value


@pytest.mark.bounded
def test_every_kind_is_on_the_list(roots: Roots) -> None:
    known = {*kinds_in_the_code(), *names.ASSETS}
    assert not known - set(stages.KINDS), "make these in a stage, and say which"
    made = set(Store(roots["end"]).kinds(stages.CONFIG, NOW))
    for kind, stage in stages.KINDS.items():
        if stage in stages.NAMES and kind not in PASSING:
            assert any(name.startswith(kind) for name in made), kind
    for kind in made:
        assert kind in stages.KINDS or kind.startswith("selfplay-shard-"), kind


PASSING = ("training_state", "evaluation-part-")  # gone when their stage is done
