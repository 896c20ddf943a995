"""An artefact that is being written: a temporary folder, until it lands whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from ringrift_pipeline.store.artefacts import landing_name, write_pointer
from ringrift_pipeline.store.atomic import ensure_folder, fsync_path, temporary_folder
from ringrift_pipeline.store.errors import StoreError, VanishedFileError, no_file_gone
from ringrift_pipeline.store.layout import MANIFEST, Layout
from ringrift_pipeline.store.locks import folder_lock
from ringrift_pipeline.store.manifest import Artefact, as_artefact, make_manifest, normalize

if TYPE_CHECKING:
    from ringrift_pipeline.store.remote import Remote


class Folder(Protocol):
    """Where something writes its files: a folder, or a draft, which then knows of them."""

    def __truediv__(self, name: str, /) -> Path: ...


class Draft:
    """An artefact being written; made by `Store.create` and used as a context manager.

    ``draft / name`` is the path to write a file at; in a sub-folder, which it makes, as well. The
    draft lands with all the files that were asked for in this way and with no other, so that what
    vanishes before that (a cleaner of temporary files, a person) cannot be missing from an artefact.

    Attributes: ``path`` (the temporary folder), ``metadata`` (may be changed until the block ends).
    """

    def __init__(
        self,
        layout: Layout,
        config: str,
        generation: int,
        kind: str,
        metadata: dict[str, Any],
        remote: Remote | None = None,
    ) -> None:
        self._layout = layout
        self._remote = remote
        self._folder = layout.kind(config, generation, kind)
        self._identity = (config, generation, kind)
        self.metadata = metadata
        self._names: set[str] = set()
        self._path: Path | None = None
        self._descriptor = -1
        self._artefact: Artefact | None = None
        normalize(metadata, f"metadata of {kind}")  # fail now, not after hours of work

    @property
    def path(self) -> Path:
        if self._path is None:
            raise StoreError("a draft has a folder only inside its `with` block")
        return self._path

    def __truediv__(self, name: str) -> Path:
        """Path of a file, relative to the draft, that is written next."""
        path = self.path / name
        inside = path.relative_to(self.path)
        for folder in reversed(inside.parents[:-1]):
            with contextlib.suppress(FileExistsError):
                (self.path / folder).mkdir()
        self._names.add(inside.as_posix())
        return path

    def folder(self, name: str) -> Folder:
        """A sub-folder, for what takes a folder to write its files into."""
        return _SubFolder(self, name)

    @property
    def artefact(self) -> Artefact:
        """The landed artefact. Raises StoreError before the block has ended well."""
        if self._artefact is None:
            raise StoreError("a draft is an artefact only after its `with` block has ended well")
        return self._artefact

    @property
    def digest(self) -> str:
        """The digest it would land with as its files are now. Raises as landing does."""
        with no_file_gone():
            return self._manifest(self.path, "", {})[1]["digest"]

    def __enter__(self) -> Draft:
        if self._path is not None or self._artefact is not None:
            raise StoreError("a draft can be entered once only: call `create` again")
        ensure_folder(self._layout.inside(self._folder, self._identity[0]))
        self._path, self._descriptor = temporary_folder(self._folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        temporary, self._path = self.path, None
        try:
            if kind is None:
                with no_file_gone():
                    self._artefact = self._land(temporary)
            elif gone := self._gone(error, temporary):
                raise VanishedFileError(gone) from error
        finally:
            if temporary.exists():
                shutil.rmtree(temporary, ignore_errors=True)
            os.close(self._descriptor)

    def _gone(self, error: BaseException | None, folder: Path) -> Path | None:
        """What is gone of what the block had written, where that may be why it ended with this error."""
        # safetensors has an error of its own for a missing folder
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            return None
        if isinstance(error, FileNotFoundError) and error.filename is not None:
            file = Path(os.fsdecode(error.filename))
            if file.is_relative_to(folder):
                return file
        folders = (folder, *((folder / name).parent for name in sorted(self._names)))
        return next((one for one in folders if not one.is_dir()), None)

    def _land(self, temporary: Path) -> Artefact:
        now = datetime.now(UTC)
        created = now.isoformat(timespec="microseconds")
        data, content = self._manifest(temporary, created, self.metadata)
        for name in content["files"]:
            fsync_path(temporary / name)
        for parent, _, _ in os.walk(temporary, topdown=False):
            fsync_path(Path(parent))
        (temporary / MANIFEST).write_bytes(data)
        fsync_path(temporary / MANIFEST)
        fsync_path(temporary)
        for name in (*content["files"], MANIFEST):
            os.stat(temporary / name)  # it took a while
        if self._remote is not None:
            return self._remote.land(temporary, self._descriptor, self._identity, now, content)
        with folder_lock(self._folder):
            final = self._folder / landing_name(self._folder, now)
            os.rename(temporary, final)
            fsync_path(self._folder)
            artefact = as_artefact(final, content)
            write_pointer(artefact)
        return artefact

    def _manifest(
        self, folder: Path, created: str, metadata: dict[str, Any]
    ) -> tuple[bytes, dict[str, Any]]:
        """`make_manifest` of exactly the files that were asked for. Raises VanishedFileError,
        StoreError.
        """
        data, content = make_manifest(folder, *self._identity, created, metadata)
        if gone := self._names - content["files"].keys():
            raise VanishedFileError(folder / min(gone))
        if unknown := content["files"].keys() - self._names:
            raise StoreError(
                f"{folder / min(unknown)} is not known to its draft: write it to draft / "
                f"{min(unknown)!r}"
            )
        return data, content


@dataclass(frozen=True)
class _SubFolder:
    draft: Draft
    name: str

    def __truediv__(self, name: str) -> Path:
        return self.draft / f"{self.name}/{name}"
