"""Writers killed at every step, sweeping after them, and locks of the dead and the living."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ringrift_pipeline.store import LockedError, Store, StoreError

CONFIG = "hex8_3p"

# Runs a scenario and kills itself with SIGKILL before its n-th durable file operation.
SCRIPT = """
import os, signal, sys
from ringrift_pipeline.store import Store
root, scenario, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
store, count = Store(root), 0

def mortal(function):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

artefact = store.current("hex8_3p", 0, "ema_model")
for name in ("fsync", "rename", "replace", "link", "unlink"):
    setattr(os, name, mortal(getattr(os, name)))
if scenario == "create":
    with store.create("hex8_3p", 0, "ema_model") as draft:
        (draft / "a").write_text("new")
        (draft / "b").write_text("new")
elif scenario == "promote":
    store.promote("hex8_3p", 0, artefact, {"why": "better"})
elif scenario == "plan":
    store.write_plan("hex8_3p", 5, {"seed": 1, "text": "x" * 5000})
"""


def run_killed(root: Path, scenario: str, n: int) -> bool:
    """Whether the child was killed (False: it ran through)."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(root), scenario, str(n)], check=False)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


def put(store: Store, text: str):
    with store.create(CONFIG, 0, "ema_model") as draft:
        (draft / "a").write_text(text)
        (draft / "b").write_text(text)
    return draft.artefact


def leftovers(store: Store) -> list[Path]:
    return list(store.root.rglob(".ringrift-tmp-*"))


