"""Bit counting and stack-allocated scratch rows for the kernels."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ringrift_pipeline.libraries.compiler import numba

carray = numba.carray
types = numba.types
cgutils = numba.core.cgutils

#: The typing context is numba's business: callers pass the other arguments only.
intrinsic: Any = numba.extending.intrinsic
SCRATCH_ROWS = 32


@intrinsic
def count_trailing_zeros(typingctx: Any, value: Any) -> Any:
    """Index of the lowest set bit of a non-zero int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


@intrinsic
def count_ones(typingctx: Any, value: Any) -> Any:
    """Number of set bits of an int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.int64), codegen


@intrinsic
def row_pointer(typingctx: Any) -> Any:
    """Pointer to SCRATCH_ROWS int64 in the frame of the calling kernel.

    Use it as ``rows = carray(row_pointer(), SCRATCH_ROWS)``; the memory is not cleared and ends
    with the kernel that asked for it.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return cgutils.alloca_once(builder, ir.IntType(64), size=SCRATCH_ROWS)

    return types.CPointer(types.int64)(), codegen
