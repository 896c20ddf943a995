"""Python's source read as a syntax tree."""

from __future__ import annotations

import ast
import gc


def tree_of(text: str, name: str = "<unknown>") -> ast.Module:
    """``ast.parse``, without a collection of garbage while the tree is being built.

    Python 3.11 counts the depth of all trees in one place. A collection lets another thread, or what
    an object does when it goes, parse something in between, and the count no longer fits
    (``SystemError: AST constructor recursion depth mismatch``, python/cpython#106905).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text, name)
    finally:
        if collects:
            gc.enable()
