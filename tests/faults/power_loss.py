"""What a disk may hold after the power went, from the recorded file events of a writer.

A model of a file system that promises no more than POSIX: the bytes of a file are safe once it was
fsynced, a folder's entries once the folder was. What was not is lost or kept, piece by piece, in any
order. A rename is one step: it has happened or it has not.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .tracing import Event

PIECE = 32_768  # bytes of a write that are lost or kept together
WRITES = ("write", "pwrite", "writev", "pwritev", "sendfile", "copy_file_range", "splice")

Chance = Callable[[], bool]
Entries = dict[str, str]  # name -> inode
Tree = dict[str, Entries]  # inode of a folder -> its entries
Change = tuple[tuple[str, str, str | None], ...]  # folder, name, inode; None: the name goes
Left = dict[str, bytes | None]  # path below the root -> content; None: a folder


@dataclass
class File:
    """Bytes that are safe, and the changes since: (offset, bytes), or (length, None) if cut; of no
    bytes: it is at least so long.
    """

    safe: bytes = b""
    changes: list[tuple[int, bytes | None]] = field(default_factory=list)

    def content(self, keep: Chance) -> bytes:
        """What is left when each change is kept or lost; a write lost in the middle is zeros."""
        content = bytearray(self.safe)
        for offset, written in self.changes:
            if written is None:
                if keep():
                    content = content[:offset] + bytes(max(0, offset - len(content)))
                continue
            if not written and keep():
                content.extend(bytes(max(0, offset - len(content))))
            for start in range(0, len(written), PIECE):
                if keep():
                    piece, begin = written[start : start + PIECE], offset + start
                    content.extend(bytes(max(0, begin + len(piece) - len(content))))
                    content[begin : begin + len(piece)] = piece
        return bytes(content)


class Disk:
    """A folder while a writer's events are replayed: what is safe, and what is only in memory."""

    def __init__(self, root: Path) -> None:
        """All that lies below ``root`` now is safe."""
        self.root = str(root.resolve())
        self.top = _inode(self.root)
        self.files: dict[str, File] = {}
        self._numbers = itertools.count()
        self.newest: dict[str, str] = {}  # numbers of inodes are used again: number -> our name
        self.seen: Tree = {self.top: {}}  # by the running system
        self.changes: list[Change] = []  # of `seen` against `safe`
        for parent, folders, files in os.walk(self.root):
            entries = self.seen.setdefault(_inode(parent), {})
            for name in [*folders, *files]:
                path = os.path.join(parent, name)
                entries[name] = _inode(path)
                if name in files:
                    self.files.setdefault(entries[name], File(Path(path).read_bytes()))
        self.safe: Tree = {folder: dict(entries) for folder, entries in self.seen.items()}

    def play(self, event: Event, data: bytes) -> None:
        """Let an event happen."""
        if event.result is None or event.result < 0:
            return
        name, inode = event.name, self.newest.get(event.inode, event.inode)
        if name == "open":
            folder, last = self._place(event.path)
            if last not in self.seen[folder]:
                inode = self._new(event.inode)
                self.files[inode] = File()
                self._change((folder, last, inode))
            elif event.length == 0:
                self.files[inode].changes.append((0, None))
        elif name in WRITES:
            if event.result > 0:
                assert event.place >= 0, f"recorded without data: {event}"
                written = data[event.place : event.place + event.length]
                self.files[inode].changes.append((event.offset, written))
        elif name == "truncate":
            self.files[inode].changes.append((event.length, None))
        elif name == "fallocate":
            if event.offset > 0:
                self.files[inode].changes.append((event.offset, b""))
        elif name == "mkdir":
            inode = self._new(event.inode)
            self.seen[inode] = {}
            self.safe[inode] = {}
            self._change((*self._place(event.path), inode))
        elif name in ("unlink", "rmdir"):
            self._change((*self._place(event.path), None))
        elif name == "link":
            folder, last = self._place(event.path)
            self._change((*self._place(event.second), self.seen[folder][last]))
        elif name == "rename":
            folder, last = self._place(event.path)
            moved = self.seen[folder][last]
            self._change((folder, last, None), (*self._place(event.second), moved))
        elif name == "fsync":
            if event.place >= 0:  # it was mapped: all of it is what was stored there
                whole = data[event.place : event.place + event.length]
                self.files[inode].changes.append((0, whole))
            self._sync(inode)
        elif name in ("mmap", "chmod", "utime"):
            pass  # stores into a mapped file are known when it is synced
        else:
            raise AssertionError(f"the model of a disk knows no {name}: {event}")

    def _place(self, path: str) -> tuple[str, str]:
        """Inode of the folder, and the last name."""
        folder = self.top
        *folders, last = os.path.relpath(path, self.root).split("/")
        for name in folders:
            folder = self.seen[folder][name]
        return folder, last

    def _new(self, number: str) -> str:
        self.newest[number] = f"{number}.{next(self._numbers)}"
        return self.newest[number]

    def _change(self, *change: tuple[str, str, str | None]) -> None:
        self.changes.append(change)
        _apply(self.seen, change)

    def _sync(self, inode: str) -> None:
        if inode in self.files:
            file = self.files[inode]
            file.safe, file.changes = file.content(lambda: True), []
            return
        later = []
        for change in self.changes:
            if any(folder == inode for folder, _, _ in change):
                _apply(self.safe, change)
            else:
                later.append(change)
        self.changes = later

    def after_power_loss(self, keep_names: Chance, keep_bytes: Chance) -> Left:
        """One disk that may be left."""
        tree = {folder: dict(entries) for folder, entries in self.safe.items()}
        for change in self.changes:
            if keep_names():
                _apply(tree, change)
        left: Left = {}

        def walk(folder: str, path: str) -> None:
            for name, inode in sorted(tree[folder].items()):
                if inode in tree:
                    left[path + name] = None
                    walk(inode, f"{path}{name}/")
                else:
                    left[path + name] = self.files[inode].content(keep_bytes)

        walk(self.top, "")
        return left


def _inode(path: str) -> str:
    about = os.lstat(path)
    return f"{about.st_dev:x}:{about.st_ino:x}"


def _apply(tree: Tree, change: Change) -> None:
    for folder, name, inode in change:
        if inode is None:
            tree[folder].pop(name, None)
        else:
            tree[folder][name] = inode


def disks(
    disk: Disk, events: Sequence[Event], data: bytes, seed: int, mixtures: int
) -> Iterator[tuple[int, str, Left]]:
    """Before and after each event: its number, what was lost, and a disk that may be left.

    Lost is what was not safe: ``all`` of it, ``nothing``, the ``bytes`` but not the names, the
    ``names`` but not the bytes; and ``mixtures`` of them by chance.
    """
    rng = random.Random(seed)

    def lost() -> bool:
        return False

    def kept() -> bool:
        return True

    def toss() -> bool:
        return rng.random() < 0.5

    losses = {
        "all": (lost, lost),
        "nothing": (kept, kept),
        "bytes": (kept, lost),
        "names": (lost, kept),
        **{f"mixture {number}": (toss, toss) for number in range(mixtures)},
    }
    for number, event in enumerate([None, *events]):
        if event is not None:
            disk.play(event, data)
        for loss, chances in losses.items():
            yield number, loss, disk.after_power_loss(*chances)


def lay_out(left: Left, folder: Path) -> None:
    """Make the files and folders of a disk in a new folder."""
    folder.mkdir(parents=True)
    for path, content in left.items():
        target = folder / path
        if content is None:
            target.mkdir()
        else:
            target.write_bytes(content)
