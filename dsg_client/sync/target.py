"""Where a clone comes from and goes to, and what keeps a folder from becoming a working folder.

Cheap to import: a clone connects before anything else is done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsg_client.local.config import Config, load_config
from dsg_client.local.workdir import CONFIG_NAME, refuse_overlap
from dsg_client.remote.address import RemoteAddress, parse_address
from dsg_client.remote.reach import Link
from protocol.errors import ConfigError, UsageError
from protocol.paths import escape
from protocol.value import Value

__all__ = ["CloneTarget", "clone_target", "refuse_nesting", "refuse_other_repository"]


class CloneTarget(Value):
    """The folder ``root`` to be made from the repository that ``link`` leads to.

    ``options`` are the settings that were given on the command line.
    """

    root: Path
    config: Config
    link: Link
    options: Mapping[str, Any]


def clone_target(
    remote: str | None,
    directory: str | None,
    *,
    transport: str | None = None,
    agent_command: str | None = None,
    accept_new_host_key: bool = False,
) -> CloneTarget:
    """What ``dsg clone REMOTE DIRECTORY`` means here.

    UsageError or ConfigError for what cannot be cloned from or to.
    """
    given = {"transport": transport, "agent_command": agent_command}
    options = {key: value for key, value in given.items() if value is not None}
    if remote is None:
        root = Path.cwd()
        if not (root / CONFIG_NAME).is_file():
            raise UsageError(
                f"no REMOTE was given, and '{escape(str(root))}' has no {CONFIG_NAME} that names one",
                hint="Name it: 'dsg clone [user@]host:/path [DIR]'.",
            )
        config = load_config(root, options=options)
        address = parse_address(config.require_repository(), folder=str(root))
    else:
        address = parse_address(remote)
        root = Path(os.path.abspath(directory or address.path.rpartition("/")[2] or "dsg"))
        config = load_config(root if root.is_dir() else None, options=options)
        refuse_other_repository(root, config, address)
    if root.exists() and not root.is_dir():
        raise UsageError(f"'{escape(str(root))}' is not a folder")
    if address.folder is not None:
        refuse_overlap(root, address.folder)
    refuse_nesting(root)
    link = Link(address, config, accept_new_host_key=accept_new_host_key)
    return CloneTarget(root, config, link, options)


def refuse_nesting(root: Path) -> None:
    """ConfigError when a folder above is DSG's own: it would sync what lies in this one as well."""
    for above in root.parents:
        if (above / ".dsg" / "format").exists():
            raise ConfigError(
                f"'{escape(str(root))}' lies inside '{escape(str(above))}', which is a DSG folder itself",
                hint="Choose a place outside of every repository and working folder.",
                facts={"folder": str(root), "above": str(above)},
            )


def refuse_other_repository(root: Path, config: Config, address: RemoteAddress) -> None:
    """ConfigError when the folder's configuration names another repository."""
    if config.repository and str(parse_address(config.repository, folder=str(root))) != str(address):
        raise ConfigError(
            f"{CONFIG_NAME} here names the repository {escape(config.repository)}, not {address}",
            hint="Change or remove its 'repository' line first; or 'dsg clone' fetches the data it names.",
        )
