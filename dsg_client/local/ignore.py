"""The ``ignore`` rules: gitignore patterns, with git's meaning for folders and for ``!``.

git asks for every folder from the top whether it is ignored, and never looks
into one that is: a ``!`` pattern cannot bring back a file below an ignored
folder. The last pattern that matches a path *itself* decides. ``pathspec``
translates patterns to regular expressions that also match everything below a
folder; that part is taken out here, because folders are asked one by one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from protocol.errors import ConfigError
from protocol.paths import escape

__all__ = ["IgnoreRules"]

_BELOW = "ps_d"  # pathspec's group for the slash after a folder's name


class IgnoreRules:
    """Compiled patterns. Paths are relative to the tree's root, without a leading slash."""

    __slots__ = ("_file", "_folder", "_folder_slash", "_rules")

    def __init__(self, patterns: Sequence[str]) -> None:
        """ConfigError names a pattern that is not one."""
        # A start-up cost that most trees, having no patterns, do not pay.
        from pathspec import GitIgnoreSpec

        # The pattern, whether it ignores (else it brings back), whether it can match "name/".
        self._rules: list[tuple[re.Pattern[str], bool, bool]] = []
        for text in patterns:
            meaningful = text.strip() != "" and not text.startswith("#")
            try:
                found = [
                    p for p in GitIgnoreSpec.from_lines([_plainer(text)]).patterns if p.include is not None
                ]
            except (ValueError, TypeError, re.error) as error:
                raise _bad_pattern(text, str(error)) from None
            if meaningful and not found:
                raise _bad_pattern(text, "it can match nothing")
            for pattern in found:
                regex = getattr(pattern, "regex", None)
                if not isinstance(regex, re.Pattern):
                    raise _bad_pattern(text, "it has no regular expression")
                self._rules.append((regex, bool(pattern.include), _BELOW in regex.groupindex))
        self._file = self._folder = self._folder_slash = None
        if self._rules and all(ignores for _, ignores, _ in self._rules):
            # No "!": the order does not matter, and one search answers for all patterns.
            self._file = _union([r for r, _, _ in self._rules])
            self._folder = _union([r for r, _, slash in self._rules if not slash])
            self._folder_slash = _union([r for r, _, slash in self._rules if slash])

    def ignores_file(self, path: str) -> bool:
        """Whether a file or link is ignored; its folders were asked before."""
        if self._file is not None:
            return self._file.search(path) is not None
        for regex, ignores, _ in reversed(self._rules):
            found = regex.search(path)
            if found and found.groupdict().get(_BELOW) is None:
                return ignores
        return False

    def ignores_folder(self, path: str) -> bool:
        """Whether a folder is ignored; the folders above it were asked before."""
        with_slash = path + "/"
        if self._file is not None:
            return (self._folder_slash is not None and self._folder_slash.search(with_slash) is not None) or (
                self._folder is not None and self._folder.search(path) is not None
            )
        for regex, ignores, slash in reversed(self._rules):
            # "a/**" means what is inside "a", not "a": without the group, ask without the slash.
            if slash:
                hit = any(found.start(_BELOW) == len(path) for found in regex.finditer(with_slash))
            else:
                hit = regex.search(path) is not None
            if hit:
                return ignores
        return False


def _union(regexes: Sequence[re.Pattern[str]]) -> re.Pattern[str] | None:
    if not regexes:
        return None
    return re.compile("|".join(f"(?:{r.pattern.replace(f'(?P<{_BELOW}>', '(?:')})" for r in regexes))


def _plainer(text: str) -> str:
    # "a/**/" means the folders inside "a", and "/**/" every folder; pathspec takes the one for "a/", and some
    # versions the other for nothing.
    trimmed = text.rstrip()
    if trimmed in ("/**/", "!/**/"):
        return trimmed.replace("/", "", 1)
    return f"{trimmed}*/" if trimmed.endswith("/**/") else text


def _bad_pattern(text: str, reason: str) -> ConfigError:
    return ConfigError(
        f"the ignore pattern '{escape(text)}' is not a gitignore pattern: {reason}",
        hint="Correct it under 'ignore' in .dsgconfig.yml; 'man gitignore' describes the patterns.",
        facts={"pattern": text},
    )
