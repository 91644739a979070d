"""A program on this machine as a transport: the agent without a host, or the system's ssh."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence

from dsg_client.remote.transport import ExitStatus, Mailbox, Receiver, Tail
from protocol.codec import Buffer
from protocol.errors import AgentStartError
from protocol.paths import escape

__all__ = ["ChildTransport", "agent_command"]

HIGH_WATER = 2 * 1024 * 1024
PIPE_BYTES = 1024 * 1024  # the most that Linux gives an ordinary user; its default of 64 KiB halves the speed
READ_BYTES = 512 * 1024
READS_A_TURN = 4  # then the event loop gets its turn
IOV = 64
ENDING_LIMIT = 0.5
UNDOING_LIMIT = 5.0

_BOOT = (
    "import sys;"
    "n=int(sys.argv[1]);f=sys.argv[2:2+n];sys.argv[:]=['dsg-remote-agent',*sys.argv[2+n:]];"
    "sys.path.extend(p for p in f if p not in sys.path);"
    "from dsg_remote_agent.main import main;sys.exit(main())"
)


def agent_command(options: Sequence[str] = ()) -> list[str]:
    """The command that starts this installation's own agent on this machine.

    The same interpreter in isolated mode: neither the environment nor the
    current folder can put another module in its way. It is given the folders
    from which this very process has its packages, so that it is the same
    version and is found in a checkout and in a user's site-packages alike.
    """
    folders: list[str] = []
    for name in ("protocol", "attrs", "msgpack", "structlog"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folder = os.path.dirname(os.path.dirname(os.path.abspath(spec.origin)))
            if folder not in folders:
                folders.append(folder)
    return [sys.executable, "-I", "-c", _BOOT, str(len(folders)), *folders, *options]


class ChildTransport:
    """A child process's stdin and stdout; its stderr is drained and its end kept.

    The child has its own process group, so that Ctrl-C on the terminal reaches
    DSG alone and DSG decides what to do about it. It sees the end of its input
    when this process dies, however that happens.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str = "this machine",
        own_group: bool = True,
        stderr: Tail | None = None,
        ending_limit: float = ENDING_LIMIT,
    ) -> None:
        """Start ``command``; AgentStartError when it cannot be started."""
        self.name = name
        self._ending_limit = ending_limit
        self.stderr = stderr or Tail()
        self._mailbox = Mailbox()
        self._loop = asyncio.get_running_loop()
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._was_congested = False
        self._closing = False
        try:
            self._child = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                process_group=0 if own_group else None,
            )
        except OSError as error:
            raise AgentStartError(
                f"{escape(command[0])} cannot be started: {error.strerror}",
                hint="check the installation of DSG, or the command in the configuration",
                facts={"command": list(command)},
            ) from None
        assert self._child.stdin and self._child.stdout and self._child.stderr
        self._stdin = self._child.stdin.fileno()
        self._stdout = self._child.stdout.fileno()
        self._errors = self._child.stderr.fileno()
        for fd in (self._stdin, self._stdout, self._errors):
            os.set_blocking(fd, False)
        for fd in (self._stdin, self._stdout):
            _widen(fd)
        self._loop.add_reader(self._stdout, self._read)
        self._loop.add_reader(self._errors, self._read_errors)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def congested(self) -> bool:
        return self._queued > HIGH_WATER

    def attach(self, receiver: Receiver) -> None:
        self._mailbox.attach(receiver)

    def write(self, chunks: Sequence[Buffer]) -> None:
        if self._stdin < 0 or self._closing:
            return
        idle = not self._queue
        for chunk in chunks:
            if len(chunk):
                self._queue.append(memoryview(chunk))
                self._queued += len(chunk)
        if idle and self._queue:
            self._write_queue()
            if self._queue:
                self._loop.add_writer(self._stdin, self._write_queue)
        self._was_congested = self.congested

    def _write_queue(self) -> None:
        queue = self._queue
        try:
            while queue:
                count = os.writev(self._stdin, [queue[i] for i in range(min(len(queue), IOV))])
                self._queued -= count
                while queue and count >= len(queue[0]):
                    count -= len(queue.popleft())
                if count:
                    queue[0] = queue[0][count:]
        except BlockingIOError:
            pass
        except OSError:
            # The child closed its input; its end of output tells the rest.
            self._drop_queue()
            self._close_stdin()
            self._mailbox.writable()
            return
        if not queue:
            self._loop.remove_writer(self._stdin)
            if self._closing:
                self._close_stdin()
        if self._was_congested and self._queued <= HIGH_WATER // 2:
            self._was_congested = False
            self._mailbox.writable()

    def _drop_queue(self) -> None:
        self._queue.clear()
        self._queued = 0
        self._was_congested = False

    def _close_stdin(self) -> None:
        if self._stdin >= 0 and self._child.stdin:
            self._loop.remove_writer(self._stdin)
            self._stdin = -1
            self._child.stdin.close()

    def _read(self) -> None:
        for _ in range(READS_A_TURN):
            if self._stdout < 0:  # the receiver let go of us
                return
            try:
                chunk = os.read(self._stdout, READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._end_of_output(error)
                return
            if not chunk:
                self._end_of_output(None)
                return
            self._mailbox.received(chunk)
            if len(chunk) < READ_BYTES // 8:
                return

    def _end_of_output(self, error: Exception | None) -> None:
        self._close_output()
        self._mailbox.ended(error)

    def _close_output(self) -> None:
        if self._stdout >= 0 and self._child.stdout:
            self._loop.remove_reader(self._stdout)
            self._stdout = -1
            self._child.stdout.close()

    def _read_errors(self) -> None:
        try:
            chunk = os.read(self._errors, 64 * 1024)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if chunk:
            self.stderr.add(chunk)
        else:
            self._close_errors()

    def _close_errors(self) -> None:
        if self._errors >= 0 and self._child.stderr:
            self._loop.remove_reader(self._errors)
            self._errors = -1
            self._child.stderr.close()

    async def exit_status(self, limit: float) -> ExitStatus | None:
        # No signal handler and no thread: a child that closed its output ends within a millisecond or two.
        pause, deadline = 0.0005, time.monotonic() + limit
        while self._child.poll() is None or self._errors >= 0:
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.02)
        code = self._child.returncode
        return None if code is None else ExitStatus.of(code)

    async def close(self, *, undoing: bool = False) -> None:
        limit = UNDOING_LIMIT if undoing else self._ending_limit
        self._closing = True
        if not self._queue:
            self._close_stdin()
        try:
            await self.exit_status(limit)
        finally:
            self.abort()

    def abort(self) -> None:
        self._closing = True
        self._drop_queue()
        self._close_stdin()
        self._close_output()
        self._close_errors()
        self._mailbox.ended(None)
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()


def _widen(fd: int) -> None:
    """Give a pipe more room where the system can (Linux) and lets us."""
    size = getattr(fcntl, "F_SETPIPE_SZ", None)
    if size is not None:
        try:
            fcntl.fcntl(fd, size, PIPE_BYTES)
        except OSError:
            pass  # the user's share of pipe pages is used up: slower, not wrong
