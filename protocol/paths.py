"""Paths inside a tree: parsed from hostile text, ordered, compared, shown.

A ``RelPath`` is a ``str`` that went through :func:`parse_path`: UTF-8 and NFC,
relative, ``/``-separated, no empty, ``.`` or ``..`` component, no control or
bidi-control character, no ``.dsg`` component in any case or normal form,
components of at most 255 bytes of UTF-8, at most 4,000 bytes in all.

Order: component by component, by code point (the same as by UTF-8 bytes); a
folder's contents stand together. :func:`sort_key` gives it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from typing import NewType

from protocol.value import Value

__all__ = [
    "PathProblem",
    "RelPath",
    "check_link_target",
    "collision_key",
    "collisions",
    "escape",
    "parse_path",
    "path_problem",
    "portability_problem",
    "sort_key",
]

RelPath = NewType("RelPath", str)

MAX_COMPONENT_BYTES = 255
MAX_PATH_BYTES = 4000

# Unicode's Bidi_Control property (UAX #9, section 2): these reorder what a terminal shows.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# HFS+ ignores these inside names, so that ".d\u200csg" is ".dsg" there (git CVE-2014-9390).
_IGNORABLE = dict.fromkeys(
    [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF, 0x00AD]
)
_WINDOWS_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))]
)


class PathProblem(Value):
    """One name that cannot be synced: ``path`` as found (surrogate-escaped if not UTF-8)."""

    path: str
    reason: str
    normalized: str | None = None  # the name that --normalize would give it, if it can

    def __str__(self) -> str:
        return f"{escape(self.path)}: {self.reason}"


def sort_key(path: str) -> str:
    """Key of the canonical order; ``/`` sorts before every other character."""
    return path.replace("/", "\0")


def _component_problem(name: str) -> str | None:
    if name in ("", ".", ".."):
        return f"has the component {name!r}"
    if (
        len(name) > MAX_COMPONENT_BYTES // 4
        and len(name.encode("utf-8", "surrogatepass")) > MAX_COMPONENT_BYTES
    ):
        return f"a component is longer than {MAX_COMPONENT_BYTES} bytes"
    if not name.isascii():
        if any(0xD800 <= ord(c) <= 0xDFFF for c in name):
            return "the name is not valid UTF-8"
        if not unicodedata.is_normalized("NFC", name):
            return "the name is not in Unicode normal form C"
        for c in name:
            if c in _BIDI:
                return f"has the invisible direction character U+{ord(c):04X}"
            if unicodedata.category(c) == "Cc":
                return f"has the control character U+{ord(c):04X}"
            if c in "\u2028\u2029":
                return f"has the line separator U+{ord(c):04X}"
    elif not name.isprintable():
        for c in name:
            if ord(c) < 32 or ord(c) == 127:
                return f"has the control character U+{ord(c):04X}"
    # The length spares plain long names; what an HFS+ volume ignores can stretch others at will.
    if (
        (len(name) < 40 or not name.isascii())
        and "dsg" in (folded := _fold(name))
        and folded.rstrip(" .") == ".dsg"
    ):
        return "'.dsg' is reserved for DSG itself"
    return None


def _fold(name: str) -> str:
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFKC", name).translate(_IGNORABLE).casefold()


def path_problem(path: str) -> str | None:
    """Why this text is not a ``RelPath``, or None. One scan; no allocation for plain names."""
    if path.isascii() and path.isprintable() and len(path) <= MAX_COMPONENT_BYTES:
        # The common case, decided on the whole string.
        padded = f"/{path}/"
        if "//" not in padded and "/." not in padded:
            return None
    if not path:
        return "the path is empty"
    if path.startswith("/"):
        return "the path is absolute"
    for name in path.split("/"):
        problem = _component_problem(name)
        if problem:
            return problem
    if len(path) > MAX_PATH_BYTES // 4 and len(path.encode()) > MAX_PATH_BYTES:
        return f"the path is longer than {MAX_PATH_BYTES} bytes"
    return None


def parse_path(path: str) -> RelPath:
    """``path`` as a RelPath; ValueError with the reason when it is not one."""
    problem = path_problem(path)
    if problem:
        raise ValueError(f"{escape(path)}: {problem}")
    return RelPath(path)


def collision_key(path: str) -> str:
    """Equal for two paths that a case-insensitive or normalising file system holds as one."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def collisions(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of paths (folders included) that differ only in case or normal form.

    ``paths`` in canonical order. Each pair is given once, for the outermost
    component in which two names differ.
    """
    spelled: dict[str, str] = {}
    parent_done = ""
    seen: set[tuple[str, str]] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        prefixes: list[str] = [path]
        if folder != parent_done:
            parts = folder.split("/") if folder else []
            prefixes = ["/".join(parts[: i + 1]) for i in range(len(parts))] + prefixes
            parent_done = folder
        for prefix in prefixes:
            known = spelled.setdefault(collision_key(prefix), prefix)
            if known != prefix:
                pair = (known, prefix)
                if pair not in seen and known.rpartition("/")[0] == prefix.rpartition("/")[0]:
                    seen.add(pair)
                    yield pair


def portability_problem(path: str) -> str | None:
    """Why Windows could not hold this name, or None."""
    for name in path.split("/"):
        bad = next((c for c in name if c in '<>:"\\|?*'), None)
        if bad:
            return f"Windows does not allow {bad!r} in names"
        if name[-1:] in (".", " "):
            return "Windows drops a dot or a space at the end of a name"
        if name.partition(".")[0].rstrip().lower() in _WINDOWS_RESERVED:
            return f"{name.partition('.')[0]!r} is a device name on Windows"
    return None


def check_link_target(path: str, target: str) -> str | None:
    """Why the link ``path`` -> ``target`` cannot be synced, or None.

    A target is relative, and resolved from the link's folder it stays inside
    the tree and outside ``.dsg``. ``..`` may stand only at its beginning:
    after a name it would lead to where that name, itself a link, points.
    """
    if not target:
        return "the link's target is empty"
    if any(
        ord(c) < 32
        or 0x7F <= ord(c) <= 0x9F
        or c in _BIDI
        or 0xD800 <= ord(c) <= 0xDFFF
        or c in "\u2028\u2029"
        for c in target
    ):
        return "the link's target has control characters or is not UTF-8"
    if len(target.encode()) > MAX_PATH_BYTES:
        return f"the link's target is longer than {MAX_PATH_BYTES} bytes"
    if target.startswith("/"):
        return f"the link points to the absolute path {escape(target)}"
    depth = path.split("/")[:-1]
    named = False
    for name in target.split("/"):
        if name in ("", "."):
            continue
        if name == "..":
            if named:
                return f"the link's target has '..' after a name: {escape(target)}"
            if not depth:
                return f"the link points outside the repository: {escape(target)}"
            depth.pop()
        else:
            named = True
            depth.append(name)
            if _fold(name).rstrip(" .") == ".dsg":
                return "the link points into '.dsg'"
    return None


def escape(text: str) -> str:
    """``text`` safe to show: control, bidi and undecodable characters as escapes."""
    if text.isascii() and text.isprintable():
        return text
    out = []
    for c in text:
        n = ord(c)
        if 0xDC80 <= n <= 0xDCFF:
            out.append(f"\\x{n - 0xDC00:02x}")
        elif c == "\n":
            out.append("\\n")
        elif c == "\t":
            out.append("\\t")
        elif c in _BIDI or unicodedata.category(c) in ("Cc", "Cs", "Cf", "Zl", "Zp"):
            out.append(f"\\x{n:02x}" if n < 256 else f"\\u{{{n:x}}}")
        else:
            out.append(c)
    return "".join(out)
