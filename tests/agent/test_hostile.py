"""Requests from a client that lies: what is refused, and that nothing was changed by asking."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsg_remote_agent.dispatch import unanswered
from protocol.codec import pack_rows
from protocol.errors import (
    DsgError,
    IntegrityError,
    NotPermittedError,
    OutsideChangeError,
    PathsRefusedError,
    RemoteProtocolError,
    RemoteStorageError,
)
from protocol.filestream import Packer
from protocol.manifest import Entry, Manifest
from protocol.messages import (
    METHODS,
    Abort,
    Begin,
    Changes,
    Commit,
    Doctor,
    GetFiles,
    GetManifest,
    InitRepo,
    OpenRepo,
    Prepare,
    Prune,
    Recover,
    Role,
    Upload,
    to_wire,
)
from protocol.records import SnapshotRecord
from tests.agent.client import (
    Client,
    change_body,
    changes_of,
    file_entry,
    link_entry,
    merged,
    tree_of,
    upload_body,
)

pytestmark = pytest.mark.slow
TXID = "tx-hostile-01"


def everything(folder: Path) -> dict[str, Any]:
    """Names, contents, sizes and times of all below a folder, DSG's own included."""
    return {
        str(path.relative_to(folder)): (
            path.read_bytes() if path.is_file() and not path.is_symlink() else path.lstat().st_mode
        )
        for path in sorted(folder.rglob("*"))
    }


def begun(client: Client, repo: Path) -> SnapshotRecord:
    base = client.init(repo)
    client.open(repo)
    client.begin(TXID, base)
    return base


# Where an agent may work, and what it may do.


@pytest.mark.parametrize(
    ("root", "asked"),
    [
        ("a", "ab/repo"),
        ("a", "a/../ab/repo"),
        ("a", "a/link/repo"),
        ("a", "/etc"),
        ("a", "a/.."),
        ("a", "a/up/ab/repo"),
    ],
)
def test_outside_the_root(tmp_path: Path, root: str, asked: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "ab").mkdir()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "ab")
    (tmp_path / "a" / "up").symlink_to("..")
    with Client() as free:
        free.init(tmp_path / "ab" / "repo")
    before = everything(tmp_path / "ab")
    with Client("--root", str(tmp_path / root)) as client:
        path = os.path.join(tmp_path, asked)
        for request in (
            OpenRepo(repo=1, path=path),
            Doctor(path=path),
            InitRepo(
                path=path + "/new",
                repo_id="repo-12345678",
                algorithm="sha256",
                group="",
                user="",
                host="",
                settings="",
            ),
        ):
            with pytest.raises(NotPermittedError, match="may not use"):
                client.call(request)
        client.init(tmp_path / root / "inside")
        client.open(tmp_path / root / "inside")
    assert everything(tmp_path / "ab") == before


def test_a_root_that_is_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "name").symlink_to("real")
    with Client("--root", str(tmp_path / "name")) as client:
        client.init(tmp_path / "name" / "repo")
        client.open(tmp_path / "real" / "repo")
        client.open("repo")  # relative to the only root


