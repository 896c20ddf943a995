"""Processes that train together: started, stopped, failed and killed; torchrun; a whole training."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.distributed import distributed_c10d
from torch.multiprocessing.spawn import ProcessException

from ringrift_pipeline.enhancements import TrainingEnhancementsFacade
from ringrift_pipeline.enhancements.replicas import ReplicaError, Replicas
from ringrift_pipeline.network import load_model
from ringrift_pipeline.selfplay import Interrupted, Plan, load_plan
from ringrift_pipeline.selfplay.plan import open_model
from ringrift_pipeline.store import Artefact, Store
from ringrift_pipeline.store.atomic import TEMPORARY
from ringrift_pipeline.training import ProcessesError, processes, saving, together, train
from ringrift_pipeline.training.processes import (
    Member,
    ProcessDiedError,
    process_count,
    run_together,
)
from tests.waiting import until

from .conftest import CONFIG, settings
from .test_distributed import Thin, batch_of
from .test_learning import changed


def failing(member: Member, how: str) -> str:
    """Three steps with a fault of the second process at the last."""
    with member.joined(settings()) as (replicas, _):
        model = Thin()
        facade = TrainingEnhancementsFacade(
            model, torch.optim.SGD(model.parameters(), 0.1), replicas=replicas
        )
        pids = replicas.exchange(os.getpid())
        if member.progress is not None:
            member.progress(*pids, "started")
        for step in range(3):
            batch = batch_of(step, replicas.share(7))
            if step == 2 and replicas.rank == 1:
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                batch["policy_targets"] = batch["policy_targets"] + 9
            facade.train_step(batch)
    return "done"


def started(told: list[tuple[int, int, str]]) -> list[int]:
    (pids,) = [(first, second) for first, second, text in told if text == "started"]
    return list(pids)


def are_gone(pids: list[int]) -> bool:
    return not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # ended, if not yet reaped


@pytest.mark.whole
def test_an_error_of_one_process_is_that_of_all_and_none_is_left() -> None:
    told: list[tuple[int, int, str]] = []
    with pytest.raises(ValueError, match="policy_targets must be in") as caught:
        run_together(2, failing, "raises", progress=lambda *said: told.append(said))
    assert "In training process 1" in caught.value.__notes__[0]
    assert are_gone(started(told))


@pytest.mark.whole
def test_a_killed_process_ends_the_other_with_a_clear_error() -> None:
    told: list[tuple[int, int, str]] = []
    with pytest.raises(ProcessDiedError, match=r"process 1 was killed \(SIGKILL\).*run again"):
        run_together(2, failing, "killed", progress=lambda *said: told.append(said))
    assert are_gone(started(told))


class Unsendable(ValueError):
    """An error that no other process can be told of."""

    def __init__(self) -> None:
        super().__init__("cannot be sent")
        self.held = threading.Lock()

    def __copy__(self) -> Unsendable:
        return self


def silent(member: Member, how: str) -> None:
    """The second process ends with code 1 and says nothing, or with an error that cannot be sent; the
    first one misses it.
    """
    with member.joined(settings()) as (replicas, _):
        if replicas.rank == 1:
            if how == "says nothing":
                os._exit(1)
            raise Unsendable
        replicas.any(False)


@pytest.mark.whole
def test_a_process_that_ends_without_a_word_counts_as_lost() -> None:
    with pytest.raises(ProcessDiedError, match="process 1 ended with exit code 1"):
        run_together(2, silent, "says nothing")


@pytest.mark.whole
def test_an_error_that_cannot_be_sent_is_told_all_the_same() -> None:
    with pytest.raises(RuntimeError, match="Unsendable: cannot be sent"):
        run_together(2, silent, "cannot be sent")


def hanging(member: Member, deaf: bool) -> None:
    """The second process says nothing, and the first, once they are joined, does not wait for long."""
    with member.joined(settings()) as (replicas, _):
        if replicas.rank == 1:
            if deaf:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600.0)
        distributed_c10d._set_pg_timeout(timedelta(seconds=1))
        replicas.any(False)


@pytest.mark.whole
@pytest.mark.parametrize("deaf", [False, True])
def test_a_process_that_hangs_counts_as_lost(deaf: bool) -> None:
    with pytest.raises(ProcessDiedError, match="process 1 hung, and was ended: another"):
        run_together(2, hanging, deaf)


class Ended:
    """A process that has ended, by a signal or by itself."""

    def __init__(self, exitcode: int) -> None:
        self.exitcode, self.killed = exitcode, False

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize(
    ("ours", "told"), [(True, "1 hung, and was ended: it waits"), (False, "1 was killed .*memory")]
)
def test_only_one_that_we_have_killed_ourselves_has_hung(ours: bool, told: str) -> None:
    """As torch kills one that does not end when it is told to."""
    both = [Ended(1), Ended(-signal.SIGKILL)]
    context = cast(Any, SimpleNamespace(processes=both))
    deaf = processes._deaf_ones(context)
    if ours:
        both[1].kill()
        assert both[1].killed
    heard = processes._Heard([], None)
    heard._take(0, "error", ReplicaError("it waits"), "its trace")
    ended = ProcessException("process 0 ended", 0, 7)
    with pytest.raises(ProcessDiedError, match=told):
        raise heard.error(ended, context, deaf)


def endless(member: Member) -> None:
    """Says who it is, and waits for the others for ever."""
    with member.joined(settings()) as (replicas, _):
        if member.progress is not None:
            member.progress(*replicas.exchange(os.getpid()), "started")
        else:
            replicas.exchange(os.getpid())
        while True:
            replicas.any(False)


def parent(say: Connection) -> None:
    run_together(2, endless, progress=lambda *said: say.send(said))


@pytest.mark.whole
def test_no_process_outlives_the_one_that_started_it() -> None:
    context = multiprocessing.get_context("spawn")
    hear, say = context.Pipe(duplex=False)
    process = context.Process(target=parent, args=(say,))
    process.start()
    assert hear.poll(300), "the processes have not started"
    pids = started([hear.recv()])
    assert not are_gone(pids)
    process.kill()
    process.join()
    deadline = time.monotonic() + 60.0
    while not are_gone(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert are_gone(pids)


def saving_for_ever(member: Member, *given: Any) -> str:
    """As training does, on a disk that takes no second file of a state."""

    def held(folder: Path, packed: Any) -> None:
        (folder / "first").write_bytes(b"of two")
        time.sleep(600.0)

    saving.write_state = held
    return together._train(member, *given)


def stopped_while_it_saves(root: str) -> None:
    """What a step does whose run is terminated: it asks, and leaves before the state has landed."""
    together._train = saving_for_ever  # type: ignore[assignment]
    plan = load_plan(Store(root), CONFIG, 1).in_processes(2)
    heard: list[str] = []
    train(
        Store(root),
        plan,
        progress=lambda done, total, text: heard.append(text),
        should_stop=lambda: any(text.startswith("step ") for text in heard),
    )


@pytest.mark.whole
def test_a_state_that_was_being_saved_leaves_nothing(root: str, tmp_path: Path) -> None:
    data = shutil.copytree(root, tmp_path / "data")
    folder = data / CONFIG / "generations" / "0001" / "training_state"
    process = multiprocessing.get_context("spawn").Process(
        target=stopped_while_it_saves, args=(str(data),)
    )
    process.start()
    until(lambda: any(folder.glob(f"{TEMPORARY}*/first")), "a state is being saved", 300)
    process.kill()
    process.join()
    until(lambda: not any(data.rglob(f"{TEMPORARY}*")), "it is removed", 60)
    assert Store(data).current(CONFIG, 1, "training_state") is None


# --- the whole training --------------------------------------------------------------------------


@pytest.mark.whole
def test_training_starts_its_processes_stops_them_and_goes_on_alone(
    root: str, tmp_path: Path
) -> None:
    roots = [shutil.copytree(root, tmp_path / name) for name in ("one", "two")]
    overrides = {"training__max_steps": 40, "training__sample_reuse": 8.0}
    one, two = (Store(place) for place in roots)
    plan = changed(load_plan(one, CONFIG, 1), **overrides)
    whole = train(one, plan)
    heard: list[tuple[int, int]] = []

    def hear(done: int, total: int, text: str) -> None:
        heard.append((done, total))

    with pytest.raises(Interrupted, match=r"stopped at step \d+ of 40; run again"):
        train(
            two,
            plan.in_processes(2),
            progress=hear,
            should_stop=lambda: bool(heard) and heard[-1][1] == 40,
        )
    state = two.require(CONFIG, 1, "training_state")
    assert 0 < state.metadata["step"] < 40
    made = train(two, plan)
    assert made.metadata["resumed_from_step"] == state.metadata["step"]
    assert made.metadata["inputs"] == whole.metadata["inputs"]
    assert near(one, whole, made)
    assert train(two, plan.in_processes(2)) == made  # nothing to train, no process to start


def near(store: Store, one: Artefact, two: Artefact) -> bool:
    """Whether two models differ by little of what training has changed, in float32 and with Adam."""
    parent = open_model(store, load_plan(store, CONFIG, 1).parent or {})
    weights = [
        torch.cat([p.detach().ravel() for p in load_model(artefact.path).parameters()])
        for artefact in (parent, one, two)
    ]
    began, first, second = weights
    return 0 < (first - second).norm() < 0.05 * (first - began).norm()


@pytest.mark.whole
def test_torchrun_by_hand(root: str, tmp_path: Path) -> None:
    """Both processes run the command; the first one does all that is done once."""
    roots = [shutil.copytree(root, tmp_path / name) for name in ("one", "two")]
    whole = train(Store(roots[0]), load_plan(Store(roots[0]), CONFIG, 1))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "ringrift_pipeline", "train", "--config", CONFIG, "--data", str(roots[1])]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # one process speaks
    assert "calibration_report" in told["artefacts"]
    store = Store(roots[1])
    assert {"checkpoint", "ema_model", "ensemble"} < set(told["artefacts"])
    assert [len(store.artefacts(CONFIG, 1, kind)) for kind in told["artefacts"]] == [1] * len(
        told["artefacts"]
    )
    made = store.require(CONFIG, 1, "checkpoint")
    assert made.metadata["train/processes"] == 2 and whole.metadata["train/processes"] == 1
    assert near(Store(roots[0]), whole, made)


def test_more_processes_than_devices_or_rows_are_refused(second: Plan) -> None:
    assert process_count(settings()) == process_count(settings(training__processes=0)) == 1
    assert process_count(settings(training__processes=3)) == 3
    with pytest.raises(ValueError, match=r"processes \(33\) must not exceed batch_size \(32\)"):
        settings(training__processes=33)
    assert second.in_processes(2).settings.training.processes == 2
    assert second.in_processes(2).digest == second.digest
    if torch.cuda.is_available():
        too_many = torch.cuda.device_count() + 1
        with pytest.raises(ProcessesError, match="one a device"):
            process_count(settings(device="cuda", training__processes=too_many))


def test_a_process_that_cannot_see_what_the_first_one_names_says_so(
    second: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of another machine, with a data root of its own."""
    member = Member(1, 2, 0, cast(Any, None))
    path = f"{tmp_path}/here/{CONFIG}/generations/0001/window/20260101T000000.000000Z-0123abcd"
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    told = rf"training process 1 on .* cannot see {path}, the %s that .* unset RINGRIFT_BUCKET"
    with pytest.raises(ProcessesError, match=told % "quality scores"):
        together._train(member, str(tmp_path / "there"), second, "auto", {"quality_scores": path})
    said = {"sources": "null", "landed": path}
    monkeypatch.setattr(Member, "hear", lambda self, name: said[name])
    monkeypatch.setattr(processes, "by_torchrun", lambda *_: member)
    with pytest.raises(ProcessesError, match=told % "checkpoint"):
        together.beside(Store(tmp_path / "there"), second, "auto", None)


