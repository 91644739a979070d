"""The configuration: ``.dsgconfig.yml`` in the tree, the user's settings, ``DSG_*``, options; later wins.

Files are YAML. Every error names the file and, where YAML tells, the line. An
unknown key is an error, so that a misspelt one does not silently mean its
default. ``yaml`` and ``platformdirs`` are imported only when there is
something to read.
"""

from __future__ import annotations

import os
import stat as stat_bits
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsg_client.local.scope import Scope
from dsg_client.local.settings import KEYS, Key, Place, unknown_key
from dsg_client.local.workdir import CONFIG_NAME
from protocol.errors import ConfigError
from protocol.paths import escape
from protocol.value import Value

__all__ = ["Config", "load_config", "user_settings_path"]

_MAX_BYTES = 256 * 1024
_NO_SOURCES: Mapping[str, str] = {}


class Config(Value):
    """The settings in force. ``sources`` tells for each key that was set where its value is from."""

    name: str
    repository: str  # REMOTE as written; '' when none is set
    data_dirs: tuple[str, ...]
    ignore: tuple[str, ...]
    portable_names: bool
    transport: str  # "asyncssh" or "openssh"
    agent_command: str  # '' for the usual search
    connect_timeout: float  # seconds
    user_name: str
    user_id: str
    sources: Mapping[str, str] = _NO_SOURCES

    @property
    def scope(self) -> Scope:
        """The rules that ``data_dirs`` and ``ignore`` make."""
        return Scope(self.data_dirs, self.ignore)

    def require_repository(self) -> str:
        """``repository``; ConfigError when none is set."""
        if not self.repository:
            raise ConfigError(
                "no repository is configured",
                hint=f"Write 'repository: [user@]host:/path' into {CONFIG_NAME}, "
                "or run 'dsg remote set REMOTE'.",
            )
        return self.repository


def user_settings_path() -> Path:
    """Where the user's settings are, whether they exist or not."""
    import platformdirs

    return Path(platformdirs.user_config_dir("dsg", appauthor=False)) / "config.yml"


def load_config(
    root: str | os.PathLike[str] | None,
    *,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    user_settings: Path | None = None,
) -> Config:
    """The configuration for the tree at ``root`` (None: outside of any tree).

    ``options``: values from the command line by key; None means not given.
    ``environ`` and ``user_settings`` are the process's own unless given.
    ConfigError names the file, the line and what is wrong.
    """
    values: dict[str, Any] = {name: key.default for name, key in KEYS.items()}
    sources: dict[str, str] = {}
    if root is not None:
        _take_file(Path(root) / CONFIG_NAME, Place.TREE, values, sources)
    _take_file(user_settings or user_settings_path(), Place.USER, values, sources)
    variables = os.environ if environ is None else environ
    for name, key in KEYS.items():
        text = variables.get(key.variable, "")
        if text and Place.VARIABLE in key.places:
            values[name] = _parsed(key, text, key.variable, key.from_text)
            sources[name] = key.variable
    for name, value in (options or {}).items():
        if value is not None:
            values[name] = _parsed(KEYS[name], value, f"--{name.replace('_', '-')}")
            sources[name] = "option"
    return Config(
        **{name.rpartition(".")[2]: value for name, value in values.items()},
        sources={name.rpartition(".")[2]: source for name, source in sources.items()},
    )


def _parsed(key: Key, value: Any, where: str, first: Any = None) -> Any:
    try:
        return key.parse(first(value) if first else value)
    except ValueError as error:
        raise ConfigError(
            f"{where}: {key.name} {error}", facts={"where": where, "key": key.name, "reason": str(error)}
        ) from None