def test_roles(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    with Client() as admin:
        base = admin.init(repo)
    before = everything(repo)
    reads = [
        "repo.open",
        "repo.manifest",
        "repo.records",
        "repo.snapshot",
        "repo.outside",
        "repo.stock",
        "files.get",
        "server.doctor",
    ]

    assert sorted(name for name, row in METHODS.items() if row.role is Role.READ) == sorted(reads)
    admin = [name for name, row in METHODS.items() if row.role is Role.ADMIN]
    assert admin == ["repo.init", "repo.take", "repo.prune"]
    with Client("--role", "read") as client:
        client.open(repo)
        for request in (
            Begin(repo=1, txid=TXID, base=base.digest, user="", host="", adopt=False),
            Recover(repo=1),
            Commit(repo=1, txid=TXID, record=base.digest),
            Abort(repo=1, txid=TXID),
        ):
            with pytest.raises(NotPermittedError, match="'read'"):
                client.call(request)
    with Client("--role", "write") as client:
        client.open(repo)
        client.begin(TXID, base)
        with pytest.raises(NotPermittedError, match="'write'"):
            client.init(tmp_path / "other")
    with Client("--role", "write") as client, pytest.raises(NotPermittedError, match="'write'"):
        client.take("zfs:pool/dsg/other", "pool/other")
    with Client("--role", "write") as client:
        client.open(repo)
        with pytest.raises(NotPermittedError, match="'write'"):
            client.call(Prune(repo=1, last=1, hourly=0, daily=0, weekly=0, monthly=0, dry_run=False))
    assert everything(repo) == before
    assert not (tmp_path / "other").exists()


def test_the_clients_command_widens_nothing(tmp_path: Path) -> None:
    """borg CVE-2017-15914: what sshd puts into SSH_ORIGINAL_COMMAND is the client's wish."""
    wish = {"SSH_ORIGINAL_COMMAND": f"dsg-remote-agent --root {tmp_path} --role admin"}
    (tmp_path / "allowed").mkdir()
    with Client("--root", str(tmp_path / "allowed"), "--role", "read", environment=wish) as client:
        with pytest.raises(NotPermittedError):
            client.init(tmp_path / "repo")
        with pytest.raises(NotPermittedError):
            client.open(tmp_path)


def test_every_method_is_answered() -> None:
    import dsg_remote_agent.keeping
    import dsg_remote_agent.repositories
    import dsg_remote_agent.transactions  # noqa: F401

    assert unanswered() == set()


# Handles and the order of things.


def test_handles_and_transactions_must_exist(tmp_path: Path) -> None:
    with Client() as client:
        base = client.init(tmp_path / "repo")
        with pytest.raises(RemoteProtocolError, match="no open repository"):
            client.call(GetManifest(repo=9, have=""))
        client.open(tmp_path / "repo")
        with pytest.raises(RemoteProtocolError, match="in use"):
            client.call(OpenRepo(repo=1, path=str(tmp_path / "repo")))
        for request in (
            Changes(repo=1, txid=TXID),
            Upload(repo=1, txid=TXID),
        ):
            with pytest.raises(RemoteProtocolError, match="no open transaction"):
                client.call(request, [])
        with pytest.raises(RemoteProtocolError, match="no prepared transaction"):
            client.call(Commit(repo=1, txid=TXID, record=base.digest))
        client.begin(TXID, base)
        with pytest.raises(RemoteProtocolError, match="open already"):
            client.begin("tx-hostile-02", base)
        with pytest.raises(RemoteProtocolError, match="no open transaction"):
            client.call(Changes(repo=1, txid="tx-hostile-02"), [])
        with pytest.raises(RemoteProtocolError, match="begun"):
            client.call(Commit(repo=1, txid=TXID, record=base.digest))
        with pytest.raises(RemoteProtocolError):
            client.call(Recover(repo=1))


def test_a_commit_of_another_record(tmp_path: Path) -> None:
    with Client() as client:
        base = begun(client, tmp_path / "repo")
        client.stage(TXID, changes_of({"f": b"x"}, [], {}, 1), {"f": b"x"})
        record = client.prepare(TXID, merged(client.manifest(), changes_of({"f": b"x"}, [], {}, 1)))
        with pytest.raises(RemoteProtocolError, match="another record"):
            client.commit(TXID, record.but(message="forged"))
        assert tree_of(tmp_path / "repo") == {}
        client.open(tmp_path / "repo")
        assert client.head_and_manifest()[0] == base


def test_a_commit_again_is_answered_from_the_chain(tmp_path: Path) -> None:
    with Client() as client:
        begun(client, tmp_path / "repo")
        changes = changes_of({"f": b"x"}, [], {}, 1)
        client.stage(TXID, changes, {"f": b"x"})
        record = client.prepare(TXID, merged(client.manifest(), changes))
        first = client.commit(TXID, record)
        assert client.commit(TXID, record).record == first.record
    with Client() as client:
        client.open(tmp_path / "repo")
        assert client.commit(TXID, record).record == first.record
        with pytest.raises(RemoteProtocolError):
            client.commit("tx-hostile-99", record)


# Changes and contents.

BAD_ROWS: list[tuple[str, list[Any], str]] = [
    ("not a path", [["../../etc/passwd"]], "component"),
    ("absolute", [file_entry("/etc/passwd", b"x")], "absolute"),
    ("dsg's own", [file_entry(".dsg/head", b"x")], "reserved"),
    ("dsg's own, in disguise", [file_entry("d/.DSG./x", b"x")], "reserved"),
    ("dot dot", [file_entry("a/../b", b"x")], "component"),
    ("out of order", [file_entry("b", b"x"), file_entry("a", b"x")], "order"),
    ("twice", [file_entry("a", b"x"), file_entry("a", b"x")], "order"),
    ("a link out", [link_entry("l", "../../etc")], "outside"),
    ("an absolute link", [link_entry("l", "/etc")], "absolute"),
    ("a link into .dsg", [link_entry("l", ".dsg/lock")], "into"),
    ("another snapshot", [file_entry("a", b"x", seq=7)], "s7"),
    ("negative size", [file_entry("a", b"x")._replace(size=-1)], "range"),
    ("a short digest", [file_entry("a", b"x")._replace(content=b"short")], "digest"),
    ("unknown kind", [file_entry("a", b"x")._replace(kind=7)], "kind"),
    ("too many fields", [(*file_entry("a", b"x"), 1)], "field"),
    ("a control character", [file_entry("a\x1b[2J", b"x")], "control"),
    ("not NFC", [file_entry("e\u0301", b"x")], "normal form"),
]


@pytest.mark.parametrize(("what", "rows", "words"), BAD_ROWS, ids=[name for name, _, _ in BAD_ROWS])
def test_bad_changes(tmp_path: Path, what: str, rows: list[Any], words: str) -> None:
    with Client() as client:
        begun(client, tmp_path / "repo")
        with pytest.raises(RemoteProtocolError, match=words):
            client.call(Changes(repo=1, txid=TXID), pack_rows(rows))
        client.call(Abort(repo=1, txid=TXID))
    assert tree_of(tmp_path / "repo") == {}


def prepare_anything(client: Client, changes: list[Entry | str], contents: dict[str, bytes]) -> None:
    """Send changes and prepare, with the manifest that they would make if they were taken as they are."""
    client.stage(TXID, changes, contents)
    client.prepare(TXID, merged(client.manifest(), changes))


def test_a_file_where_a_folder_stays(tmp_path: Path) -> None:
    with Client() as client:
        client.init(tmp_path / "repo")
        client.open(tmp_path / "repo")
        base = client.sync("tx-hostile-00", {"d/x": b"1", "f": b"2"})
        for puts in ({"d": b"file"}, {"f/y": b"below a file"}, {"n": b"1", "n/m": b"2"}):
            client.begin(TXID, base)
            changes = changes_of(puts, [], {}, 2)
            with pytest.raises(RemoteProtocolError, match="both a file and a folder"):
                prepare_anything(client, changes, puts)
            client.call(Abort(repo=1, txid=TXID))
        assert tree_of(tmp_path / "repo") == {"d/x": b"1", "f": b"2"}


def test_a_delete_of_what_is_not_there(tmp_path: Path) -> None:
    with Client() as client:
        base = begun(client, tmp_path / "repo")
        assert base.seq == 0
        client.call(Changes(repo=1, txid=TXID), change_body(["nobody"]))
        with pytest.raises(RemoteProtocolError, match="does not have it"):
            client.prepare(TXID, Manifest.from_entries([]))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"Data/a": b"1"}, {"data/b": b"2"}),
        ({"x/A.csv": b"1"}, {"x/a.csv": b"2"}),
        ({"stra\u00dfe": b"1"}, {"STRASSE": b"2"}),
    ],
)
def test_names_that_collide_with_another_clients(
    tmp_path: Path, first: dict[str, bytes], second: dict[str, bytes]
) -> None:
    with Client() as client:
        client.init(tmp_path / "repo")
        client.open(tmp_path / "repo")
        base = client.sync("tx-hostile-00", first)
        client.begin(TXID, base)
        with pytest.raises(PathsRefusedError) as caught:
            prepare_anything(client, changes_of(second, [], {}, 2), second)
        pair = caught.value.facts["collisions"][0]
        assert {p.casefold() for p in pair} == {pair[0].casefold()}
        # The same name under the other spelling is fine when the first one goes.
        client.call(Abort(repo=1, txid=TXID))
        client.sync("tx-hostile-03", second, first)


