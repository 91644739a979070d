"""The configuration: where values come from, what is refused and in which line, and who may write it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dsg_client.local.config import Config, load_config, user_settings_path
from protocol.errors import ConfigError
from tests.client.local.conftest import as_nobody


def load(
    root: Path,
    tree: str | None = None,
    user: str | None = None,
    environ: dict[str, str] | None = None,
    options: dict[str, Any] | None = None,
) -> Config:
    if tree is not None:
        (root / ".dsgconfig.yml").write_text(tree)
    settings = root / "user-config.yml"
    if user is not None:
        settings.write_text(user)
    return load_config(root, options=options, environ=environ or {}, user_settings=settings)


def refusal(root: Path, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(root, *args, **kwargs)
    assert caught.value.exit_status == 4
    return caught.value.message


def test_without_anything_there_are_the_defaults(root: Path) -> None:
    config = load(root)
    assert config.data_dirs == ("input", "output", "frozen")
    assert config.ignore == ()
    assert config.transport == "asyncssh"
    assert config.connect_timeout == 10
    assert not config.portable_names
    assert config.sources == {}
    with pytest.raises(ConfigError, match="no repository"):
        config.require_repository()
    assert load_config(None, environ={}, user_settings=root / "none").data_dirs == config.data_dirs


def test_every_key_can_be_set(root: Path) -> None:
    config = load(
        root,
        """
name: Trial 7
repository: ann@server:/data/trial7
data_dirs: [input, results]
ignore:
  - "*.log"
  - "!keep.log"
portable_names: true
transport: openssh
agent_command: /opt/dsg/bin/dsg-remote-agent
ssh:
  connect_timeout: 3
