"""Signing in through asyncssh: is this the server's key, and who are you.

Keys are chosen here and not by asyncssh, so that what was tried can be told,
and no private key is decrypted before a server asked for it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncssh
from asyncssh.config import SSHClientConfig
from asyncssh.public_key import (
    SSHLocalKeyPair,
    get_default_certificate_algs,
    get_default_public_key_algs,
)

from dsg_client.remote.hostkeys import (
    HostKey,
    KnownEntry,
    Verdict,
    accept_new_host_key,
    check_host_key,
    host_key_error,
    known_name,
    read_known_hosts,
)
from dsg_client.remote.settings import LinkSettings
from protocol.errors import (
    DsgError,
    HostKeyChangedError,
    HostKeyUnknownError,
    LinkError,
    LinkLostError,
    RefusedError,
    SignInError,
)
from protocol.paths import escape

__all__ = ["SignIn", "reason"]

ASKED_AT_MOST = 3

_KEY_FILES = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")
_GLOBAL_KNOWN = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_USER_KNOWN = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")


class SignIn(asyncssh.SSHClient):
    """What one connection asks its client: is this the server's key, and who are you."""

    def __init__(
        self,
        config: SSHClientConfig,
        settings: LinkSettings,
        ask: Callable[[str, bool], Awaitable[str | None]],
        *,
        host: str,
        name: str,
        port: int,
        login: str,
    ) -> None:
        """``host`` as the user wrote it, ``name`` and ``port`` as the configuration has them.

        ConfigError when known_hosts cannot be read.
        """
        self._config = config
        self._settings = settings
        self._ask = ask
        self._host = host
        self._login = login
        alias = config.get("HostKeyAlias")
        self._name, self._port = (str(alias), 22) if alias else (name, port)
        self._where = (name, port)
        self._files = _paths(config.get("UserKnownHostsFile"), _USER_KNOWN)
        self._known: list[KnownEntry] = read_known_hosts(
            [*self._files, *_paths(config.get("GlobalKnownHostsFile"), _GLOBAL_KNOWN)]
        )
        self._about = [e for e in self._known if e.matches(known_name(self._name, self._port))]
        self._failure: DsgError | None = None
        self._tried: list[str] = []
        self._refused: set[bytes] = set()
        self._methods: Sequence[str] = ()
        self._offers: AsyncIterator[Any] | None = None
        self._asked = {"password": 0, "kbdint": 0}
        self._connection: asyncssh.SSHClientConnection | None = None
        self._agent: asyncssh.SSHAgentClient | None = None

    # The server's key.

    def authorities(self) -> bytes:
        """What asyncssh itself must know of known_hosts: the certificate authorities, and revoked keys."""
        marked = [e for e in self._about if e.marker]
        if all(e.marker == "revoked" for e in marked):
            marked = []  # without an authority, validate_host_public_key sees every key and names the line
        lines = [f"@{e.marker} * {e.key.kind} {base64.b64encode(e.key.blob).decode()}" for e in marked]
        # Never empty: asyncssh would then read the default file, and trust its keys without asking here.
        return "\n".join(["# of this host", *lines]).encode()

    def host_key_algorithms(self) -> Any:
        """The kinds of keys by which the host is known first; () leaves it to ``~/.ssh/config``."""
        if self._config.get("HostKeyAlgorithms"):
            return ()
        known = {e.key.kind for e in self._about if not e.marker}
        kinds = {"rsa-sha2-256": "ssh-rsa", "rsa-sha2-512": "ssh-rsa"}
        plain = [alg.decode() for alg in get_default_public_key_algs()]
        plain.sort(key=lambda alg: kinds.get(alg, alg) not in known)
        signed = [alg.decode() for alg in get_default_certificate_algs()]
        return (signed if any(e.marker == "cert-authority" for e in self._about) else []) + plain

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        shown = HostKey(key.get_algorithm(), key.public_data)
        finding = check_host_key(self._known, self._name, self._port, shown)
        settings = self._settings
        if finding.verdict is Verdict.UNKNOWN and settings.accept_new_host_key and self._files:
            try:
                accept_new_host_key(self._files[0], self._name, self._port, shown)
            except DsgError as error:
                self._failure = error
                return False
            return True
        self._failure = host_key_error(finding, self._name, self._port, shown, settings.again)
        return self._failure is None

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        shown = HostKey(key.get_algorithm(), key.public_data)
        self._failure = HostKeyUnknownError(
            f"{known_name(self._name, self._port)} shows a certificate of an authority that is not known: "
            f"{shown.short_kind} {shown.fingerprint}",
            hint=f"add the authority to {self._files[0] if self._files else '~/.ssh/known_hosts'} "
            "as a line with @cert-authority",
            facts={"host": self._name, "fingerprint": shown.fingerprint},
        )
        return False

    # Who the user is.

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._connection = conn

    def connection_lost(self, exc: Exception | None) -> None:
        self._close_agent()

    def auth_completed(self) -> None:
        self._close_agent()

    def _close_agent(self) -> None:
        if self._agent is not None:
            self._agent.close()

    async def public_key_auth_requested(self) -> Any:
        self._note_methods()
        if self._offers is None:
            self._offers = self._keys()
        async for offer in self._offers:
            return [offer]
        return None

    async def _keys(self) -> AsyncIterator[Any]:
        """The keys to offer: the agent's, those that the configuration names first; then those in files."""
        named = _paths(self._config.get("IdentityFile"), ())
        files = named or _paths(None, [f"~/.ssh/{name}" for name in _KEY_FILES])
        publics = {file: _public_blob(file) for file in files}
        wanted = {blob for file, blob in publics.items() if blob}
        held = await self._agent_keys()
        if self._config.get("IdentitiesOnly"):
            held = [pair for pair in held if pair.public_data in wanted]
        held.sort(key=lambda pair: pair.public_data not in wanted)
        for pair in held:
            comment = escape(pair.get_comment()) or "without a comment"
            yield self._offer(pair, f"the ssh-agent's key {comment}")
        for file in files:
            if publics[file] in self._refused:
                continue
            if not _exists(file):
                if named:
                    self._tried.append(f"{escape(file)} (there is no such file)")
                continue
            for pair in await self._load(file, publics[file]):
                yield self._offer(pair, escape(file))

    async def _agent_keys(self) -> list[Any]:
        path = self._config.get("IdentityAgent", "SSH_AUTH_SOCK")
        if path == "SSH_AUTH_SOCK":
            path = os.environ.get("SSH_AUTH_SOCK", "")
        if not path:
            return []
        try:
            self._agent = await asyncssh.connect_agent(_paths(None, [str(path)])[0])
            return list(await self._agent.get_keys())
        except (OSError, ValueError, asyncssh.Error) as error:
            self._tried.append(f"the ssh-agent (it does not answer: {reason(error)})")
            return []

    def _offer(self, pair: Any, what: str) -> Any:
        self._refused.add(pair.public_data)
        shown = HostKey("", pair.public_data).fingerprint
        self._tried.append(f"{what} ({shown})")
        return pair

    async def _load(self, file: str, public: bytes | None) -> list[Any]:
        """The key pairs in a file, with its certificate if there is one; none, and a note, if unusable."""
        certificates = [c for c in _paths(self._config.get("CertificateFile"), ()) if _exists(c)]
        try:
            return _key_pairs(file, certificates)
        except asyncssh.KeyImportError as error:
            if "assphrase" not in str(error):
                self._tried.append(f"{escape(file)} (not usable: {escape(str(error))})")
                return []
        except (OSError, ValueError) as error:
            self._tried.append(f"{escape(file)} (not readable: {reason(error)})")
            return []
        if self._settings.ask is None:
            self._tried.append(
                f"{escape(file)} (encrypted, and there is no terminal to ask for its passphrase)"
            )
            return []
        if public is None:
            # Without its public half nothing can be offered before it is decrypted.
            key = await self._unlock(file)
            return [] if key is None else list(asyncssh.load_keypairs([key]))
        return [_LockedKeyPair(self, file, asyncssh.read_public_key(file + ".pub"))]

    async def _unlock(self, file: str) -> asyncssh.SSHKey | None:
        for _ in range(ASKED_AT_MOST):
            answer = await self._ask(f"Passphrase for {escape(file)}: ", True)
            if answer is None:
                break
            try:
                return asyncssh.read_private_key(file, answer)
            except (asyncssh.KeyImportError, ValueError):
                continue
        self._tried.append(f"{escape(file)} (its passphrase was not given)")
        return None

    async def password_auth_requested(self) -> str | None:
        self._note_methods()
        self._asked["password"] += 1
        if self._asked["password"] > ASKED_AT_MOST:
            return None
        answer = await self._ask(f"Password of {self._login} on {escape(self._host)}: ", True)
        if answer is not None:
            self._tried.append("a password")
        return answer

    def kbdint_auth_requested(self) -> str | None:
        self._note_methods()
        self._asked["kbdint"] += 1
        if self._settings.ask is None or self._asked["kbdint"] > ASKED_AT_MOST:
            return None
        return ""

    async def kbdint_challenge_received(
        self, name: str, instructions: str, lang: str, prompts: Any
    ) -> list[str] | None:
        answers: list[str] = []
        before = "".join(f"{escape(text)}\n" for text in (name, instructions) if text.strip())
        for prompt, echo in prompts:
            answer = await self._ask(before + escape(prompt.rstrip()) + " ", not echo)
            if answer is None:
                return None
            answers.append(answer)
            before = ""
        if answers:
            self._tried.append("answers to its questions")
        return answers

    def _note_methods(self) -> None:
        if self._connection is not None:
            self._methods = self._connection.get_server_auth_methods() or self._methods

    # What went wrong.

    def explain(self, error: Exception) -> DsgError:
        """The error to show for what asyncssh raised."""
        if self._failure is not None:
            return self._failure
        where = escape(self._host)
        facts: dict[str, Any] = {"host": self._host, "port": self._where[1]}
        if isinstance(error, asyncssh.PermissionDenied):
            tried = "; ".join(self._tried) or "no key, for none was found"
            return SignInError(
                f"{where} does not let {escape(self._login)} in. Tried: {tried}",
                hint="add the public key to ~/.ssh/authorized_keys there, load the right key with ssh-add, "
                "or name it with IdentityFile (and the account with User) in ~/.ssh/config",
                facts=facts | {"user": self._login, "tried": self._tried, "accepted": list(self._methods)},
            )
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return HostKeyChangedError(
                f"the host key of {where} cannot be accepted: {reason(error)}",
                hint="ask the server's administrator for its key",
                facts=facts,
            )
        if isinstance(error, asyncssh.ChannelOpenError):
            return RefusedError(
                f"{where}, port {self._where[1]}, cannot be reached from the jump host: {reason(error)}",
                hint="check the name and port as the jump host sees them, and that it allows forwarding",
                facts=facts | {"reason": "jump"},
            )
        if isinstance(error, (asyncssh.KeyExchangeFailed, asyncssh.ProtocolNotSupported)):
            return LinkError(
                f"no common encryption with {where}: {reason(error)}",
                hint="set 'transport: openssh' in the configuration, or update the server",
                facts=facts,
            )
        if isinstance(error, (asyncssh.ConnectionLost, asyncssh.DisconnectError, OSError)):
            return LinkLostError(
                f"{where} closed the connection before the sign-in was through: {reason(error)}",
                hint="the server may be overloaded or not allow this address; try 'ssh' to see what it says",
                facts=facts,
            )
        return LinkError(
            f"signing in to {where} failed: {reason(error)}",
            hint="try 'transport: openssh' in the configuration",
            facts=facts,
        )


