"""Columns in ``.npy`` files that are filled through a memory map.

A value that is stored in a map cannot fail: where the disk has no block for it, the process is ended
by SIGBUS. So the blocks of a file are there before it is mapped.
"""

from __future__ import annotations

import errno
import os
from io import BufferedWriter
from pathlib import Path

import numpy as np

from ringrift_pipeline.store import naming

PIECE = 1 << 20  # bytes of zeros that are written at once
_NO_ALLOCATION = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def make_column(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """A new file of zeros with all its blocks, mapped to be written to.

    Raises OSError with the file's name; a disk that is too small for it refuses here.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    with naming(path):
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            _allocate(file, file.tell() + dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        return np.lib.format.open_memmap(path, mode="r+")


def _allocate(file: BufferedWriter, size: int) -> None:
    """Make a file ``size`` bytes long, with a block for each of them. What is added is zeros."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
        return
    except AttributeError:  # macOS has none
        pass
    except OSError as error:  # some C libraries do not write zeros themselves
        if error.errno not in _NO_ALLOCATION:
            raise
    zeros = bytes(PIECE)
    while (left := size - file.tell()) > 0:
        file.write(zeros[:left])