def test_contents_that_are_not_what_was_announced(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    changes: list[Entry | str] = [file_entry("f", b"good")]
    lies: list[tuple[dict[str, bytes], type[DsgError]]] = [
        ({"f": b"evil"}, IntegrityError),
        ({"f": b"goo"}, RemoteProtocolError),
        ({"f": b"good and more"}, RemoteProtocolError),
    ]
    with Client() as client:
        base = client.init(repo)
        client.open(repo)
        for contents, error in lies:
            client.begin(TXID, base)
            client.call(Changes(repo=1, txid=TXID), change_body(changes))
            with pytest.raises(error):
                client.call(Upload(repo=1, txid=TXID), upload_body(changes, contents))
            # What did not arrive whole was not received: it cannot be committed.
            with pytest.raises(RemoteProtocolError, match="was not sent"):
                client.prepare(TXID, merged(Manifest.from_entries([]), changes))
            client.call(Abort(repo=1, txid=TXID))
    assert tree_of(repo) == {}


def test_contents_for_what_is_not_a_file(tmp_path: Path) -> None:
    with Client() as client:
        begun(client, tmp_path / "repo")
        changes: list[Entry | str] = [file_entry("f", b"x"), link_entry("l", "f")]
        client.call(Changes(repo=1, txid=TXID), change_body(changes))
        for number in (1, 2, 4_000_000_000):
            packer = Packer()
            body = [*packer.chunk(number, 0, b"x"), *packer.done(number, 1), *packer.flush()]
            with pytest.raises(RemoteProtocolError):
                client.call(Upload(repo=1, txid=TXID), body)


def test_a_manifest_other_than_the_merged_one(tmp_path: Path) -> None:
    with Client() as client:
        begun(client, tmp_path / "repo")
        client.stage(TXID, [file_entry("f", b"x")], {"f": b"x"})
        with pytest.raises(IntegrityError, match="digest"):
            client.prepare(TXID, Manifest.from_entries([file_entry("f", b"y")]))


def test_more_than_there_is_room_for(tmp_path: Path) -> None:
    with Client() as client:
        begun(client, tmp_path / "repo")
        with pytest.raises(RemoteStorageError, match="free") as caught:
            client.call(
                Changes(repo=1, txid=TXID), change_body([file_entry("f", b"x")._replace(size=1 << 50)])
            )
        assert caught.value.facts["needed"] == 1 << 50


# Reading.


def test_only_contents_of_the_repository_are_read(tmp_path: Path) -> None:
    """rsync CVE-2024-12086: a path that no snapshot has gives nothing, whatever stands there."""
    repo = tmp_path / "repo"
    secret = b"hunter2"
    with Client() as client:
        client.init(repo)
        client.open(repo)
        client.sync("tx-hostile-00", {"d/f": b"public"})
        (repo / "d").rename(repo / "moved")
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "f").write_bytes(secret)
        (repo / "d").symlink_to(tmp_path / "outside")
        with pytest.raises(OutsideChangeError):
            client.get(1, [file_entry("d/f", secret)])
        for path in ("../outside/f", "/etc/passwd", ".dsg/head"):
            with pytest.raises(RemoteProtocolError):
                client.call(GetFiles(repo=1, seq=1), pack_rows([(path, b"\0" * 32, 7)]))


def test_an_unreadable_preamble_line_is_not_ours(tmp_path: Path) -> None:
    """The preamble is 7-bit, one line, and names what the client needs."""
    done = subprocess.run(
        [sys.executable, "-m", "dsg_remote_agent"],
        input=b"",
        capture_output=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"\0DSG1\r\n")
    assert to_wire(Doctor(path="")) == {"path": ""}


def test_a_prepare_without_the_contents(tmp_path: Path) -> None:
    with Client() as client:
        begun(client, tmp_path / "repo")
        changes: list[Entry | str] = [file_entry("f", b"never sent")]
        client.call(Changes(repo=1, txid=TXID), change_body(changes))
        with pytest.raises(RemoteProtocolError, match="was not sent"):
            client.call(
                Prepare(
                    repo=1,
                    txid=TXID,
                    manifest=merged(Manifest.from_entries([]), changes).digest,
                    message="",
                    user="",
                    host="",
                )
            )
