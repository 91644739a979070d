"""A tree that counts its mutating operations and dies before one of them, as by SIGKILL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.tree.fs import Kind

CHANGES = frozenset(
    [
        "create",
        "write_bytes",
        "symlink",
        "mkdir",
        "rmdir",
        "unlink",
        "move",
        "place",
        "swap",
        "set_executable",
        "flush_folder",
        "flush",
    ]
)
FILE_CHANGES = frozenset(["write", "skip", "take", "finish"])


class Killed(BaseException):
    """The process is gone: no handler may catch this, no cleaning up may succeed after it."""


class Recorder:
    """Passes everything on to ``tree``.

    ``allowed`` mutating operations succeed, then everything raises Killed.
    ``before`` is called with (number, name, arguments) ahead of each.
    ``skip_flushes``: flushing is counted and left out, which only makes tests
    faster where no power loss is modelled.
    """

    def __init__(
        self,
        tree: Any,
        *,
        allowed: int | None = None,
        before: Callable[[int, str, tuple[Any, ...]], None] | None = None,
        skip_flushes: bool = False,
    ) -> None:
        self.tree = tree
        self.allowed = allowed
        self.before = before
        self.skip_flushes = skip_flushes
        self.log: list[str] = []
        self.dead = False

    def change(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self.dead or len(self.log) == self.allowed:
            self.dead = True
            raise Killed
        if self.before is not None:
            self.before(len(self.log), name, arguments)
        if self.skip_flushes:
            named.pop("durable", None)
        skipped = self.skip_flushes and name in ("flush", "flush_folder")
        result = None if skipped else call(*arguments, **named)
        self.log.append(" ".join([name, *(a for a in arguments if isinstance(a, str))]))
        return result

    def make_folders(self, path: str) -> None:
        """One mkdir at a time, so that a crash can fall between them."""
        parts = path.split("/") if path else []
        for i in range(1, len(parts) + 1):
            folder = "/".join(parts[:i])
            try:
                if self.tree.stat(folder).kind is Kind.FOLDER:
                    continue
            except FileNotFoundError:
                pass
            self.change("mkdir", self.tree.mkdir, folder)

    def create(self, path: str) -> Any:
        return _File(self, self.change("create", self.tree.create, path))

    def __getattr__(self, name: str) -> Any:
        if self.dead:
            raise Killed
        found = getattr(self.tree, name)
        if name not in CHANGES:
            return found
        return lambda *arguments, **named: self.change(name, found, *arguments, **named)


class _File:
    def __init__(self, recorder: Recorder, file: Any) -> None:
        self._recorder = recorder
        self._file = file

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._file, name)
        if name not in FILE_CHANGES:
            return found
        return lambda *arguments, **named: self._recorder.change(name, found, *arguments, **named)
