"""The main path through a real agent: init, open, begin, upload, prepare, commit, read back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.errors import ConfigError, HeadMovedError, LockedError
from tests.agent.client import Client, changes_of, merged, tree_of


def test_an_empty_repository_and_two_commits(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    with Client() as client:
        made = client.init(repo)
        assert (made.seq, made.entries) == (0, 0)
        assert client.open(repo) == made
        first = client.sync(
            "tx-0000001", {"a.csv": b"1,2\n", "d/b.csv": b"", "d/e/c": b"x" * 100_000}, links={"l": "d/b.csv"}
        )
        assert (first.seq, first.entries, first.added) == (1, 4, 4)
        assert tree_of(repo) == {
            "a.csv": b"1,2\n",
            "d/b.csv": b"",
            "d/e/c": b"x" * 100_000,
            "l": "-> d/b.csv",
        }
        second = client.sync("tx-0000002", {"a.csv": b"3\n", "d/e": b"now a file"}, ["d/e/c", "l"])
        assert (second.added, second.changed, second.deleted) == (1, 1, 2)
        assert tree_of(repo) == {"a.csv": b"3\n", "d/b.csv": b"", "d/e": b"now a file"}
        assert client.get(2, client.manifest()) == {"a.csv": b"3\n", "d/b.csv": b"", "d/e": b"now a file"}
        assert client.close() == 0
    with Client() as client:
        assert client.open(repo) == second
        assert not list((repo / ".dsg" / "staging").iterdir())
        assert not (repo / ".dsg" / "journal.decided").exists()


def test_older_versions_stay(tmp_path: Path) -> None:
    from protocol.manifest import Manifest
    from protocol.messages import GetSnapshot

    repo = tmp_path / "repo"
    with Client() as client:
        client.init(repo)
        client.open(repo)
        versions = [{f"f{n}": f"{n} in {seq}".encode() for n in range(5)} for seq in range(1, 5)]
        for seq, version in enumerate(versions, 1):
            client.sync(f"tx-000000{seq}", version)
        for seq, version in enumerate(versions, 1):
            client.call(GetSnapshot(repo=client.handle, seq=seq))
            manifest = Manifest.from_bytes(b"".join(client.payloads)).validate()
            assert client.get(seq, manifest) == version


def test_one_of_two_wins(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    with Client() as one, Client() as two:
        base = one.init(repo)
        one.open(repo)
        two.open(repo)
        one.begin("tx-aaaaaaaa", base, user="ann")
        with pytest.raises(LockedError) as caught:
            two.begin("tx-bbbbbbbb", base, user="bob")
        assert caught.value.facts["user"] == "ann"
        assert caught.value.facts["host"] == "laptop"
        assert caught.value.facts["pid"] == one.process.pid
        assert caught.value.facts["txid"] == "tx-aaaaaaaa"
        assert "ann" in caught.value.message and "laptop" in caught.value.message
        one.close()
        two.sync("tx-bbbbbbbb", {"f": b"bob's"})
    with Client() as three:
        three.open(repo)
        with pytest.raises(HeadMovedError):
            three.begin("tx-cccccccc", base)


def test_one_agent_and_several_repositories(tmp_path: Path) -> None:
    """Each has its own lock and its own transaction, side by side on one connection."""
    with Client() as client, Client() as other:
        bases = []
        for name in ("one", "two"):
            bases.append(client.init(tmp_path / name, repo_id=f"repo-{name}-0001"))
            assert client.open(tmp_path / name) == bases[-1]
        other.open(tmp_path / "two")
        records = []
        for handle, base in enumerate(bases, 1):
            client.handle = handle
            client.begin(f"tx-handle-{handle}", base)
        with pytest.raises(LockedError):
            other.begin("tx-other-0001", bases[1])
        for handle in (1, 2):
            client.handle = handle
            puts = {"f": b"in %d" % handle}
            changes = changes_of(puts, [], {}, 1)
            client.stage(f"tx-handle-{handle}", changes, puts)
            records.append(client.prepare(f"tx-handle-{handle}", merged(client.manifest(), changes)))
        client.handle = 2
        client.commit("tx-handle-2", records[1])
        assert (tree_of(tmp_path / "one"), tree_of(tmp_path / "two")) == ({}, {"f": b"in 2"})
        client.handle = 1
        client.commit("tx-handle-1", records[0])
        assert tree_of(tmp_path / "one") == {"f": b"in 1"}


def test_init_makes_the_folders_of_kept_contents(tmp_path: Path) -> None:
    """Each would otherwise be made, and flushed, by the first sync that keeps something in it."""
    with Client() as client:
        client.init(tmp_path / "data")
    made = os.listdir(tmp_path / "data" / ".dsg" / "history" / "objects")
    assert sorted(made) == [f"{number:02x}" for number in range(256)]


def test_init_refuses_what_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.tex").write_text("years of work")
    with Client() as client:
        with pytest.raises(ConfigError, match=r"thesis\.tex"):
            client.init(tmp_path / "data")
        client.init(tmp_path / "fresh")
        with pytest.raises(ConfigError, match=r"\.dsg"):
            client.init(tmp_path / "fresh")
        with pytest.raises(ConfigError, match="not a DSG repository"):
            client.open(tmp_path / "data")
