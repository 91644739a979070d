"""A dataset with files that is to be taken over: what speaks against that, before anything is done."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import NamedTuple

from dsg_remote_agent.storage.livetree import is_ours
from dsg_remote_agent.storage.zfs.command import Trouble, Zfs, failure
from dsg_remote_agent.storage.zfs.holders import users
from dsg_remote_agent.storage.zfs.init import Where
from dsg_remote_agent.storage.zfs.mounts import mount_table
from dsg_remote_agent.storage.zfs.names import base_snapshot, parse_source, snapshot_number
from protocol.errors import ConfigError, DsgError, RemoteStorageError
from protocol.paths import escape
from protocol.tree.posix import PosixTree

__all__ = ["Candidate", "busy", "examine_candidate", "foreign_names", "guid_of", "in_use_by", "refuse_inside"]

_SHOWN = 10
# What a dataset says of itself; the rest of its own properties are told, as what syncs make has none of them.
_MENDED = frozenset(["mountpoint", "canmount", "readonly"])
_MAX_VALUE = 1000  # characters of a user property, everywhere


class Candidate(NamedTuple):
    """A dataset that nothing speaks against. ``own``: the properties that were set on it itself."""

    name: str
    guid: str
    mountpoint: str
    own: Mapping[str, str]

    @property
    def lost(self) -> dict[str, str]:
        """Its own properties that no generation which a sync makes will have."""
        return {name: value for name, value in self.own.items() if name not in _MENDED and ":" not in name}


def guid_of(zfs: Zfs, name: str) -> str:
    """The GUID of a dataset, which stays when it is renamed; '' when it is not there."""
    answer = zfs.run("get", "-H", "-p", "-o", "value", "guid", name)
    if answer.trouble is Trouble.MISSING:
        return ""
    if not answer.good:
        raise failure(answer, name, "looking at the dataset")
    return answer.out.strip()


def examine_candidate(zfs: Zfs, name: str, where: Where) -> Candidate:
    """The dataset ``name``, to become the repository ``where``; a DsgError, with the cure, for what speaks
    against it: all but who uses it, and what lies in it.
    """
    parse_source(name)
    values, own = _properties(zfs, name)
    _check_kind(name, where, values, own)
    _check_parent(zfs, name)
    _check_below(zfs, name)
    _check_clones(zfs, name)
    _check_mount(name, values)
    path = values["mountpoint"]
    _check_place(name, path, where)
    return Candidate(name, guid_of(zfs, name), path, own)


def _properties(zfs: Zfs, name: str) -> tuple[dict[str, str], dict[str, str]]:
    answer = zfs.run("get", "-H", "-p", "-o", "property,value,source", "all", name)
    if answer.trouble is Trouble.MISSING:
        raise ConfigError(
            f"there is no dataset {name} on the server",
            hint="check the name, and whether its pool is imported: zfs list",
        )
    if not answer.good:
        raise failure(answer, name, "looking at the dataset")
    values, own = {}, {}
    for line in answer.out.splitlines():
        prop, value, source = (*line.split("\t"), "", "")[:3]
        values[prop] = value
        if source in ("local", "received"):
            own[prop] = value
    return values, own


def _check_kind(name: str, where: Where, values: Mapping[str, str], own: Mapping[str, str]) -> None:
    kind = values.get("type", "")
    if kind != "filesystem":
        raise ConfigError(
            f"{name} is a {kind}, and not a file system", hint="name the dataset whose files are meant"
        )
    pool = where.dataset.partition("/")[0]
    if name.partition("/")[0] != pool:
        raise ConfigError(
            f"{name} is in another pool than {where.dataset}, and ZFS renames within one only",
            hint=f"make the repository in that pool; or copy the dataset to this one first: "
            f"zfs snapshot {name}@moving && zfs send {name}@moving | zfs receive {pool}/NAME",
        )
    if where.dataset == name:
        raise ConfigError(
            f"{name} cannot become a repository of the same name: its generations lie below that",
            hint=f"choose another name for one of them, as in: zfs rename {name} {name}-old",
        )
    if where.dataset.startswith(f"{name}/"):
        raise ConfigError(
            f"{name} is the root in which {where.dataset} is to be made",
            hint="name the dataset whose files are to be taken over",
        )
    if any(prop.startswith("dsg:") for prop in own):
        raise ConfigError(
            f"{name} is DSG's own already: a repository, or a part of one",
            hint="'dsg clone' takes a copy of a repository",
        )
    if values.get("origin", "-") != "-":
        raise ConfigError(
            f"{name} is a clone of {values['origin']}, and would stand on that for ever",
            hint=f"make it stand alone first: zfs promote {name}",
        )
    for prop, good in (("casesensitivity", "sensitive"), ("normalization", "none")):
        if values.get(prop, "-") not in (good, "-"):
            raise ConfigError(
                f"{name} has {prop}={values[prop]}: names that differ are one there, and that stays so",
                hint="make an empty repository, and copy the files into a working folder of it",
            )
    if values.get("snapdir") == "visible":
        raise ConfigError(
            f"{name} has snapdir=visible: all its snapshots would be taken for files",
            hint=f"zfs set snapdir=hidden {name}",
        )


def _check_parent(zfs: Zfs, name: str) -> None:
    parent = name.rpartition("/")[0]
    _, own = _properties(zfs, parent)
    if any(prop.startswith("dsg:") for prop in own):
        raise ConfigError(
            f"{name} is a part of the repository {parent}", hint="'dsg clone' takes a copy of a repository"
        )


def _check_below(zfs: Zfs, name: str) -> None:
    listed = zfs.must(
        "list", "-H", "-r", "-d", "1", "-t", "filesystem,volume", "-o", "name", name, shown=name
    )
    below = [line for line in listed.splitlines() if line and line != name]
    if below:
        raise ConfigError(
            f"{name} has datasets below it, and a repository is one dataset: {_some(below)}",
            hint=f"move them elsewhere first (zfs rename {below[0]} …), or take them over one by one",
        )
    taken = foreign_names(zfs, name)
    if taken:
        raise ConfigError(
            f"{name} has snapshots that are called as DSG calls its own: {_some(taken)}",
            hint=f"rename them first, as in: zfs rename {taken[0]} {name}@old-{taken[0].partition('@')[2]}",
        )


def _check_clones(zfs: Zfs, name: str) -> None:
    """To rename the origin of clones may unmount them (openzfs/zfs#6119, #2297), and they are somebody's."""
    words = ("list", "-H", "-r", "-t", "filesystem,volume", "-o", "name,origin", name.partition("/")[0])
    rows = (line.split("\t") for line in zfs.must(*words, shown=name).splitlines())
    clones = [row[0] for row in rows if row[-1].startswith(f"{name}@")]
    if clones:
        raise ConfigError(
            f"{name} has snapshots that others are clones of: {_some(clones)}",
            hint="what of these is still needed is copied first (zfs send | zfs receive); then destroy them",
        )


def foreign_names(zfs: Zfs, name: str) -> list[str]:
    """The snapshots of a dataset whose names are those of DSG's own."""
    listed = zfs.must("list", "-H", "-d", "1", "-t", "snapshot", "-o", "name", name, shown=name)
    return [
        line
        for line in listed.splitlines()
        if line.startswith(f"{name}@")
        and (snapshot_number(line, name) is not None or line.partition("@")[2].startswith(base_snapshot("")))
    ]


def _check_mount(name: str, values: Mapping[str, str]) -> None:
    if values.get("keystatus") == "unavailable":
        raise RemoteStorageError(
            f"the encryption key of {name} is not loaded", hint=f"zfs load-key {name} && zfs mount {name}"
        )
    path = values.get("mountpoint", "")
    if path == "legacy":
        raise ConfigError(
            f"{name} is mounted by /etc/fstab (mountpoint=legacy), and not by ZFS",
            hint=f"take its line out of there, then: umount FOLDER; zfs set mountpoint=FOLDER {name}",
        )
    if not os.path.isabs(path):
        raise ConfigError(
            f"{name} has the mountpoint {path!r}: its files are nowhere to be seen",
            hint=f"zfs set mountpoint=FOLDER {name}",
        )
    if not path.isprintable() or len(path) > _MAX_VALUE:
        raise ConfigError(
            f"the mountpoint of {name} has control characters, or is longer than {_MAX_VALUE} characters",
            hint=f"zfs set mountpoint=FOLDER {name}",
        )
    if values.get("mounted") != "yes":
        also = f"zfs set canmount=on {name}; " if values.get("canmount") == "off" else ""
        raise ConfigError(
            f"{name} is not mounted, so that nobody sees its files", hint=f"{also}zfs mount {name}"
        )


def _check_place(name: str, path: str, where: Where) -> None:
    if _inside(path, os.path.dirname(where.folder)):
        raise ConfigError(
            f"{name} is mounted at {escape(path)}, among the generations of repositories",
            hint=f"mount it elsewhere first: zfs set mountpoint=FOLDER {name}",
        )
    if _inside(where.folder, path):
        raise ConfigError(
            f"{name} is mounted at {escape(path)}, in which the repository itself is to be mounted",
            hint=f"mount it elsewhere first: zfs set mountpoint=FOLDER {name}",
        )
    table = mount_table()
    again = [at for source, at in table if source == name and at != path]
    if again:
        raise RemoteStorageError(
            f"{name} is mounted a second time, at {_some(again)}",
            hint=f"unmount that first: umount {shlex.quote(escape(again[0]))}",
        )
    below = [at for _, at in table if at != path and _inside(at, path)]
    if below:
        raise RemoteStorageError(
            f"other file systems are mounted in {escape(path)}: {_some(below)}",
            hint=f"unmount them first: umount {shlex.quote(escape(below[-1]))}",
        )


def refuse_inside(tree: PosixTree, path: str) -> None:
    """ConfigError when a DSG folder, or what one left, lies at the top of ``tree``."""
    found = sorted(filter(is_ours, tree.names("")))
    if found:
        raise ConfigError(
            f"{escape(path)} holds {escape(found[0])}: it is a repository or working folder already",
            hint="a repository keeps its history there: 'dsg clone' it. What is needed no more is moved "
            f"away: mv {shlex.quote(f'{path}/{found[0]}')} ELSEWHERE",
        )


def busy(name: str, path: str) -> DsgError | None:
    """The error that names who uses the dataset mounted at ``path``; None when nobody is seen to."""
    found = users([(name, path)])
    return in_use_by(name, path, found) if found else None


def in_use_by(name: str, path: str, found: list[str]) -> DsgError:
    """The error for a dataset that cannot be unmounted; ``found``: who uses it, as far as that is known."""
    who = f" by {_some(found)}" if found else ", by whom this account cannot see"
    return RemoteStorageError(
        f"{name}, mounted at {escape(path)}, is in use{who}",
        hint=f"end it, or leave that folder, and run the same again (fuser -vm {shlex.quote(path)} shows "
        "who it is); nothing was changed",
        facts={"holders": found, "why": Trouble.BUSY.value},
    )


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(escape, names[:_SHOWN])) + more