def _take_file(path: Path, place: Place, values: dict[str, Any], sources: dict[str, str]) -> None:
    opened = _read(path)
    if opened is None:
        return
    text, found = opened
    shown = CONFIG_NAME if place is Place.TREE else escape(str(path))
    for name, value, line in read_yaml(text, shown):
        where = f"{shown}, line {line}"
        key = KEYS.get(name)
        if key is None or place not in key.places:
            raise ConfigError(
                f"{where}: {unknown_key(name, place)}", facts={"file": str(path), "line": line, "key": name}
            )
        values[name] = _parsed(key, value, where)
        sources[name] = where
        if key.starts_programs:
            _refuse_shared(path, found, name)


def _read(path: Path) -> tuple[str, os.stat_result] | None:
    try:
        # Not blocked by a fifo; and the rights are those of the very file that is read.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"'{escape(str(path))}' cannot be read: {error.strerror}") from None
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat_bits.S_ISREG(found.st_mode):
            raise ConfigError(f"'{escape(str(path))}' is not a file")
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"'{escape(str(path))}' is larger than {_MAX_BYTES // 1024} KiB")
    try:
        return raw.decode("utf-8-sig"), found
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(f"'{escape(str(path))}', line {line}: it is not UTF-8") from None


def read_yaml(text: str, shown: str) -> Iterator[tuple[str, Any, int]]:
    """The (key, value, line) of a configuration's text; nested keys with a dot. ConfigError with the line."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{shown}, line {node.start_mark.line + 1}: expected 'key: value' lines")
        yield from _pairs(loader, node, shown, "")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(
            f"{shown}{line}: it is not YAML: {escape(str(reason))}",
            hint="Text with any of : # [ { * & ! % @ in it needs quotes.",
        ) from None
    finally:
        loader.dispose()


def _pairs(loader: Any, node: Any, shown: str, prefix: str) -> Iterator[tuple[str, Any, int]]:
    seen: dict[str, int] = {}
    groups = {name.partition(".")[0] for name in KEYS if "." in name}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        name = prefix + str(loader.construct_object(key_node))
        if name in seen:
            raise ConfigError(f"{shown}, line {line}: '{escape(name)}' stands in line {seen[name]} already")
        seen[name] = line
        if name in groups:
            if not hasattr(value_node, "value") or value_node.id != "mapping":
                raise ConfigError(f"{shown}, line {line}: {name} must hold 'key: value' lines of its own")
            yield from _pairs(loader, value_node, shown, f"{name}.")
        else:
            yield name, loader.construct_object(value_node, deep=True), line


def _refuse_shared(path: Path, found: os.stat_result, key: str) -> None:
    """ConfigError when another account could have written this: it decides which program runs."""
    for what, status in ((path, found), (path.parent, os.stat(path.parent))):
        if what is path.parent and status.st_mode & stat_bits.S_ISVTX and status.st_uid in (0, os.geteuid()):
            continue  # in a sticky folder nobody else can exchange the file
        reason = _writable_by_others(status)
        if reason:
            raise ConfigError(
                f"'{key}' in '{escape(str(path))}' is refused, because it decides which program runs "
                f"and '{escape(str(what))}' {reason}",
                hint=f"Take that right away: chmod go-w '{escape(str(what))}'; "
                f"or set {KEYS[key].variable} instead.",
                facts={"file": str(path), "key": key, "reason": reason},
            )


def _writable_by_others(found: os.stat_result) -> str:
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to another account (uid {found.st_uid})"
    if found.st_mode & 0o002:
        return "can be written to by everybody"
    if found.st_mode & 0o020 and not _is_private_group(found.st_gid):
        return f"can be written to by its group (gid {found.st_gid})"
    return ""


def _is_private_group(gid: int) -> bool:
    """Whether the group has nobody in it but this user: many systems give every user such a group."""
    import grp
    import pwd

    try:
        mine = pwd.getpwuid(os.geteuid()).pw_name
        others = set(grp.getgrgid(gid).gr_mem) - {mine}
    except KeyError:
        return False
    return (
        gid == os.getegid()
        and not others
        and not any(user.pw_gid == gid and user.pw_uid != os.geteuid() for user in pwd.getpwall())
    )
