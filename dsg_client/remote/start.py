"""Starting the agent: the command sent, the wait for its first words, what to say when they do not come.

Whether an agent started is decided by its preamble alone: exit statuses differ
between shells ("not found" is 1 under tcsh), and profiles print.
"""

from __future__ import annotations

import asyncio

from dsg_client.remote.transport import ExitStatus, Transport
from protocol.errors import AgentStartError, DsgError
from protocol.paths import escape
from protocol.preamble import Preamble, PreambleFound, PreambleMissing, PreambleScanner
from protocol.value import Value

__all__ = ["START_LIMIT", "StartedAgent", "remote_command", "start_agent"]

START_LIMIT = 10.0
_NO_AGENT = "DSG-NO-AGENT"
_SHOWN_BYTES = 400
_SHOWN_LINES = 6

# One line that bash, dash, zsh, fish and tcsh hand to /bin/sh unchanged: between the quotes there is
# no quote, no '!', no backslash and no newline. PATH gets pip's and pipx's folder at its end, which a
# login that is not interactive lacks on most systems.
_SCRIPT = (
    "exec /bin/sh -c 'PATH=$PATH:$HOME/.local/bin; export PATH; "
    "command -v dsg-remote-agent >/dev/null 2>&1 && exec dsg-remote-agent; "
    f"echo {_NO_AGENT} $PATH >&2; exit 127'"
)


class StartedAgent(Value):
    """An agent that has spoken. ``rest``: the bytes that came after its preamble."""

    preamble: Preamble
    rest: bytes
    noise: bytes  # what came before the preamble, from the server's profile


def remote_command(agent_command: str = "") -> str:
    """What the server's login shell is to run: the configured command as it stands, else a search of PATH."""
    return agent_command or _SCRIPT


async def start_agent(transport: Transport, *, tried: str = "", limit: float = START_LIMIT) -> StartedAgent:
    """Wait for the preamble of the program that ``transport`` runs.

    ``tried`` is the configured command, for messages. AgentStartError says
    what came instead and what to do, VersionError that the agent is too old
    or too new. After a failure the transport is aborted.
    """
    listener = _Listener()
    transport.attach(listener)
    try:
        try:
            found = await asyncio.wait_for(asyncio.shield(listener.result), limit)
        except TimeoutError:
            raise _silent(transport, listener.scanner.seen, tried, limit) from None
        if isinstance(found, PreambleMissing):
            status = await transport.exit_status(1.0)
            raise diagnose(found, status, bytes(transport.stderr), transport.name, tried)
        found.preamble.check_version()
    except BaseException:
        listener.result.cancel()
        transport.abort()
        raise
    return StartedAgent(found.preamble, found.rest + listener.later, found.noise)


class _Listener:
    """Feeds the scanner, and keeps what comes after the preamble until the session takes over."""

    def __init__(self) -> None:
        self.scanner = PreambleScanner()
        self.result: asyncio.Future[PreambleFound | PreambleMissing] = (
            asyncio.get_running_loop().create_future()
        )
        self.later = b""

    def received(self, chunk: bytes) -> None:
        if self.result.done():
            self.later += chunk
            return
        found = self.scanner.receive(chunk)
        if found is not None:
            self.result.set_result(found)

    def writable(self) -> None:
        pass

    def ended(self, error: Exception | None) -> None:
        if not self.result.done():
            self.result.set_result(self.scanner.receive_eof())


