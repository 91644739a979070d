"""``python -m tests.demo.asyncssh_server PORT HOST_KEY AUTHORIZED_KEYS``: one account's server on loopback.

Runs what a session asks for through ``/bin/sh``, in the home folder, as the
account that started it; until SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import asyncssh


async def run_command(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """One session: a child process whose three streams are the channel's."""
    if process.command is None:
        process.stderr.write(b"this server runs commands only\n")
        process.exit(1)
        return
    child = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        process.command,
        cwd=Path.home(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
    status = await child.wait()
    with contextlib.suppress(asyncssh.Error, OSError):
        await process.stdout.drain()
    process.exit(status if status >= 0 else 128 - status)


async def serve(port: int, host_key: str, authorized_keys: str) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    server = await asyncssh.listen(
        "127.0.0.1",
        port,
        server_host_keys=[host_key],
        authorized_client_keys=authorized_keys,
        process_factory=run_command,
        encoding=None,
    )
    async with server:
        await over.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
