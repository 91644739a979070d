"""``doctor``: look at everything a sync needs, and name the cure for what is missing."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from dsg_client.local.config import load_config
from dsg_client.local.identity import find_identity
from dsg_client.local.workdir import CONFIG_NAME, find_root
from dsg_client.remote.address import parse_address
from dsg_client.remote.reach import Link
from dsg_client.sync.events import Emit, Phase, PhaseStarted
from dsg_client.sync.settling import describe_pending
from dsg_client.sync.site import Site, open_site
from protocol.errors import ConfigError, DsgError
from protocol.preamble import have_zstd
from protocol.records import SnapshotRecord
from protocol.version import VERSION

__all__ = ["Finding", "doctor"]

_LOW_SPACE = 1 << 30
_MOST_SKEW = 60  # seconds between two clocks that nobody minds


@frozen
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    cure: str = ""

    def fields(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


async def doctor(remote: str | None, *, accept_new_host_key: bool, emit: Emit) -> list[Finding]:
    """All findings, in order; what cannot be looked at becomes a finding, not an error."""
    found = [_python()]
    site: Site | None = None
    if remote is None:
        try:
            find_root()
        except ConfigError as error:
            return [*found, _bad("folder", error)]
        try:
            site = open_site(accept_new_host_key=accept_new_host_key)
            config, address = site.config, site.address
        except DsgError as error:
            return [*found, _bad("folder", error)]
        found += _folder(site)
    else:
        address = parse_address(remote)
        config = load_config(_root_or_none())
    identity = find_identity(config, site.root if site else None)
    found.append(Finding("identity", True, f"syncs are signed as {identity.who}"))
    if config.transport == "openssh" and not address.local and shutil.which("ssh") is None:
        found.append(
            Finding(
                "ssh", False, "transport is openssh, and there is no 'ssh' on the PATH", "Install OpenSSH."
            )
        )
    emit(PhaseStarted(Phase.CONNECT))
    begun = time.monotonic()
    try:
        async with Link(address, config, accept_new_host_key=accept_new_host_key).agent() as agent:
            took = time.monotonic() - begun
            version = agent.preamble.dsg
            found.append(
                Finding(
                    "connection", True, f"{agent.name} answers after {took:.2f} s with the agent {version}"
                )
            )
            if version != VERSION:
                found.append(
                    Finding(
                        "versions",
                        True,
                        f"the agent is {version}, this is {VERSION}; they understand each other",
                    )
                )
            for check in await agent.doctor(address.path):
                found.append(Finding(f"server: {check.name}", check.ok, check.detail, check.cure))
            if site is not None:
                repo = await agent.open_repo(address.path)
                found += _repository(site, repo.opened.repo_id, repo.opened.role, repo.opened.head)
    except DsgError as error:
        found.append(_bad("connection" if len(found) < 4 else "server", error))
    return found


def _root_or_none() -> Path | None:
    try:
        return find_root()
    except ConfigError:
        return None


def _bad(name: str, error: DsgError) -> Finding:
    return Finding(name, False, error.message, error.hint)


def _python() -> Finding:
    zstd = "with zstd" if have_zstd() else "without zstd (pip install zstandard)"
    return Finding("this machine", True, f"dsg {VERSION}, Python {sys.version.split()[0]}, {zstd}")


def _folder(site: Site) -> list[Finding]:
    found = []
    capabilities = site.tree.capabilities
    lacking = [
        text
        for has, text in (
            (capabilities.executable_bit, "no executable bits (they are taken from the repository)"),
            (capabilities.symlinks, "no symbolic links (they are left out)"),
            (capabilities.case_sensitive, "upper and lower case are the same name"),
            (capabilities.keeps_normal_form, "names change their Unicode form"),
        )
        if not has
    ]
    detail = f"{site.root}" + (f"; this file system has {'; '.join(lacking)}" if lacking else "")
    found.append(Finding("folder", True, detail))
    config = site.root / CONFIG_NAME
    found.append(
        Finding("configuration", True, f"{config.name}: data_dirs {', '.join(site.config.data_dirs)}")
        if config.exists()
        else Finding("configuration", False, f"{CONFIG_NAME} is missing", "Take it from git, or clone again.")
    )
    free = site.tree.free_bytes()
    found.append(
        Finding(
            "space here", free > _LOW_SPACE, f"{free / 2**30:.1f} GiB free", "Free some space on this disk."
        )
    )
    try:
        cache = site.cache()
        found.append(Finding("cache", True, f"in step with s{cache.seq}, {len(cache):,} files"))
    except DsgError as error:
        found.append(_bad("cache", error))
    try:
        pending = describe_pending(site.tree)
        found.append(
            Finding(
                "interrupted sync",
                pending is None,
                pending or "none",
                "Run 'dsg recover'." if pending else "",
            )
        )
    except DsgError as error:
        found.append(_bad("interrupted sync", error))
    if not os.access(site.root, os.W_OK):
        found.append(
            Finding("rights", False, f"you may not write to {site.root}", "Change its owner or mode.")
        )
    return found


def _repository(site: Site, repo_id: str, role: str, head: bytes) -> list[Finding]:
    record = SnapshotRecord.from_bytes(head)
    found = [
        Finding(
            "repository",
            True,
            f"{site.address}: at s{record.seq}, {record.entries:,} files, your role: {role}",
        )
    ]
    skew = record.time - time.time()
    if skew > _MOST_SKEW:
        found.append(
            Finding(
                "clocks",
                False,
                f"the newest snapshot is dated {skew:.0f} s in the future of this machine",
                "Set this machine's clock or the server's (NTP).",
            )
        )
    try:
        cache = site.cache()
    except DsgError:
        return found
    if cache.repo_id != repo_id:
        found.append(
            Finding(
                "repository",
                False,
                f"this folder belongs to the repository {cache.repo_id}; there is {repo_id}",
                "Correct the address: 'dsg remote set REMOTE'.",
            )
        )
    return found
