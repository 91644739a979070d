"""One look at a repository's datasets: what generations there are, and what ``dsg:head`` says."""

from __future__ import annotations

from typing import NamedTuple

from dsg_remote_agent.storage.zfs.command import Trouble, Zfs, failure
from dsg_remote_agent.storage.zfs.names import HeadValue, generation_number, snapshot
from protocol.errors import ConfigError, IntegrityError, RemoteStorageError
from protocol.paths import escape
from protocol.value import Value

__all__ = ["ORIGIN", "Generation", "Survey", "take_survey", "unfinished"]

# Of a repository that a dataset with files was taken over as: its GUID and what it was called.
ORIGIN = "dsg:from"
_WRITTEN = "written"
_PROPERTIES = (
    "type",
    "origin",
    "mounted",
    "mountpoint",
    "canmount",
    "readonly",
    "used",
    "dsg:txid",
    "dsg:seq",
    "dsg:reader",
    "dsg:unadopted",
    "dsg:head",
    "dsg:format",
    "dsg:repo-id",
    ORIGIN,
)


class Generation(NamedTuple):
    """One dataset of a repository.

    ``origin``: the snapshot that it is a clone of, '' when it is none.
    ``txid`` and ``seq``: of the transaction that made it, as its own
    properties say; '' and -1 when they say nothing. ``read_only``: by its own
    property. ``written``: whether anything was written since its newest
    snapshot, of the head in a survey that is ``exact`` since its own one; None
    when this ZFS cannot tell. ``used``: the bytes that it shares
    with no origin. ``unadopted``: its snapshot holds changes made outside DSG
    that its manifest does not have yet.
    """

    number: int
    name: str
    origin: str
    mounted: bool
    mountpoint: str
    txid: str
    seq: int
    read_only: bool
    written: bool | None
    used: str
    unadopted: bool = False

    @property
    def holds_more(self) -> bool:
        """Whether there may be anything in this clone that its origin does not hold."""
        return self.used != "0" if self.written is None else self.written

    @property
    def origin_dataset(self) -> str:
        """The dataset that its origin is a snapshot of; '' when it has none."""
        return self.origin.partition("@")[0]


class Survey(Value):
    """All datasets of the repository in ``dataset``, at one moment.

    ``head`` is None while an init is unfinished. ``readers``: clones that were
    made to read an older snapshot. ``folder``: where they are mounted below.
    """

    dataset: str
    folder: str
    format: str
    repo_id: str
    head: HeadValue | None
    generations: dict[int, Generation]
    readers: tuple[str, ...]

    def current(self) -> Generation:
        """The head's generation; IntegrityError when it is not there."""
        assert self.head is not None
        found = self.generations.get(self.head.generation)
        if found is None:
            raise IntegrityError(
                f"the head of {self.dataset} is generation g{self.head.generation}, which does not exist",
                hint=f"look at what is there: zfs list -r {self.dataset}; nothing was changed",
            )
        return found

    def ancestors(self) -> list[Generation]:
        """The generations that the head is a clone of, nearest first: those that are not promoted yet."""
        by_name = {generation.name: generation for generation in self.generations.values()}
        found: list[Generation] = []
        at = self.current()
        while at.origin and at.origin_dataset in by_name and len(found) < len(by_name):
            at = by_name[at.origin_dataset]
            found.append(at)
        return found


