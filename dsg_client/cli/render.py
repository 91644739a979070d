"""The one door to the terminal: text, JSON, progress, questions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dsg_client.sync.events import Attempt, Event, Note, Phase, PhaseStarted, Planned, Progress
from protocol.errors import DsgError, Outcome
from protocol.paths import escape

__all__ = ["SCHEMA", "Output", "bytes_text", "count_text", "plural", "show_connection"]

SCHEMA = 1  # of every --json document; docs/commands.md describes them

_OUTCOMES = {
    Outcome.ABORTED: "Nothing was changed: local, cache and remote are as they were.",
    Outcome.COMMITTED: "The sync itself is committed and complete on the server.",
    Outcome.IN_DOUBT: "It is not known whether the server committed; nothing was changed here.",
}


class Output:
    """How one command speaks: people on stdout and stderr, or one JSON document on stdout."""

    def __init__(self, *, json_mode: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.json_mode = json_mode
        self.quiet = quiet
        self.verbose = verbose
        self.terminal = sys.stderr.isatty() and not json_mode and not quiet
        self._bar: Any = None
        self._bar_phase: Phase | None = None
        self.notes: list[dict[str, Any]] = []
        #: For the log: whether the command changed something, what it says of it, and what went wrong.
        self.worth_logging = False
        self.log_fields: dict[str, Any] = {}
        self.failure: dict[str, Any] | None = None

    def say(self, text: str = "") -> None:
        """A line of the command's answer (not with --json; not with --quiet)."""
        if not self.json_mode and not self.quiet:
            self._clear()
            sys.stdout.write(text + "\n")

    def detail(self, text: str) -> None:
        """A line that only -v shows, on stderr."""
        if self.verbose and not self.json_mode:
            self._clear()
            sys.stderr.write(text + "\n")

    def warn(self, text: str) -> None:
        """A line on stderr, also with --quiet; kept for --json."""
        self.notes.append({"text": text, "warning": True})
        if not self.json_mode:
            self._clear()
            sys.stderr.write(self._paint(f"warning: {text}", "33") + "\n")

    def result(self, fields: Mapping[str, Any]) -> None:
        """The one JSON document of a command that worked; nothing without --json."""
        if self.json_mode:
            self._document({"ok": True, "exit_status": 0, **fields})

    def log(self, **fields: Any) -> None:
        """The command changed something: it is worth a line in the client's log, with these fields."""
        self.worth_logging = True
        self.log_fields.update(fields)

    def error(self, error: DsgError) -> int:
        """Show an error with its outcome and what to do; returns the exit status."""
        self.failure = {"code": error.code, "message": error.message, "outcome": error.outcome.value}
        if self.json_mode:
            self._document({"ok": False, "exit_status": error.exit_status, "error": error.to_wire()})
            return error.exit_status
        self._clear()
        lines = [self._paint("dsg: ", "31") + _safe(error.message)]
        hint = _safe(error.hint)
        lines += ["  " + line for line in (hint[:1].upper() + hint[1:]).splitlines()]
        if error.exit_status not in (1, 2, 4) or error.outcome is not Outcome.ABORTED:
            lines.append("  " + _OUTCOMES[error.outcome])
        sys.stderr.write("\n".join(lines) + "\n")
        return error.exit_status

    def leave(self, status: int) -> None:
        """End the process with ``status``, once everything is written, without waiting for teardown."""
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (BrokenPipeError, ValueError):
            os._exit(141)
        os._exit(status)

    # events of a sync

    def on_event(self, event: Event) -> None:
        """Render one event; passed to the sync as its ``emit``."""
        if isinstance(event, Note):
            if event.warning:
                self.warn(event.text)
            else:
                self.notes.append({"text": event.text, "warning": False})
                if not self.json_mode and not self.quiet:
                    self._clear()
                    sys.stderr.write(event.text + "\n")
        elif isinstance(event, Attempt):
            self.notes.append({"text": f"attempt {event.number}: {event.reason}", "warning": False})
            if not self.json_mode:
                self._clear()
                sys.stderr.write(f"{event.reason}; attempt {event.number} in {event.wait:.0f} s\n")
        elif isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, PhaseStarted):
            self.detail(f"[{event.phase.value}]")
        elif isinstance(event, Planned):
            self.detail(
                f"plan: {event.uploads} up ({bytes_text(event.upload_bytes)}), "
                f"{event.downloads} down ({bytes_text(event.download_bytes)}), "
                f"{event.delete_local} to delete here, {event.delete_remote} on the server"
            )

    def _progress(self, event: Progress) -> None:
        if not self.terminal:
            return
        if self._bar is None or self._bar_phase is not event.phase:
            self._clear()
            from tqdm import tqdm

            self._bar = tqdm(
                desc=event.phase.value,
                total=event.bytes_total or None,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                leave=False,
                dynamic_ncols=True,
                mininterval=0.2,
            )
            self._bar_phase = event.phase
        if event.bytes_total and self._bar.total != event.bytes_total:
            self._bar.total = event.bytes_total
        if event.files_total:
            self._bar.set_postfix_str(f"{event.files:,}/{event.files_total:,} files", refresh=False)
        elif event.files:
            self._bar.set_postfix_str(f"{event.files:,} files", refresh=False)
        self._bar.update(max(0, event.bytes - self._bar.n))

    def finish_progress(self) -> None:
        """Take the progress bar off the screen."""
        self._clear()

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self._bar_phase = None

    def _document(self, fields: dict[str, Any]) -> None:
        document = {"schema": SCHEMA, **fields, "notes": self.notes}
        json.dump(document, sys.stdout, ensure_ascii=True, indent=None, default=str)
        sys.stdout.write("\n")

    def _paint(self, text: str, color: str) -> str:
        if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
            return f"\x1b[{color}m{text}\x1b[0m"
        return text


def show_connection() -> None:
    """From now on, show on stderr what the connection's modules log: for ``-vv``."""
    import logging

    class Safe(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return _safe(super().format(record))

    shown = logging.StreamHandler(sys.stderr)
    shown.setFormatter(Safe("%(relativeCreated)6d ms  %(name)s: %(message)s"))
    for name in ("dsg", "asyncssh"):
        logger = logging.getLogger(name)
        logger.addHandler(shown)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False


def _safe(text: str) -> str:
    """Text from anywhere, line by line safe for a terminal."""
    return "\n".join(escape(line) for line in text.split("\n"))


def bytes_text(n: int) -> str:
    """A size for people, in binary units: ``1.5 MiB``."""
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{int(size)} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def plural(n: int, one: str, many: str | None = None) -> str:
    """``1 file``, ``2 files``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def count_text(parts: Sequence[tuple[int, str]]) -> str:
    """``3 uploaded, 1 deleted here``; parts with 0 are left out; ``nothing`` when all are."""
    return ", ".join(f"{n:,} {what}" for n, what in parts if n) or "nothing"
