"""known_hosts: every kind of line, checked against OpenSSH's own ssh-keygen where it can tell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dsg_client.remote.hostkeys import (
    HostKey,
    Verdict,
    accept_new_host_key,
    check_host_key,
    host_key_error,
    known_name,
    read_known_hosts,
)
from protocol.errors import ConfigError, HostKeyChangedError, HostKeyUnknownError, LocalStorageError

pytestmark = pytest.mark.needs("ssh-keygen")


def make_key(folder: Path, name: str, kind: str = "ed25519") -> HostKey:
    import base64

    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(path)], check=True)
    words = path.with_suffix(".pub").read_text().split()
    return HostKey(words[0], base64.b64decode(words[1]))


def line(key: HostKey) -> str:
    import base64

    return f"{key.kind} {base64.b64encode(key.blob).decode()}"


@pytest.fixture
def key(tmp_path: Path) -> HostKey:
    return make_key(tmp_path, "one")


def verdict(tmp_path: Path, text: str, host: str, key: HostKey, port: int = 22) -> Verdict:
    (tmp_path / "known").write_text(text)
    return check_host_key(read_known_hosts([tmp_path / "known"]), host, port, key).verdict


def test_the_fingerprint_is_the_one_that_ssh_keygen_shows(tmp_path: Path, key: HostKey) -> None:
    told = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(tmp_path / "one.pub")], check=True, capture_output=True, text=True
    ).stdout
    assert told.split()[1] == key.fingerprint
    assert told.strip().endswith(f"({key.short_kind})")


def test_lines_of_every_kind(tmp_path: Path, key: HostKey) -> None:
    def of(text: str, host: str, port: int = 22) -> Verdict:
        return verdict(tmp_path, text, host, key, port)

    assert of("", "a") is Verdict.UNKNOWN
    assert of(f"a {line(key)}", "a") is Verdict.KNOWN
    assert of(f"a {line(key)}", "b") is Verdict.UNKNOWN
    assert of(f"A.Example,b {line(key)} comment here", "a.eXample") is Verdict.KNOWN
    assert of(f"*.example,!evil.example {line(key)}", "x.example") is Verdict.KNOWN
    assert of(f"*.example,!evil.example {line(key)}", "evil.example") is Verdict.UNKNOWN
    assert of(f"host? {line(key)}", "host1") is Verdict.KNOWN
    assert of(f"[a]:2222 {line(key)}", "a", 2222) is Verdict.KNOWN
    assert of(f"[a]:2222 {line(key)}", "a") is Verdict.UNKNOWN
    assert of(f"[*]:2222 {line(key)}", "a", 2222) is Verdict.KNOWN
    assert of(f"a {line(key)}", "a", 2222) is Verdict.KNOWN  # as OpenSSH: without a port, for all
    assert of(f"# a {line(key)}\nnonsense\na ssh-ed25519 !!!\n", "a") is Verdict.UNKNOWN
    assert of(f"a ssh-rsa {line(key).split()[1]}", "a") is Verdict.UNKNOWN  # another kind than the key's own
    assert of(f"@cert-authority a {line(key)}", "a") is Verdict.UNKNOWN


def test_a_changed_key_names_the_line(tmp_path: Path, key: HostKey) -> None:
    other, third = make_key(tmp_path, "two"), make_key(tmp_path, "three", "ecdsa")
    (tmp_path / "known").write_text(f"# first\nother {line(key)}\na {line(third)}\na {line(other)}\n")
    finding = check_host_key(read_known_hosts([tmp_path / "none", tmp_path / "known"]), "a", 22, key)
    error = host_key_error(finding, "a", 22, key, "dsg sync")
    assert isinstance(error, HostKeyChangedError)
    assert f"{tmp_path / 'known'}, line 4" in error.message
    assert key.fingerprint in error.message and other.fingerprint in error.message
    assert f"ssh-keygen -R 'a' -f '{tmp_path / 'known'}'" in error.hint


def test_a_key_of_another_kind_is_a_changed_key(tmp_path: Path, key: HostKey) -> None:
    assert verdict(tmp_path, f"a {line(make_key(tmp_path, 'e', 'ecdsa'))}\n", "a", key) is Verdict.CHANGED


def test_a_changed_key_at_another_port_is_unknown_not_changed(tmp_path: Path, key: HostKey) -> None:
    assert verdict(tmp_path, f"a {line(make_key(tmp_path, 'o'))}\n", "a", key, 2222) is Verdict.UNKNOWN


def test_a_revoked_key_is_refused_even_where_it_is_known(tmp_path: Path, key: HostKey) -> None:
    text = f"a {line(key)}\n@revoked * {line(key)}\n"
    assert verdict(tmp_path, text, "a", key) is Verdict.REVOKED
    finding = check_host_key(read_known_hosts([tmp_path / "known"]), "a", 22, key)
    error = host_key_error(finding, "a", 22, key, "dsg sync")
    assert isinstance(error, HostKeyChangedError) and "revoked" in error.message and "line 2" in error.message


def test_an_unknown_key_says_what_to_type(key: HostKey) -> None:
    finding = check_host_key([], "server", 2222, key)
    error = host_key_error(finding, "server", 2222, key, "dsg clone server:/d here")
    assert isinstance(error, HostKeyUnknownError)
    assert key.fingerprint in error.message and "[server]:2222" in error.message
    assert "dsg clone server:/d here --accept-new-host-key" in error.hint


@pytest.mark.parametrize("hashed", [False, True])
@pytest.mark.parametrize("port", [22, 2222])
def test_an_accepted_key_is_known_to_openssh_too(
    tmp_path: Path, key: HostKey, hashed: bool, port: int
) -> None:
    file = tmp_path / "ssh" / "known_hosts"
    if hashed:
        file.parent.mkdir()
        file.write_text(f"elsewhere {line(key)}\n")
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
        file.write_bytes(file.read_bytes().rstrip(b"\n"))  # an editor that leaves no newline at the end
    else:
        # Made from nothing, it is private.
        pass
    accept_new_host_key(file, "Server", port, key)
    assert check_host_key(read_known_hosts([file]), "server", port, key).verdict is Verdict.KNOWN
    told = subprocess.run(
        ["ssh-keygen", "-F", known_name("server", port), "-f", str(file)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert line(key) in told.stdout
    assert ("Server" in file.read_text()) is not hashed
    assert len(file.read_text().splitlines()) == (2 if hashed else 1)
    if not hashed:
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_the_accepted_key_is_flushed(tmp_path: Path, key: HostKey, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.fstat(fd).st_ino), real(fd))[1])
    accept_new_host_key(tmp_path / "known", "a", 22, key)
    assert flushed == [(tmp_path / "known").stat().st_ino, tmp_path.stat().st_ino]


def test_files_that_cannot_be_used(tmp_path: Path, key: HostKey) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_known_hosts([tmp_path])
    with pytest.raises(LocalStorageError, match="cannot be written"):
        accept_new_host_key(tmp_path, "a", 22, key)