def take_survey(zfs: Zfs, dataset: str, *, exact: bool = False) -> Survey:
    """Look at ``dataset``. ConfigError when it is no repository, RemoteStorageError when it is not seen.

    ``exact``: for who must know whether the head was written to, which is a command more.
    """
    rows = _read(zfs, dataset)
    own = rows.pop(dataset, {})
    repo_id, format_ = _local(own, "dsg:repo-id"), _local(own, "dsg:format")
    origin = _local(own, ORIGIN)
    if origin and not format_:
        raise unfinished(dataset, origin)
    if not repo_id or not format_:
        raise ConfigError(
            f"the dataset {dataset} is not a DSG repository",
            hint="check the name; 'dsg init' makes a new repository",
        )
    head = _local(own, "dsg:head")
    generations = {}
    readers = []
    for name, row in rows.items():
        if name.rpartition("/")[0] != dataset:
            continue
        number = generation_number(name)
        if number is not None and row.get("type", ("", ""))[0] == "filesystem":
            generations[number] = _generation(number, name, row)
        elif _local(row, "dsg:reader"):
            readers.append(name)
    standing = HeadValue.parse(head, dataset) if head else None
    current = generations.get(standing.generation) if standing is not None else None
    if exact and standing is not None and current is not None and current.written is False:
        # That is since the newest snapshot, which may be anybody's.
        since = _written_since(zfs, snapshot(standing.seq), current.name)
        generations[current.number] = current._replace(written=since)
    return Survey(
        dataset=dataset,
        folder=own.get("mountpoint", ("", ""))[0],
        format=format_,
        repo_id=repo_id,
        head=standing,
        generations=generations,
        readers=tuple(readers),
    )


def unfinished(dataset: str, origin: str) -> RemoteStorageError:
    """The error for a repository as which a dataset is only half taken over, as its property tells."""
    source = escape(origin.partition(":")[2])
    return RemoteStorageError(
        f"{source} is being taken over as {dataset}, and that was not finished",
        hint=f"run the same again: dsg init …:zfs:{dataset} --from-dataset {source}",
    )


Row = dict[str, tuple[str, str]]  # value and source by property


def _local(row: Row, name: str) -> str:
    # What was inherited is somebody else's: children and snapshots show their parent's user properties.
    value, source = row.get(name, ("", ""))
    return value if source == "local" else ""


def _read(zfs: Zfs, dataset: str) -> dict[str, Row]:
    properties = [*_PROPERTIES, *([] if _WRITTEN in zfs.lacking else [_WRITTEN])]
    words = ("get", "-H", "-p", "-r", "-d", "1", "-o", "name,property,value,source")
    answer = zfs.run(*words, ",".join(properties), dataset)
    if answer.trouble is Trouble.LACKING and _WRITTEN not in zfs.lacking:
        zfs.lacking.add(_WRITTEN)
        return _read(zfs, dataset)
    if answer.trouble is Trouble.MISSING:
        raise ConfigError(
            f"there is no dataset {dataset} on the server",
            hint="check the name, and whether its pool is imported ('zpool list'); "
            "'dsg init' makes a new repository",
        )
    if not answer.good:
        raise failure(answer, dataset, "looking at the datasets")
    rows: dict[str, Row] = {}
    for line in answer.out.splitlines():
        fields = line.split("\t")
        if len(fields) != 4:
            raise IntegrityError(
                f"zfs get answered with a line that cannot be read: {escape(line[:200])!r}",
                hint=f"is there a tab or a newline in a property or mountpoint of {dataset}?",
            )
        name, prop, value, source = fields
        if "@" not in name:
            rows.setdefault(name, {})[prop] = ("" if value == "-" else value, source)
    return rows


def _written_since(zfs: Zfs, name: str, dataset: str) -> bool | None:
    """Whether ``dataset`` was written to since its snapshot ``name``; None when that cannot be told."""
    answer = zfs.run("get", "-H", "-p", "-o", "value", f"{_WRITTEN}@{name}", dataset)
    value = answer.out.strip()
    return value != "0" if answer.good and value.isdigit() else None


def _generation(number: int, name: str, row: Row) -> Generation:
    def value(prop: str) -> str:
        return row.get(prop, ("", ""))[0]

    seq = _local(row, "dsg:seq")
    return Generation(
        number=number,
        name=name,
        origin=value("origin"),
        mounted=value("mounted") == "yes",
        mountpoint=value("mountpoint"),
        txid=_local(row, "dsg:txid"),
        seq=int(seq) if seq.isascii() and seq.isdigit() else -1,
        # zfs-fuse shows what the mount table says, and "temporary" for a property that differs from it.
        read_only=row.get("readonly", ("", ""))[1] in ("local", "temporary"),
        written=None if _WRITTEN not in row else value(_WRITTEN) != "0",
        used=value("used"),
        unadopted=_local(row, "dsg:unadopted") == "yes",
    )
