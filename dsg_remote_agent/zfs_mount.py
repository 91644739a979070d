#!/usr/bin/python3 -I
"""The command ``dsg-zfs-mount``: mounts and unmounts generations for an agent that is not root.

Only root may mount on Linux. This program is what an administrator lets an
agent's account run as root, without arguments:

    agent ALL=(root) NOPASSWD: /usr/local/sbin/dsg-zfs-mount ""

One request comes on standard input, docs/formats.md tells its form, and one
line answers it. Whoever asks is hostile: it may hold every ``zfs allow`` right
on the root but ``mountpoint``, and write to every folder on the way that its
modes allow. The program imports nothing of DSG, so that its one file can be
copied out of an installation that somebody else may write to.

What must not happen is that anything is mounted anywhere but at its own place,
or that a head is unmounted. Hence every folder on the way is opened without
following links and belongs to root, who alone may rename it or what is in it;
the delegation of ``mountpoint`` is refused; and what was mounted is looked at
afterwards.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys

__all__ = ["CONFIG", "VERSION", "Stop", "configured_root", "main"]

CONFIG = "/etc/dsg/zfs-mount.conf"
VERSION = 1
MOST = 1024  # bytes of a request

_PROGRAMS = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")
_GENERATIONS = ".gen"
_ROOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*(/[A-Za-z0-9][A-Za-z0-9_.:-]*)+")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_GENERATION = re.compile(r"g(0|[1-9][0-9]{0,17})")
_READER = re.compile(r"r[1-9][0-9]{0,9}-[0-9a-f]{8}")
_HEAD = re.compile(r"(g(?:0|[1-9][0-9]{0,17}))@s[0-9]+:.*")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_DANGEROUS = frozenset(["mountpoint", "receive", "rename"])
_PROPERTIES = "type,mountpoint,canmount,dsg:format,dsg:head,dsg:reader"

FAILED, MALFORMED, REFUSED, UNCONFIGURED = 1, 2, 3, 4

Properties = dict[str, tuple[str, str]]  # value and source by name


class Stop(Exception):
    """The answer when it is not done: exit status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def main() -> int:
    """Do what the request on standard input asks for; the exit status."""
    try:
        caller = _cleanse()
        verb, dataset = _read_request()
        print(_carry_out(verb, dataset, configured_root(), caller))  # noqa: T201  the answer
        return 0
    except Stop as stop:
        status, line = stop.status, str(stop)
    except OSError as error:
        status, line = FAILED, f"failed: {error}"
    line = "".join(c if c.isprintable() else "?" for c in " ".join(line.split()))
    sys.stderr.write(f"dsg-zfs-mount: {line[:1000]}\n")
    return status