def test_a_writer_killed_at_any_step_leaves_old_or_new(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = put(store, "old")
    n, seen = 1, []
    while run_killed(store.root, "create", n):
        found = store.require(CONFIG, 0, "ema_model")
        assert {found.file(x).read_text() for x in "ab"} in ({"old"}, {"new"})
        seen.append(found.digest == old.digest)
        store.sweep()
        assert not leftovers(store)
        assert store.require(CONFIG, 0, "ema_model") == found
        n += 1
    assert n > 8 and seen[0] and not seen[-1]  # killed early the old one stays, at the end the new
    assert all(store.open(a.path) for a in store.artefacts(CONFIG, 0, "ema_model"))


def test_a_promotion_killed_at_any_step_is_completed_by_the_next(tmp_path: Path) -> None:
    n = 1
    states = set()
    while True:
        store = Store(tmp_path / str(n))
        artefact = put(store, "new")
        before = store.promote(CONFIG, 0, put(store, "old"), {"why": "first"})
        store.promote(CONFIG, 0, artefact, {"why": "second"})
        store.promote(CONFIG, 0, store.open(before.path), {"why": "back"}, again=True)
        newest = put(store, "newest")
        if not run_killed(store.root, "promote", n):
            break
        champion = store.champion(CONFIG)
        lines = (store.root / CONFIG / "champions.jsonl").read_text().splitlines()
        assert champion.digest in (before.digest, newest.digest)
        states.add((champion.digest == newest.digest, len(lines)))
        again = store.promote(CONFIG, 0, newest, {"why": "retry"})
        assert again.digest == newest.digest and store.champion(CONFIG) == again
        history = store.champions(CONFIG)
        assert [c.digest for c in history] == [
            before.digest,
            artefact.digest,
            before.digest,
            newest.digest,
        ]
        assert history[-1].reason == {
            "why": "better" if champion.digest == newest.digest else "retry"
        }
        store.sweep()
        assert not leftovers(store)
        n += 1
    assert (True, 3) in states and (False, 3) in states  # killed between pointer and history, too


def test_a_planner_killed_at_any_step_leaves_no_plan_or_a_whole_one(tmp_path: Path) -> None:
    n = 1
    while True:
        store = Store(tmp_path / str(n))
        if not run_killed(store.root, "plan", n):
            break
        plan = store.write_plan(CONFIG, 5, {"seed": 2})
        assert plan in ({"seed": 1, "text": "x" * 5000}, {"seed": 2})
        assert store.read_plan(CONFIG, 5) == plan
        store.sweep()
        assert not leftovers(store)
        n += 1
    assert n > 4


HOLD = """
import sys, time
from ringrift_pipeline.store import Store
store = Store(sys.argv[1])
if sys.argv[2] == "lock":
    context = store.lock("hex8_3p", "loop")
else:
    context = store.create("hex8_3p", 0, "ema_model")
with context as held:
    if sys.argv[2] == "draft":
        (held / "a").write_bytes(b"x" * 100_000)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):
    started = []

    def start(what: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path), what]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_sweep_spares_the_living_and_removes_the_dead(tmp_path: Path, holder) -> None:
    store = Store(tmp_path)
    old = put(store, "old")
    writer = holder("draft")
    assert len(leftovers(store)) == 1
    assert store.sweep() == [] and len(leftovers(store)) == 1
    with store.create(CONFIG, 0, "ema_model") as mine:
        assert store.sweep() == [] and mine.path.is_dir()  # nor a draft of this very process
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert store.current(CONFIG, 0, "ema_model") == mine.artefact
    assert store.open(old.path) == old
    removed = store.sweep(CONFIG)
    assert len(removed) == 1 and not removed[0].exists() and not leftovers(store)
    assert store.current(CONFIG, 0, "ema_model") == mine.artefact


def test_a_writer_that_ends_well_lands_after_sweeps(tmp_path: Path, holder) -> None:
    store = Store(tmp_path)
    writer = holder("draft")
    store.sweep()
    writer.communicate("")
    assert writer.returncode == 0
    assert store.require(CONFIG, 0, "ema_model").file("a").stat().st_size == 100_000


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path: Path, holder) -> None:
    store = Store(tmp_path)
    process = holder("lock")
    with pytest.raises(LockedError) as caught, store.lock(CONFIG, "loop"):
        pass
    assert caught.value.holder["pid"] == process.pid
    assert f"process {process.pid}" in str(caught.value) and "'loop'" in str(caught.value)
    with store.lock(CONFIG, "other"), store.lock("square8_2p", "loop"), store.lock(None, "loop"):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with store.lock(CONFIG, "loop") as path:
        holder_file = path.with_suffix(".holder.json")
        assert json.loads(holder_file.read_text())["pid"] == os.getpid()
    assert not holder_file.exists()


def test_a_lock_is_free_though_its_dead_owners_number_was_given_again(
    tmp_path: Path, holder
) -> None:
    """What a dead owner left names this very process, which has nothing to do with it."""
    store = Store(tmp_path)
    process = holder("lock")
    note = next((tmp_path / CONFIG).rglob("*.holder.json"))
    left = json.loads(note.read_text()) | {"pid": os.getpid()}
    note.write_text(json.dumps(left))
    with pytest.raises(LockedError) as caught, store.lock(CONFIG, "loop"):
        pass
    if left["born"] is not None:  # nobody is blamed who only has the number
        assert caught.value.holder is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    note.write_text(json.dumps(left))
    with store.lock(CONFIG, "loop"):
        assert json.loads(note.read_text())["born"] != left["born"] or left["born"] is None


OWNER = """
import multiprocessing, sys, time
from ringrift_pipeline.store import Store
if __name__ == "__main__":
    with Store(sys.argv[1]).lock("hex8_3p", "loop"):
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        child.start()
        print(child.pid, flush=True)
        sys.stdin.read()
"""


def test_a_lock_dies_with_its_owner_though_a_worker_of_it_lives_on(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    pipe = subprocess.PIPE
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as owner:
        assert owner.stdout is not None
        worker = int(owner.stdout.readline())
        try:
            owner.kill()
            owner.wait()
            os.kill(worker, 0)  # it is there
            with Store(tmp_path).lock(CONFIG, "loop"):
                pass
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_lock_is_not_reentrant_and_is_freed_by_errors(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match=f"process {os.getpid()}"), store.lock(CONFIG, "x"):
        for timeout in (0.0, 0.05, -1.0):
            with pytest.raises(LockedError), store.lock(CONFIG, "x", timeout=timeout):
                pass
        with store.lock(CONFIG, "x"):
            pass
    with store.lock(CONFIG, "x"):
        pass


def test_waiting_for_a_lock(tmp_path: Path, holder) -> None:
    process = holder("lock")
    process.stdin.close()  # it ends by itself while we wait
    with Store(tmp_path).lock(CONFIG, "loop", timeout=60.0):
        process.wait()
    assert process.returncode == 0


def test_a_stale_holder_note_is_not_believed(tmp_path: Path, holder) -> None:
    store = Store(tmp_path)
    first = holder("lock")
    note = tmp_path / CONFIG / ".locks" / "loop.holder.json"
    text = note.read_text()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    holder("lock")
    note.write_text(text)  # as if the new holder had not come to write its own
    with pytest.raises(LockedError) as caught, store.lock(CONFIG, "loop"):
        pass
    assert caught.value.holder is None and "only just" in str(caught.value)