@pytest.mark.gpu
def test_two_devices_train_as_one(root: str, tmp_path: Path) -> None:
    """NCCL between CUDA devices."""
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, there are {torch.cuda.device_count()}")
    roots = [shutil.copytree(root, tmp_path / name) for name in ("one", "two")]
    plan = load_plan(Store(roots[0]), CONFIG, 1).on_device("cuda")
    whole = train(Store(roots[0]), plan.in_processes(1))
    made = train(Store(roots[1]), plan.in_processes(2))
    assert made.metadata["train/processes"] == 2
    assert near(Store(roots[0]), whole, made)


def test_replicas_share_rows_in_order_and_tell_when_they_drift() -> None:
    for count in (1, 2, 3, 5):
        shares = [Replicas(rank, count).share(131) for rank in range(count)]
        rows = [row for share in shares for row in range(131)[share]]
        assert rows == list(range(131))
        sizes = [share.stop - share.start for share in shares]
        assert max(sizes) - min(sizes) <= 1
    with pytest.raises(ValueError, match=r"rank must lie in 0\.\.1, got 2"):
        Replicas(2, 2)
    with pytest.raises(ReplicaError, match="the model of training process 1 differs"):
        run_together(2, drifting)


def drifting(member: Member) -> None:
    with member.joined(settings()) as (replicas, _):
        weights = {"a": torch.ones(3), "b": torch.zeros(2, 2)}
        replicas.check_alike("the model", weights)
        if member.rank == 1:
            weights["b"][1, 0] = 1e-30
        replicas.check_alike("the model", weights)