def _cleanse() -> int:
    """Nothing that the caller chose is left but standard input and output; the caller's user id."""
    if len(sys.argv) != 1:
        raise Stop(MALFORMED, "it takes no arguments; the request comes on standard input")
    if os.geteuid() != 0:
        raise Stop(REFUSED, "refused: it must run as root, by way of sudo")
    caller = os.environ.get("SUDO_UID", "")
    os.environ.clear()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # not between mounting and looking where
    for limit in (resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.closerange(3, 1024)
    os.umask(0o022)
    os.chdir("/")
    return int(caller) if caller.isascii() and caller.isdigit() else 0


def _read_request() -> tuple[str, str]:
    raw = b""
    while len(raw) <= MOST and (piece := os.read(0, MOST + 1 - len(raw))):
        raw += piece
    if len(raw) > MOST:
        raise Stop(MALFORMED, f"the request is longer than {MOST} bytes")
    try:
        request = json.loads(raw.decode("ascii"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise Stop(MALFORMED, "the request is no JSON object in ASCII") from None
    if not isinstance(request, dict) or request.get("version") is not VERSION:
        raise Stop(MALFORMED, f"the request is not of version {VERSION}: is the program as new as the agent?")
    if set(request) != {"version", "verb", "dataset"} or request["verb"] not in ("mount", "unmount"):
        raise Stop(MALFORMED, "a request has the members version, verb (mount or unmount) and dataset")
    if not isinstance(request["dataset"], str):
        raise Stop(MALFORMED, "the dataset is no text")
    return request["verb"], request["dataset"]


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def configured_root() -> str:
    """The one dataset below which everything lies; what says so must be root's alone."""
    fd = os.open("/", _FOLDER)
    above, name = os.path.split(CONFIG)
    try:
        for part in above.strip("/").split("/"):
            _only_roots(fd, CONFIG)
            fd = _below(fd, part)
        _only_roots(fd, CONFIG)
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except OSError as error:
        raise Stop(UNCONFIGURED, f"not configured: {CONFIG}: {error.strerror}") from None
    _only_roots(file, CONFIG)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise Stop(UNCONFIGURED, f"not configured: {CONFIG} is no file")
    text = os.read(file, 4096).decode("ascii", "replace")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    key, _, root = (part.strip() for part in lines[0].partition("=")) if len(lines) == 1 else ("", "", "")
    if key != "root" or not _ROOT.fullmatch(root):
        raise Stop(UNCONFIGURED, f"not configured: {CONFIG} must hold one line: root = POOL/DATASET")
    return root


def _only_roots(fd: int, path: str) -> None:
    found = os.fstat(fd)
    if found.st_uid != 0 or found.st_mode & _OTHERS_WRITE:
        raise Stop(UNCONFIGURED, f"not configured: {path}, or a folder above it, is not root's alone")


def _below(fd: int, name: str) -> int:
    """The folder ``name`` in ``fd``, which is closed."""
    try:
        return os.open(name, _FOLDER, dir_fd=fd)
    finally:
        os.close(fd)


def _carry_out(verb: str, dataset: str, root: str, caller: int) -> str:
    above, _, generation = dataset.rpartition("/")
    parent, _, repository = above.rpartition("/")
    if parent != root:
        raise Stop(REFUSED, f"refused: that is no generation of a repository in {root}, the only root here")
    reader = _READER.fullmatch(generation) is not None
    if not _REPOSITORY.fullmatch(repository) or not (reader or _GENERATION.fullmatch(generation)):
        raise Stop(REFUSED, f"refused: {dataset!a} is not named as a generation is")
    folder = _check(root, above, dataset, reader)
    if verb == "unmount":
        return _unmount(folder, repository, dataset, above)
    _refuse_delegated(dataset)
    _make_container(folder, repository, caller)
    return _mount(folder, repository, dataset)


def _check(root: str, container: str, dataset: str, reader: bool) -> str:
    """Refuse unless the properties are those of a generation of DSG's; the root's mountpoint."""
    found = _properties(root, container, dataset)
    folder = found[root]["mountpoint"][0]
    if not os.path.isabs(folder) or os.path.normpath(folder) != folder:
        raise Stop(REFUSED, f"refused: {root} has no folder for a mountpoint")
    if os.path.basename(folder) != _GENERATIONS:
        raise Stop(REFUSED, f"refused: the mountpoint of {root} is not FOLDER/{_GENERATIONS}")
    if found[container]["dsg:format"] != ("1", "local"):
        raise Stop(REFUSED, f"refused: {container} is no repository of DSG's")
    if reader and found[dataset]["dsg:reader"][1] != "local":
        raise Stop(REFUSED, f"refused: {dataset} is no reader's clone")
    for name, value in found.items():
        if value["type"][0] != "filesystem":
            raise Stop(REFUSED, f"refused: {name} is no file system")
        expected = (folder + name[len(root) :], f"inherited from {root}")
        if name != root and value["mountpoint"] != expected:
            raise Stop(REFUSED, f"refused: the mountpoint of {name} is not inherited from {root}")
    return folder


def _properties(*datasets: str) -> dict[str, Properties]:
    told = _must("get", "-H", "-o", "name,property,value,source", _PROPERTIES, *datasets)
    found: dict[str, Properties] = {name: {} for name in datasets}
    for line in told.splitlines():
        fields = line.split("\t")
        if len(fields) != 4 or fields[0] not in found or fields[1] in found[fields[0]]:
            raise Stop(REFUSED, "refused: the properties cannot be read; is there a newline in one?")
        found[fields[0]][fields[1]] = (fields[2], fields[3])
    if any(len(value) != len(_PROPERTIES.split(",")) for value in found.values()):
        raise Stop(REFUSED, "refused: zfs does not tell all properties")
    return found


def _refuse_delegated(dataset: str) -> None:
    """With such a right the mountpoint could be changed between our look and the mounting."""
    done = _zfs("allow", dataset)
    if done.returncode == 255 and "pyzfs.py not found" in done.stdout + done.stderr:
        return  # zfs-fuse: nobody but root reaches it
    if done.returncode:
        raise Stop(REFUSED, f"refused: what is delegated cannot be read: {done.stderr}")
    found = sorted(_DANGEROUS.intersection(re.split(r"[\s,]+", done.stdout)))
    if found:
        raise Stop(REFUSED, f"refused: {', '.join(found)} on {dataset} is delegated; zfs unallow it")


def _way(folder: str) -> int:
    """The folder of all generations, opened step by step; all of it is in root's hands."""
    fd = os.open("/", _FOLDER)
    for part in folder.strip("/").split("/"):
        _check_hands(fd, folder)
        try:
            fd = _below(fd, part)
        except OSError as error:
            raise Stop(REFUSED, f"refused: {folder}: at {part!a}: {error.strerror}") from None
    _check_hands(fd, folder)
    return fd


def _check_hands(fd: int, folder: str) -> None:
    found = os.fstat(fd)
    if found.st_uid != 0 or (found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX):
        raise Stop(
            REFUSED,
            f"refused: {folder}, or a folder above it, is not root's, or others may write to it and it "
            "is not sticky (chmod +t)",
        )


def _make_container(folder: str, repository: str, caller: int) -> None:
    """The repository's own folder becomes root's, so that nobody else renames what is mounted in it."""
    fd = _way(folder)
    try:
        os.mkdir(repository, 0o755, dir_fd=fd)
    except FileExistsError:
        pass
    fd = _own(fd, folder, repository)
    found = os.fstat(fd)
    if found.st_uid not in (0, caller):
        raise Stop(REFUSED, f"refused: {folder}/{repository} is neither root's nor the caller's")
    if found.st_uid != 0:
        os.fchown(fd, 0, -1)
        # Its maker goes on working in what it holds.
        os.fchmod(fd, stat.S_IMODE(found.st_mode) | stat.S_ISVTX | 0o055)
    elif found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
        os.fchmod(fd, stat.S_IMODE(found.st_mode) | stat.S_ISVTX)
    os.close(fd)


def _own(way: int, folder: str, repository: str) -> int:
    """The folder of a repository, in the folder ``way``, which is closed."""
    number = _mount_number(way)
    try:
        fd = _below(way, repository)
    except OSError as error:
        raise Stop(REFUSED, f"refused: {folder}/{repository}: {error.strerror}") from None
    if _mount_number(fd) != number:
        # Who mounts something of his own there decides what its folders seem to be.
        raise Stop(REFUSED, f"refused: something is mounted at {folder}/{repository}")
    return fd


def _container(folder: str, repository: str) -> int:
    fd = _own(_way(folder), folder, repository)
    _check_hands(fd, f"{folder}/{repository}")
    return fd


def _mount(folder: str, repository: str, dataset: str) -> str:
    name = dataset.rpartition("/")[2]
    path = f"{folder}/{repository}/{name}"
    above = _container(folder, repository)
    try:
        os.mkdir(name, 0o755, dir_fd=above)
    except FileExistsError:
        pass
    try:
        there = _stands_at(above, name, path)
        if there == dataset:
            return f"{dataset} is mounted at {path}"
        if there:
            raise Stop(REFUSED, f"refused: {there} is mounted at {path}")
        done = _zfs("mount", dataset)
        at = _mounted_at(dataset)
        # The folders are root's: no walk through them can end elsewhere than the one before.
        if at == [path] and _source(above, name) == dataset:
            return f"mounted {dataset} at {path}"
        if at:
            undone = _zfs("unmount", dataset)
            raise Stop(REFUSED, f"refused: it was mounted at {at[0]!a}, and unmounted again {undone.stderr}")
        raise Stop(FAILED, f"failed: {done.stderr or 'zfs mount mounted nothing'}")
    except BaseException:
        _remove(above, name)
        raise


def _stands_at(above: int, name: str, path: str) -> str:
    """What is mounted at ``path`` already, '' for a folder of ours that is empty; Stop for all else."""
    try:
        source = _source(above, name)
        found = os.stat(name, dir_fd=above, follow_symlinks=False)
    except OSError as error:
        raise Stop(REFUSED, f"refused: {path}: {error.strerror}") from None
    if source is not None:
        return source
    if found.st_uid != 0 or found.st_mode & _OTHERS_WRITE:
        raise Stop(REFUSED, f"refused: {path} is not root's; remove it")
    return ""


def _source(above: int, name: str) -> str | None:
    """The dataset whose root is mounted at ``name``, None when nothing is mounted there."""
    fd = os.open(name, _FOLDER, dir_fd=above)
    try:
        number = _mount_number(fd)
        if number == _mount_number(above):
            return None
    finally:
        os.close(fd)
    for fields, source in _mount_table():
        if fields[0] == number:
            return source if fields[3] == "/" else f"{fields[3]} of {source}"
    return "?"


def _mount_number(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as told:
        return next(line.split()[1] for line in told if line.startswith("mnt_id:"))


def _mount_table() -> list[tuple[list[str], str]]:
    """The words of each mount up to its options (proc(5)), and its source."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as told:
        lines = [line.rstrip("\n").split(" ") for line in told]
    return [(fields, _plain(fields[fields.index("-") + 2])) for fields in lines]


def _mounted_at(dataset: str) -> list[str]:
    return [_plain(fields[4]) for fields, source in _mount_table() if source == dataset]


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _unmount(folder: str, repository: str, dataset: str, container: str) -> str:
    name = dataset.rpartition("/")[2]
    # Read last of all, as it may have become the head since the other properties were.
    head, source = _properties(container)[container]["dsg:head"]
    if source == "local":
        found = _HEAD.fullmatch(head)
        if found is None:
            raise Stop(REFUSED, f"refused: dsg:head of {container} cannot be read")
        if found[1] == name:
            raise Stop(REFUSED, f"refused: {dataset} is the head")
    was = bool(_mounted_at(dataset))
    if was:
        done = _zfs("unmount", dataset)
        if _mounted_at(dataset):
            raise Stop(FAILED, f"failed: {done.stderr or 'zfs unmount unmounted nothing'}")
    try:
        above = _container(folder, repository)
    except (OSError, Stop):
        return f"{dataset} is not mounted"
    _remove(above, name)
    return f"unmounted {dataset}" if was else f"{dataset} is not mounted"


def _remove(above: int, name: str) -> None:
    """Remove the empty folder of a generation, which only root may; whatever else is there stays."""
    try:
        if os.stat(name, dir_fd=above, follow_symlinks=False).st_uid == 0:
            os.rmdir(name, dir_fd=above)
    except OSError:
        return


def _zfs(*words: str) -> subprocess.CompletedProcess[str]:
    program = next((p for p in (f"{f}/zfs" for f in _PROGRAMS) if os.access(p, os.X_OK)), None)
    if program is None:
        raise Stop(FAILED, "failed: there is no program zfs")
    return subprocess.run(
        [program, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="surrogateescape",
        env={"PATH": ":".join(_PROGRAMS), "LC_ALL": "C"},
        start_new_session=True,
    )


def _must(*words: str) -> str:
    done = _zfs(*words)
    if done.returncode:
        raise Stop(FAILED, f"failed: {done.stderr}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