def diagnose(
    missing: PreambleMissing, status: ExitStatus | None, stderr: bytes, name: str, tried: str
) -> DsgError:
    """What went wrong on ``name``, from what its program printed instead of a preamble."""
    lines = _lines(stderr)
    facts = {
        "host": name,
        "tried": tried or "dsg-remote-agent on the server's PATH",
        "output": _show(missing.seen),
        "stderr": lines[-40:],
        "status": str(status) if status else "",
    }
    marked = next((line for line in lines if line.startswith(_NO_AGENT)), None)
    if marked is not None:
        path = marked.removeprefix(_NO_AGENT).strip()
        facts["path"] = path
        return AgentStartError(
            f"no DSG agent was found on {name}: there is no 'dsg-remote-agent' on the server's PATH ({path})"
            + _also_printed(missing.seen),
            hint="install it there ('pipx install dsg-sync', or 'pip install dsg-sync'), "
            "or set agent_command in the configuration to where it is",
            facts=facts,
        )
    what = f"the command {escape(tried)!r}" if tried else "the agent"
    ended = f"; it {status}" if status else ""
    told = "".join(f"\n    {line}" for line in lines[-_SHOWN_LINES:])
    if missing.altered:
        return AgentStartError(
            f"the bytes from {name} were changed on the way: {missing.reason}",
            hint="something runs the agent in a terminal: look for 'ssh -t', 'script' or a pty "
            "in agent_command, or in the server's forced command",
            facts=facts,
        )
    if missing.seen:
        return AgentStartError(
            f"something other than a DSG agent spoke on {name} ({missing.reason}{ended}):\n"
            f"    {_show(missing.seen)}{told}",
            hint="if this comes from a start-up file of the login shell there (~/.bashrc, ~/.zshenv, "
            "~/.cshrc, config.fish), let it print only when it is interactive; if it is a message of the "
            "system, this account may not run commands",
            facts=facts,
        )
    if lines or (status and status != ExitStatus(code=0)):
        return AgentStartError(
            f"{what} on {name} ended before it spoke{ended}{':' if told else ''}{told}",
            hint=_cure(lines, tried),
            facts=facts,
        )
    return AgentStartError(
        f"{what} on {name} ended before it spoke, without a word{ended}",
        hint='the server may force another command for this key (command="..." in authorized_keys, '
        "ForceCommand in sshd_config): it must start dsg-remote-agent",
        facts=facts,
    )


def _silent(transport: Transport, seen: bytes, tried: str, limit: float) -> AgentStartError:
    lines = _lines(bytes(transport.stderr))
    what = f"the command {escape(tried)!r}" if tried else "the agent"
    came = f"; instead came:\n    {_show(seen)}" if seen else "; nothing came at all"
    told = "".join(f"\n    {line}" for line in lines[-_SHOWN_LINES:])
    return AgentStartError(
        f"{what} on {transport.name} did not speak within {limit:.0f} s{came}{told}",
        hint="a start-up file of the login shell there may be waiting for input, the account may be for file "
        "transfer (sftp) only, or the server is very slow: try "
        f"'ssh HOST {escape(tried) if tried else 'dsg-remote-agent --version'}'",
        facts={"host": transport.name, "tried": tried, "output": _show(seen), "stderr": lines[-40:]},
    )


def _cure(lines: list[str], tried: str) -> str:
    text = "\n".join(lines).lower()
    if any(words in text for words in ("not found", "no such file", "unknown command")):
        if tried:
            return "check agent_command in the configuration, and that dsg-sync is installed on the server"
        return "install dsg-sync on the server, or set agent_command in the configuration to where it is"
    if "permission denied" in text:
        return "the account may not execute it: check the file's mode and that of the folders above it"
    if "syntaxerror" in text or "requires python" in text or "python 3" in text:
        return "the agent needs Python 3.11 or newer: name an agent installed with one in agent_command"
    return "run the agent by hand on the server with --version, and look at what it prints"


def _also_printed(seen: bytes) -> str:
    return f"; before that, the server printed: {_show(seen)}" if seen.strip() else ""


def _show(seen: bytes) -> str:
    text = escape(seen[:_SHOWN_BYTES].decode("utf-8", "surrogateescape"))
    return f"{text} … ({len(seen)} bytes)" if len(seen) > _SHOWN_BYTES else text


def _lines(stderr: bytes) -> list[str]:
    lines = stderr.decode("utf-8", "surrogateescape").splitlines()
    return [escape(line.rstrip())[:500] for line in lines if line.strip()]
