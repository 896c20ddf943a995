"""A disk that fills refuses with an error, never by the signal that ends the process."""

from __future__ import annotations

import errno
import io
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from ringrift_pipeline.selfplay import Plan
from ringrift_pipeline.store import Store
from ringrift_pipeline.training import build_window
from ringrift_pipeline.training.mapped_columns import make_column
from ringrift_pipeline.training.window import KIND

from .conftest import CONFIG


def refuse(error: int) -> OSError:
    """As the system says it of an open file: without a name."""
    return OSError(error, os.strerror(error))


def allocated(path: Path) -> int:
    """Bytes of the blocks that a file has."""
    return path.stat().st_blocks * 512


def test_a_column_has_all_its_blocks_and_is_the_file_that_numpy_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    column = make_column(path, np.dtype(np.int16), (300_000, 3))
    assert allocated(path) >= path.stat().st_size > 1_800_000
    assert not column.any()
    column[7] = 5
    column.flush()
    wanted = io.BytesIO()
    np.save(wanted, np.asarray(column))
    assert path.read_bytes() == wanted.getvalue()


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_a_column_of_nothing(shape: tuple[int, ...], tmp_path: Path) -> None:
    column = make_column(tmp_path / "a.npy", np.dtype(np.float32), shape)
    column[:] = 1.0
    assert np.load(tmp_path / "a.npy").shape == column.shape == shape


@pytest.mark.parametrize("error", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_zeros_are_written_where_nothing_can_be_allocated(
    error: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no such call, or the file system has none."""

    def no(*_: int) -> None:
        raise refuse(error or 0)

    if error is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", no, raising=False)
    path = tmp_path / "a.npy"
    column = make_column(path, np.dtype(np.int64), (400_000,))
    assert allocated(path) >= path.stat().st_size
    assert column.shape == (400_000,) and not column.any()


def test_zeros_that_do_not_fit_are_refused_with_the_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match=r"\[Errno 27\].*a\.npy"):
            make_column(tmp_path / "a.npy", np.dtype(np.int64), (400_000,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_while_a_window_is_built_is_an_error_with_the_files_name(
    store: Store, first: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def broken(column: np.memmap) -> None:
        raise refuse(errno.EIO)

    with monkeypatch.context() as patch:  # what was stored is written at last
        patch.setattr(np.memmap, "flush", broken)
        with pytest.raises(OSError, match=r"Input/output error: '.*\.npy'"):
            build_window(store, first)

    def fills(file: int, offset: int, size: int) -> None:
        made.append(size)
        if len(made) == 3:
            raise refuse(errno.ENOSPC)
        os.ftruncate(file, size)

    monkeypatch.setattr(os, "posix_fallocate", fills, raising=False)
    with pytest.raises(OSError, match=r"No space left on device: '.*\.npy'") as full:
        build_window(store, first)
    assert full.value.errno == errno.ENOSPC
    folder = store.root / CONFIG / "generations" / "0000" / KIND
    assert not list(folder.glob("*/")) and store.current(CONFIG, 0, KIND) is None
    monkeypatch.undo()
    assert build_window(store, first) == store.current(CONFIG, 0, KIND)
