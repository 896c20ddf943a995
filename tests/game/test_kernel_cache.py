"""Compiled kernels are taken from a folder that nobody else could have written to, or not at all."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ringrift_pipeline
from ringrift_pipeline.cli import run
from ringrift_pipeline.game import compile as compiling
from ringrift_pipeline.game.compile import KernelCacheError, cache_root, private_folder
from tests.syntax import tree_of

ROOT = os.geteuid() == 0
STRANGER = 65_534


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder that is not there yet."""
    place = tmp_path / "cache"
    monkeypatch.setenv("RINGRIFT_KERNEL_CACHE", str(place))
    private_folder.cache_clear()
    yield place
    private_folder.cache_clear()


def room(base: Path) -> Path:
    return base / "kernels" / "game-0123"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def again(path: Path) -> Path:
    private_folder.cache_clear()
    return private_folder(path)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_what_is_made_is_the_users_alone(base: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert private_folder(room(base)) == room(base)
    finally:
        os.umask(before)
    assert [mode(place) for place in (base, base / "kernels", room(base))] == [0o700] * 3


def test_a_folder_that_others_could_read_is_closed(base: Path) -> None:
    room(base).mkdir(parents=True)
    for place in (base, base / "kernels", room(base)):
        place.chmod(0o755)
    private_folder(room(base))
    assert mode(room(base)) == mode(base / "kernels") == 0o700
    room(base).chmod(0o775)  # by a umask that trusts the user's own group
    again(room(base))
    assert mode(room(base)) == 0o700


@pytest.mark.parametrize("where", ["base", "kernels", "room", "sticky kernels", "sticky room"])
def test_a_folder_that_everybody_can_write_to_is_refused(base: Path, where: str) -> None:
    room(base).mkdir(parents=True)
    place = {"base": base, "kernels": base / "kernels"}.get(where.split()[-1], room(base))
    place.chmod(0o1777 if "sticky" in where else 0o777)
    with pytest.raises(KernelCacheError, match=r"others can write to .*RINGRIFT_KERNEL_CACHE"):
        private_folder(room(base))
    place.chmod(0o755)
    again(room(base))


def test_a_place_like_tmp_will_do(base: Path) -> None:
    base.mkdir()
    base.chmod(0o1777)  # others add what is theirs, and cannot touch what is ours
    assert mode(private_folder(room(base))) == 0o700


def test_a_link_to_where_others_write_is_refused(base: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    base.mkdir()
    (base / "kernels").symlink_to(shared)
    with pytest.raises(KernelCacheError, match="others can write"):
        private_folder(room(base))


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
@pytest.mark.parametrize("what", ["base", "kernels", "room", "file", "link"])
def test_what_belongs_to_another_is_refused(base: Path, what: str) -> None:
    room(base).mkdir(parents=True)
    file = room(base) / "turn" / "legal_moves.nbi"
    file.parent.mkdir()
    file.touch()
    link = room(base) / "link"
    link.symlink_to(file)
    places = {"base": base, "kernels": base / "kernels", "room": room(base), "file": file}
    os.lchown(places.get(what, link), STRANGER, STRANGER)
    with pytest.raises(KernelCacheError, match=f"belongs to user {STRANGER}"):
        private_folder(room(base))


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
def test_another_group_that_can_write_is_refused(base: Path) -> None:
    room(base).mkdir(parents=True)
    os.chown(room(base), -1, STRANGER)
    room(base).chmod(0o770)
    with pytest.raises(KernelCacheError, match="others can write"):
        private_folder(room(base))


def test_a_place_that_cannot_be_a_folder_is_an_error_of_its_own(base: Path) -> None:
    base.write_text("a file")
    with pytest.raises(KernelCacheError, match="cannot be used"):
        private_folder(room(base))


def test_every_kernel_asks_for_such_a_folder(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def note(folder: Path) -> Path:
        asked.append(folder)
        return private_folder(folder)

    monkeypatch.setattr(compiling, "private_folder", note)

    def double(number: int) -> int:
        return 2 * number

    assert compiling.kernel(double)(21) == 42
    (folder,) = asked
    assert folder.is_relative_to(cache_root()) and list(folder.rglob("*.nbi"))
    assert mode(folder) == 0o700


def test_the_command_line_says_it_in_one_line(base: Path, tmp_path: Path) -> None:
    (base / "kernels").mkdir(parents=True)
    (base / "kernels").chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-m", "ringrift_pipeline", "play", "--player", "random", "--quiet"]
        + ["--data", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        env={**os.environ, "RINGRIFT_KERNEL_CACHE": str(base)},
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("ringrift: others can write to ")
    assert len(done.stderr.splitlines()) == 1


def test_it_does_not_lie_under_the_data_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for cache in (tmp_path / "cache", tmp_path, tmp_path / "x" / ".." / "y"):
        monkeypatch.setenv("RINGRIFT_KERNEL_CACHE", str(cache))
        assert run(["status", "--data", str(tmp_path)]) == 2
        assert "lies under the data root" in capsys.readouterr().err
    monkeypatch.setenv("RINGRIFT_KERNEL_CACHE", str(tmp_path / "cache"))
    assert run(["status", "--data", str(tmp_path / "data")]) == 0


def test_nothing_else_is_compiled_into_a_cache() -> None:
    """No ``torch.compile``, whose cache would lie in /tmp, and no kernel's but by our decorators."""
    found = []
    for path in Path(ringrift_pipeline.__file__).parent.rglob("*.py"):
        for node in ast.walk(tree_of(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            cached = [
                word
                for word in node.keywords
                if word.arg == "cache" and ast.unparse(word.value) != "False"
            ]
            if cached or ast.unparse(node.func).split(".")[-1] in ("load_inline", "cpp_extension"):
                found.append(path.name)
            if ast.unparse(node.func) == "torch.compile":
                found.append(path.name)
    assert found == ["compile.py"]