class _LockedKeyPair(SSHLocalKeyPair):
    """An encrypted key: its public half is offered; its passphrase is asked for when the server wants it."""

    def __init__(self, sign_in: SignIn, file: str, public: asyncssh.SSHKey) -> None:
        super().__init__(public, public, None, None)
        self._sign_in = sign_in
        self._file = file

    async def sign_async(self, data: bytes) -> bytes:
        """Sign, asking for the passphrase; SignInError when it is not given."""
        key = await self._sign_in._unlock(self._file)
        if key is None:
            self._sign_in._failure = SignInError(
                f"the key {escape(self._file)} was not unlocked: its passphrase was wrong or was not given",
                hint="try again, or load the key with ssh-add",
                facts={"tried": self._sign_in._tried},
            )
            raise asyncssh.PermissionDenied("no passphrase")
        return bytes(key.sign(data, self.sig_algorithm))


def reason(error: BaseException) -> str:
    """What an exception says, safe to show."""
    text = getattr(error, "reason", "") or getattr(error, "strerror", "") or str(error)
    return escape(str(text)) or type(error).__name__


def _key_pairs(file: str, certificates: list[str]) -> list[Any]:
    try:
        return list(asyncssh.load_keypairs([file], certlist=certificates))
    except NameError:
        # An X.509 certificate stands behind the key: asyncssh was imported without them (see link), and
        # OpenSSH, too, takes the key alone.
        return list(asyncssh.load_keypairs([asyncssh.read_private_key(file)], certlist=certificates))


def _paths(configured: object, usual: Sequence[str]) -> list[str]:
    """The files that an option of ssh_config names; none for 'none', the usual ones where it is not set."""
    found = list(configured) if isinstance(configured, list) else list(usual)
    return [os.path.expanduser(str(path)) for path in found]


def _exists(file: str) -> bool:
    return os.path.exists(file)


def _public_blob(file: str) -> bytes | None:
    """The public half of a key file, from its ``.pub``."""
    try:
        with open(file + ".pub", "rb") as opened:
            return base64.b64decode(opened.read(1 << 16).split()[1])
    except (OSError, ValueError, IndexError):
        return None
