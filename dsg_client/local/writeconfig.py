"""Writing ``.dsgconfig.yml``, and the lines of ``.gitignore`` that keep data out of git."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from dsg_client.local.config import read_yaml
from dsg_client.local.workdir import CONFIG_NAME
from protocol.errors import ConfigError, LocalStorageError
from protocol.paths import escape

__all__ = ["add_to_gitignore", "set_repository", "write_config"]


_NOTHING: Mapping[str, str] = {}


def write_config(
    root: Path,
    *,
    name: str,
    repository: str,
    data_dirs: Sequence[str],
    ignore: Sequence[str] = (),
    way: Mapping[str, str] = _NOTHING,
) -> Path:
    """Write a new ``.dsgconfig.yml`` into ``root``; returns its path.

    ``way``: further settings, of how the server is reached.

    ConfigError when there is one already; LocalStorageError when it cannot be
    written, and then there is none.
    """
    lines = [
        "# Settings of this DSG working folder. Commit this file to git; the data folders stay out of it.",
        f"name: {_quoted(name)}",
        f"repository: {_quoted(repository)}",
        "",
        "# Folders with these names are synced, wherever they are in the tree;",
        '# "*" syncs all but hidden files and folders.',
        f"data_dirs: [{', '.join(_quoted(d) for d in data_dirs)}]",
        "",
        "# What is left out, in the syntax of .gitignore.",
        f"ignore: [{', '.join(_quoted(p) for p in ignore)}]",
        "",
    ]
    if way:
        lines += [
            "# How the server is reached.",
            *(f"{key}: {_quoted(text)}" for key, text in way.items()),
            "",
        ]
    path = root / CONFIG_NAME
    if path.exists() or path.is_symlink():
        raise ConfigError(f"'{escape(str(path))}' exists already", facts={"file": str(path)})
    _replace(path, "\n".join(lines))
    return path


def set_repository(root: Path, repository: str) -> None:
    """Make ``.dsgconfig.yml`` name another repository; every other byte of it stays.

    Writes a line of its own when there is none. ConfigError when the file is
    not a configuration; LocalStorageError when it cannot be written, and then
    it is as it was.
    """
    path = root / CONFIG_NAME
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{escape(str(path))}' cannot be read: {error}") from None
    line = f"repository: {_quoted(repository)}"
    for key, _, number in list(read_yaml(text, CONFIG_NAME)):
        if key == "repository":
            _replace(path, _with_value(text, number, repository))
            return
    ending = "" if not text or text.endswith("\n") else "\n"
    _replace(path, f"{text}{ending}{line}\n")


def _with_value(text: str, number: int, value: str) -> str:
    import yaml

    if text.startswith("\ufeff"):  # YAML does not count a byte order mark
        return "\ufeff" + _with_value(text[1:], number, value)
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for key_node, value_node in node.value if isinstance(node, yaml.MappingNode) else ():
        if key_node.value == "repository" and key_node.start_mark.line + 1 == number:
            start, end = value_node.start_mark.index, value_node.end_mark.index
            if value_node.style in ("|", ">"):
                end = start + len(text[start:end].rstrip())
            space = "" if start and text[start - 1] in " \t" else " "
            return f"{text[:start]}{space}{_quoted(value)}{text[end:]}"
    raise ConfigError(f"{CONFIG_NAME}, line {number}: 'repository' cannot be found again")


def _quoted(text: str) -> str:
    # A JSON string is a YAML string, whatever is in it.
    return json.dumps(text, ensure_ascii=False)


def add_to_gitignore(root: Path, data_dirs: Sequence[str]) -> list[str]:
    """Keep ``.dsg`` and the data folders out of git; returns the lines that were added.

    Does nothing outside a git work tree, and adds no line twice. With ``"*"``
    only ``.dsg`` is added: which of the other files are data, nobody knows.
    LocalStorageError when it cannot be written, and then it is as it was.
    """
    if not any((folder / ".git").exists() for folder in (root, *root.parents)):
        return []
    path = root / ".gitignore"
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise LocalStorageError(f"'{escape(str(path))}' cannot be read: {error.strerror}") from None
    # "/input/" is the one at the top alone, and so no substitute for "input/".
    have = {line.strip().rstrip("/") for line in text.splitlines() if not line.startswith("#")}
    wanted = [".dsg/", *(f"{_pattern(name)}/" for name in data_dirs if name != "*")]
    added = [line for line in wanted if line.rstrip("/") not in have]
    if not added:
        return []
    newline = "\r\n" if "\r\n" in text else "\n"
    if text and not text.endswith("\n"):
        text += newline
    block = ["# Data, kept in step by DSG", *added]
    _replace(path, text + "".join(f"{line}{newline}" for line in block))
    return added


def _pattern(name: str) -> str:
    """A folder's name as a gitignore pattern that means just it."""
    escaped = "".join(f"\\{c}" if c in "\\*?[ " else c for c in name)
    return f"\\{escaped}" if escaped[:1] in "#!" else escaped


def _replace(path: Path, text: str) -> None:
    """Write a small text file whole or not at all; keeps the mode of the one it replaces."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}~")
    try:
        try:
            mode = target.stat().st_mode & 0o777
        except FileNotFoundError:
            mode = None
        with open(temporary, "x", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(text)
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LocalStorageError(f"'{escape(str(path))}' cannot be written: {error.strerror}") from None