user_name: Ann
user_id: ann@example.org
""",
    )
    assert config.name == "Trial 7"
    assert config.require_repository() == "ann@server:/data/trial7"
    assert config.data_dirs == ("input", "results")
    assert config.ignore == ("*.log", "!keep.log")
    assert config.portable_names
    assert (config.transport, config.agent_command) == ("openssh", "/opt/dsg/bin/dsg-remote-agent")
    assert config.connect_timeout == 3
    assert (config.user_name, config.user_id) == ("Ann", "ann@example.org")
    assert config.sources["repository"] == ".dsgconfig.yml, line 3"
    assert config.scope.in_scope("results/a.csv")


def test_later_wins(root: Path) -> None:
    tree = "transport: openssh\nuser_name: tree\nuser_id: tree\nportable_names: true"
    user = "user_name: user\nuser_id: user\nportable_names: false"
    environ = {
        "DSG_USER_NAME": "variable",
        "DSG_REPOSITORY": "h:/r",
        "DSG_DATA_DIRS": "a,b",
        "DSG_IGNORE": "x\ny",
    }
    config = load(root, tree, user, environ, {"user_name": "option", "repository": None})
    assert config.user_name == "option"
    assert config.user_id == "user"
    assert config.transport == "openssh"
    assert not config.portable_names
    assert config.repository == "h:/r"
    assert config.data_dirs == ("a", "b")
    assert config.ignore == ("x", "y")
    assert config.sources["user_name"] == "option"
    assert config.sources["repository"] == "DSG_REPOSITORY"
    assert config.sources["user_id"].endswith("user-config.yml, line 2")


def test_variables_are_checked_like_files(root: Path) -> None:
    assert "DSG_CONNECT_TIMEOUT" in refusal(root, environ={"DSG_CONNECT_TIMEOUT": "soon"})
    assert "DSG_TRANSPORT" in refusal(root, environ={"DSG_TRANSPORT": "telnet"})
    assert "DSG_PORTABLE_NAMES" in refusal(root, environ={"DSG_PORTABLE_NAMES": "maybe"})
    assert (
        load(root, environ={"DSG_PORTABLE_NAMES": "Yes", "DSG_CONNECT_TIMEOUT": "2.5"}).connect_timeout == 2.5
    )
    # Empty means not set, and others' variables are none of ours.
    assert load(root, environ={"DSG_TRANSPORT": "", "DSG_FAILPOINTS": "x"}).transport == "asyncssh"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("name: x\ndata_dir: [a]", 2, "did you mean 'data_dirs'"),
        ("reposittory: h:/r", 1, "did you mean 'repository'"),
        ("ssh:\n  conect_timeout: 3", 2, "did you mean 'ssh.connect_timeout'"),
        ("zzz: 1", 1, "there are agent_command"),
        ("name: 3", 1, "put it in quotes"),
        ("\n\nname: 2020-01-01", 3, "put it in quotes"),
        ("data_dirs: [a, on]", 1, "put it in quotes"),
        ("data_dirs: {a: b}", 1, "must be a list of texts"),
        ("data_dirs: []", 1, "nothing would be synced"),
        ("data_dirs: [a/b]", 1, "is a path"),
        ("data_dirs: ['a*']", 1, "is a pattern"),
        ("data_dirs: ['..']", 1, "cannot be a folder's name"),
        ("data_dirs: [.git]", 1, "never synced"),
        ("data_dirs: [.dsg]", 1, "cannot be a folder's name"),
        ("ignore: [/]", 1, "gitignore"),
        ("portable_names: 'true'", 1, "true or false"),
        ("transport: rsh", 1, "asyncssh, openssh"),
        ("ssh: 3", 1, "lines of its own"),
        ("ssh:\n  connect_timeout: 0", 2, "between"),
        ("ssh:\n  connect_timeout: .inf", 2, "number of seconds"),
        ("name: a\nname: b", 2, "already"),
        ('name: "a\\tb"', 1, "control characters"),
        ("repository: [h", 2, "not YAML"),
        ("name: a\n\tname: b", 2, "not YAML"),
        ("just text", 1, "key: value"),
        ("- list", 1, "key: value"),
        ("name: !!python/object/apply:os.system [id]", 1, "not YAML"),
    ],
)
def test_errors_name_the_line(root: Path, text: str, line: int, message: str) -> None:
    said = refusal(root, text)
    assert f".dsgconfig.yml, line {line}:" in said
    assert message in said


def test_files_that_are_no_text(root: Path) -> None:
    path = root / ".dsgconfig.yml"
    path.write_bytes(b"name: x\nignore: [\xff]\n")
    assert "line 2: it is not UTF-8" in refusal(root)
    path.write_bytes(b"#" * 300_000)
    assert "larger than" in refusal(root)
    path.unlink()
    os.mkfifo(path)
    assert "not a file" in refusal(root)


def test_a_byte_order_mark_and_windows_line_ends(root: Path) -> None:
    (root / ".dsgconfig.yml").write_bytes(b"\xef\xbb\xbfname: x\r\nrepository: h:/r\r\n")
    assert load(root).repository == "h:/r"
    (root / ".dsgconfig.yml").write_bytes(b"")
    assert load(root).name == ""


def test_what_belongs_to_a_tree_is_refused_in_user_settings(root: Path) -> None:
    assert "write it into its .dsgconfig.yml" in refusal(root, user="data_dirs: [a]")
    assert "did you mean 'transport'" in refusal(root, user="transprot: openssh")


def test_user_settings_are_where_the_platform_keeps_them(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(root / "config"))
    path = user_settings_path()
    assert path.is_relative_to(root)
    path.parent.mkdir(parents=True)
    path.write_text("user_name: from-settings\n")
    assert load_config(None, environ={}).user_name == "from-settings"


# Who may write what decides which program runs

SENSITIVE = "agent_command: /bin/agent\n"


@pytest.mark.parametrize("line", [SENSITIVE, "transport: openssh\n"])
def test_a_file_that_everybody_can_write_may_not_name_programs(root: Path, line: str) -> None:
    load(root, line)
    (root / ".dsgconfig.yml").chmod(0o646)
    assert "decides which program runs" in refusal(root)
    (root / ".dsgconfig.yml").chmod(0o644)
    root.chmod(0o757)
    assert "can be written to by everybody" in refusal(root)
    root.chmod(0o755)
    load(root)


def test_such_a_file_may_hold_everything_else(root: Path) -> None:
    load(root, "name: x\ndata_dirs: [a]\n")
    (root / ".dsgconfig.yml").chmod(0o666)
    assert load(root).name == "x"


def test_a_shared_group_is_others_and_a_private_one_is_not(root: Path) -> None:
    import grp

    load(root, SENSITIVE)
    (root / ".dsgconfig.yml").chmod(0o664)
    if os.geteuid() == 0:
        shared = next(g.gr_gid for g in grp.getgrall() if g.gr_gid != os.getegid())
        os.chown(root / ".dsgconfig.yml", -1, shared)
        assert "can be written to by its group" in refusal(root)
        os.chown(root / ".dsgconfig.yml", -1, os.getegid())
        assert load(root).agent_command == "/bin/agent"


@pytest.mark.needs("root")
def test_a_file_of_another_account_may_not_name_programs(public: Path) -> None:
    public.chmod(0o755)
    (public / ".dsgconfig.yml").write_text(SENSITIVE)
    (public / ".dsgconfig.yml").chmod(0o644)
    os.chown(public / ".dsgconfig.yml", 12345, -1)
    said = as_nobody(lambda: load_config(public, environ={}, user_settings=public / "none"))
    assert "belongs to another account" in said
