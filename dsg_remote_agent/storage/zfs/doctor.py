"""What can be wrong with ZFS on a server and a repository in it, looked at one by one."""

from __future__ import annotations

from collections.abc import Iterator

from dsg_remote_agent.storage.zfs.advising import advise
from dsg_remote_agent.storage.zfs.command import Zfs
from dsg_remote_agent.storage.zfs.holders import holders
from dsg_remote_agent.storage.zfs.links import is_current
from dsg_remote_agent.storage.zfs.privileges import Way, account, examine_rights, way
from dsg_remote_agent.storage.zfs.repository import ZfsRepository
from dsg_remote_agent.storage.zfs.settling import MOST_UNPROMOTED
from dsg_remote_agent.storage.zfs.survey import Survey, take_survey
from protocol.errors import ConfigError, DsgError

__all__ = ["Finding", "examine_zfs"]

Finding = tuple[str, bool, str, str]  # what was looked at, whether it is well, what was found, the cure


def examine_zfs(zfs: Zfs, dataset: str, repository: ZfsRepository | None) -> Iterator[Finding]:
    """The findings on ``dataset``; ``repository`` None: it could not be opened."""
    yield from _rights(zfs, dataset.rpartition("/")[0])
    try:
        survey = take_survey(zfs, dataset)
    except ConfigError as error:
        parent = dataset.rpartition("/")[0]
        there = zfs.run("list", "-H", "-o", "name", parent).good
        yield (
            "dataset",
            there,
            f"{error.message}; 'dsg init' would make it in {parent}" if there else error.message,
            f"zfs create -p -o canmount=off -o atime=off -o mountpoint=FOLDER/.gen {parent}",
        )
        if there:
            yield from _properties(zfs, parent)
        return
    except DsgError as error:
        yield ("dataset", False, error.message, error.hint)
        return
    yield ("dataset", True, f"{dataset}, mounted below {survey.folder}", "")
    yield (
        "changes outside DSG",
        True,
        "found by the stat index (this ZFS has no property 'written')"
        if "written" in zfs.lacking
        else "found by the property 'written'",
        "",
    )
    yield from _properties(zfs, dataset)
    if survey.head is None:
        yield ("repository", False, "its making was not finished", "run the same 'dsg init' again")
        return
    if repository is not None:
        yield from _generations(repository, survey)


def _properties(zfs: Zfs, dataset: str) -> Iterator[Finding]:
    for advice in advise(zfs, dataset):
        told = advice.text if advice.grave or not advice.command else f"{advice.text} ({advice.command})"
        yield (f"property {advice.prop}", not advice.grave, told, advice.command)


def _rights(zfs: Zfs, root: str) -> Iterator[Finding]:
    found = way()
    if found is Way.ROOT:
        yield ("rights", True, "root, who may do everything", "")
        return
    yield ("rights", True, f"{account()} is not root; mounting {found.value}", "")
    for right in examine_rights(zfs, root):
        yield (right.name, right.ok, right.detail, "\n".join(("# as root on the server:", *right.commands)))


def _generations(repository: ZfsRepository, survey: Survey) -> Iterator[Finding]:
    current = survey.current()
    yield (
        "head",
        current.mounted,
        f"generation g{current.number}, {'mounted' if current.mounted else 'not mounted'}",
        f"zfs mount {current.name}, or 'dsg recover'",
    )
    site = repository.site
    yield (
        "link",
        is_current(site, current.number),
        f"{site.link} leads to the head"
        if is_current(site, current.number)
        else f"{site.link} does not lead to the head",
        "'dsg recover', or the next sync, sets it; nothing else may stand there",
    )
    older = [g for g in survey.generations.values() if g.number != current.number]
    found = holders(older) if older else []
    yield (
        "older generations",
        not older,
        ", ".join(f"g{generation.number}" for generation in older)
        + (f"; in use by {', '.join(found[:5])}" if found else "")
        if older
        else "none",
        "they go with a sync or 'dsg recover' when nobody uses them; 'dsg recover' tells what keeps one",
    )
    count = len(survey.ancestors())
    if count:
        yield (
            "promotion",
            count < MOST_UNPROMOTED // 2,
            f"the head stands on {count} older generations (at most {MOST_UNPROMOTED})",
            "end what uses an old snapshot, such as 'zfs send', then: dsg recover",
        )
