"""What is unusual about the properties that a repository has, mostly from above it, and what it means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dsg_remote_agent.storage.zfs.command import Zfs

__all__ = ["Advice", "advise", "judge"]

_NAMES = (
    *("atime", "compression", "recordsize", "dedup", "sync", "copies", "casesensitivity", "normalization"),
    *("utf8only", "snapdir", "xattr", "acltype", "exec", "setuid", "devices", "quota", "refquota"),
    *("reservation", "refreservation", "encryption", "keystatus", "available"),
)
_GRAVE = ("sync", "keystatus")
_LITTLE = 1 << 30  # bytes
_SMALL_RECORD, _LARGE_RECORD = 16 << 10, 4 << 20


class Advice(NamedTuple):
    """One unusual property: what it means here, and the command that changes it ('' where none does)."""

    prop: str
    text: str
    command: str

    @property
    def grave(self) -> bool:
        """Whether it breaks what DSG promises."""
        return self.prop in _GRAVE


def advise(zfs: Zfs, dataset: str) -> list[Advice]:
    """What an administrator should know of the properties of ``dataset``; nothing when they cannot be read.

    Each property is asked for by itself where this ZFS does not have them all.
    """
    told = zfs.run("get", "-H", "-p", "-o", "property,value", ",".join(_NAMES), dataset)
    lines = told.out.splitlines()
    if not told.good:
        lines = []
        for name in _NAMES:
            lines += zfs.run("get", "-H", "-p", "-o", "property,value", name, dataset).out.splitlines()
    found = {}
    for line in lines:
        name, _, value = line.partition("\t")
        found[name] = value
    return list(judge(found, dataset))


def judge(found: dict[str, str], dataset: str) -> Iterator[Advice]:
    """The advice on properties by name, as ``zfs get -p`` shows them; '-' and what is missing say nothing."""

    def number(prop: str) -> int | None:
        value = found.get(prop, "")
        return int(value) if value.isascii() and value.isdigit() else None

    for prop, value, better, text in _UNUSUAL:
        if prop == "xattr" and "acltype" not in found:
            continue  # so old that it cannot keep them otherwise
        if found.get(prop) == value:
            yield Advice(
                prop, f"{prop}={value}: {text}", f"zfs set {prop}={better} {dataset}" if better else ""
            )
    if (copies := number("copies")) is not None and copies > 1:
        text = f"copies={copies}: every file takes {copies} times its space"
        yield Advice("copies", text, f"zfs set copies=1 {dataset}")
    if found.get("dedup", "off") not in ("off", "-"):
        text = (
            f"dedup={found['dedup']}: it takes much memory and slows every sync down; DSG's snapshots share "
            "what is the same without it"
        )
        yield Advice("dedup", text, f"zfs set dedup=off {dataset}")
    if found.get("casesensitivity", "sensitive") not in ("sensitive", "-"):
        yield Advice("casesensitivity", f"casesensitivity={found['casesensitivity']}: {_NAMES_FIXED}", "")
    if found.get("normalization", "none") not in ("none", "-"):
        yield Advice("normalization", f"normalization={found['normalization']}: {_NAMES_FIXED}", "")
    record = number("recordsize")
    if record is not None and not _SMALL_RECORD <= record <= _LARGE_RECORD:
        size = f"{record // 1024} KiB" if record >= 1024 else f"{record} bytes"
        many = "large files take many records, and so more space and time"
        meaning = many if record < _SMALL_RECORD else "each small change rewrites a whole record"
        yield Advice("recordsize", f"recordsize={size}: {meaning}", f"zfs set recordsize=128K {dataset}")
    for prop in ("quota", "refquota"):
        limit = number(prop)
        if limit is not None and 0 < limit < _LITTLE:
            text = f"{prop} is {limit // (1 << 20):,} MiB: a sync that does not fit is refused"
            yield Advice(prop, text, f"zfs set {prop}=SIZE {dataset}")
    free = number("available")
    if free is not None and free < _LITTLE:
        text = f"only {free // (1 << 20):,} MiB are left: a sync that does not fit is refused"
        yield Advice("available", text, f"zfs list -o space {dataset}")
    for prop in ("reservation", "refreservation"):
        kept = number(prop)
        if kept:
            text = f"{prop} keeps {kept // (1 << 20):,} MiB from everybody else in the pool"
            yield Advice(prop, text, f"zfs set {prop}=none {dataset}")


_NAMES_FIXED = (
    "names that differ may be one here, so that a sync can fail; it is fixed when a dataset is made"
)
# Property, value, the better one, and what it means.
_UNUSUAL = (
    (
        "atime",
        "on",
        "off",
        "every reading of a file writes to the pool, and looks like a change made outside DSG",
    ),
    ("compression", "off", "on", "files take their full space; compressing them costs hardly any time"),
    ("sync", "disabled", "standard", "a power cut may lose what DSG told to be durable, snapshots included"),
    ("utf8only", "on", "", "names that are not UTF-8 are refused; DSG refuses them anyway"),
    ("snapdir", "visible", "hidden", "programs that walk the repository also walk all of its snapshots"),
    (
        "xattr",
        "on",
        "sa",
        "extended attributes and ACLs are files of their own, which makes each access slow",
    ),
    (
        "xattr",
        "dir",
        "sa",
        "extended attributes and ACLs are files of their own, which makes each access slow",
    ),
    ("exec", "off", "on", "programs and scripts in the repository cannot be run on the server"),
    ("setuid", "on", "off", "a program in the repository could run with its owner's rights; none needs to"),
    ("devices", "on", "off", "device files in the repository would work; it never holds any"),
    (
        "keystatus",
        "unavailable",
        "",
        "the encryption key is not loaded, and nothing can be mounted: zfs load-key",
    ),
)
