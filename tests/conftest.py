"""What every test stands on: one seed for all randomness, a home of its own, no silent skips in CI.

* ``--seed N`` (or ``DSG_SEED=N``) replays a run; without it a fresh seed is drawn and printed at
  the top. The fixtures :func:`seed` and :func:`rng` are derived from it, and
  Hypothesis uses it too.
* ``@pytest.mark.slow``: real servers and many processes; ``make check``
  leaves these out, ``make test`` runs all. Whole folders of such tests are
  marked here (``SLOW_FOLDERS``).
* ``@pytest.mark.full``: only where ``DSG_FULL`` is set.
* ``@pytest.mark.turns(n)``: each run takes every n-th of the test's cases, beginning where
  the seed says; all where ``DSG_FULL`` is set, and where tests are named one by one.
* ``tests/openzfs`` runs when it is named: ``make test-openzfs`` does, after
  it has built the virtual machine that those tests need.
* ``@pytest.mark.needs("sshd")``: programs the test cannot do without. Where
  one is missing the test is skipped with the command that provides it; in CI
  (``CI`` is set) it fails instead, as does any test skipped with a reason
  that names an install command.
* A test in which zfs-fuse itself dies is run again: :mod:`tests.rerun`.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests import rerun

if TYPE_CHECKING:
    from tests.hosts.zfs_host import ZfsHost

# Which Debian package provides a program that a test may need.
PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "ssh-agent": "openssh-client",
    "rsync": "rsync",
    "strace": "strace",
    "git": "git",
    "zfs-fuse": "zfs-fuse",
}

# Every test below these runs whole commands, each several processes.
SLOW_FOLDERS = ("e2e", "crash", "openzfs")

# What takes minutes, one test process each: started last, it would keep one busy while the others have ended.
FIRST = (
    "e2e/test_scripts.py",
    "agent/test_zfs_life.py",
    "crash/test_zfs_steps.py",
    "agent/test_zfs_taking.py",
    "protocol/tree/test_crash.py",
)

# Left out unless it is named.
NAMED_FOLDER = Path(__file__).resolve().parent / "openzfs"

# Variables of the person who runs the tests that would change what is tested.
FOREIGN_VARIABLES = (
    "SSH_AUTH_SOCK",
    "SSH_ASKPASS",
    "DISPLAY",
    "NO_COLOR",
    "FORCE_COLOR",
    "PYTHONPATH",
    "PYTHONHOME",
)

hypothesis.settings.register_profile("dsg", deadline=None, print_blob=True)
hypothesis.settings.load_profile("dsg")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="replay the randomness of an earlier run")
    parser.addoption(
        "--kernel-zfs",
        action="store_true",
        help="this machine is tests/hosts/openzfs: use its kernel's ZFS, not zfs-fuse",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "needs(*programs): programs that the test cannot do without; 'root': its rights; 'kernel-zfs': what "
        "only tests/openzfs has",
    )
    config.addinivalue_line(
        "markers", "turns(n): each run takes one in n of the cases, by its seed; with DSG_FULL=1 all"
    )
    config.pluginmanager.register(rerun)
    # A shell without job control starts what it puts in the background with Ctrl-C ignored, and every
    # program that the tests start would inherit that.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    if config.option.seed is None:
        of_the_run = getattr(config, "workerinput", {}).get("seed", os.environ.get("DSG_SEED"))
        config.option.seed = secrets.randbelow(1 << 32) if of_the_run in (None, "") else int(of_the_run)
    if getattr(config.option, "hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(config.option.seed)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """All test processes have the seed of the one that starts them: they must collect the same tests."""
    node.workerinput["seed"] = node.config.option.seed


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path == NAMED_FOLDER:
        named = [(config.invocation_params.dir / arg.partition("::")[0]).resolve() for arg in config.args]
        return not any(path.is_relative_to(NAMED_FOLDER) for path in named) or None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.kernel_zfs:
        items[:] = [item for item in items if "kernel-zfs" not in _needed(item)]
    if not os.environ.get("DSG_FULL"):
        items[:] = [item for item in items if item.get_closest_marker("full") is None]
        if not config.option.keyword and not any("::" in arg for arg in config.args):
            items[:] = _whose_turn_it_is(items, config.option.seed)
    here = Path(__file__).parent
    first = {here / name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: first.get(item.path, len(first)))
    folders = [Path(__file__).parent / name for name in SLOW_FOLDERS]
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in folders):
            item.add_marker(pytest.mark.slow)


def _whose_turn_it_is(items: list[pytest.Item], seed: int) -> list[pytest.Item]:
    seen: Counter[str] = Counter()
    taken = []
    for item in items:
        marker = item.get_closest_marker("turns")
        test = item.nodeid.partition("[")[0]
        if marker is None or (seen[test] + seed) % marker.args[0] == 0:
            taken.append(item)
        seen[test] += 1
    return taken


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.option.seed} (replay with --seed {config.option.seed})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(f"the seed of this run was {config.option.seed}")


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run; print what is derived from it when a test fails."""
    value: int = request.config.option.seed
    return value


@pytest.fixture
def rng(request: pytest.FixtureRequest, seed: int) -> random.Random:
    """Randomness of one test: depends on the seed and the test's name, not on which tests ran before."""
    return random.Random(f"{seed}:{request.node.nodeid}")


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing of the person who runs the tests is read or written: home, settings, keys, git identity."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [*FOREIGN_VARIABLES, *os.environ]:
            if name in FOREIGN_VARIABLES or name.startswith(("DSG_", "XDG_", "GIT_", "LC_")):
                patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        patch.setenv("LANG", "C.UTF-8")
        previous = os.umask(0o022)
        yield home
        os.umask(previous)


@pytest.fixture(scope="session")
def zfs_host(request: pytest.FixtureRequest) -> Iterator[ZfsHost]:
    """One ZFS for the whole run; be ``entered()`` to see it, and make a root for each test."""
    if request.config.option.kernel_zfs:
        from tests.hosts.zfs_host import KernelZfs

        yield KernelZfs()
        return
    from tests.hosts.zfs_fuse import zfs_fuse

    with zfs_fuse() as host:
        request.config.stash[rerun.DAEMON] = host
        yield host


def find_program(name: str) -> str | None:
    """Where ``name`` is, also in the folders of administration that an ordinary user's PATH lacks."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")


def skip_unless_root(what: str) -> None:
    """Skip a test that needs ``what``, which only root may do."""
    if os.geteuid() != 0:
        pytest.skip(f"{what} needs root; to have it: sudo make test")


def mount_or_skip(*words: str) -> None:
    """``mount`` with these arguments; skips the test where that is not allowed."""
    skip_unless_root("mounting")
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(
            f"mount {' '.join(words)}: {done.stderr.strip()}; to have it: sudo make test, in a container "
            "with --cap-add SYS_ADMIN"
        )


def _needed(item: pytest.Item) -> list[str]:
    return [program for mark in item.iter_markers("needs") for program in mark.args]


def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = _needed(item)
    if item.config.option.kernel_zfs:
        needed = [program for program in needed if program not in ("zfs-fuse", "kernel-zfs")]
    if "root" in needed:
        skip_unless_root("this test")
    missing = [program for program in needed if program != "root" and find_program(program) is None]
    if missing:
        packages = " ".join(sorted({PACKAGES.get(p, p) for p in missing}))
        pytest.skip(f"{', '.join(missing)} not found; to have it: sudo apt-get install -y {packages}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where all that a test needs is to be had: {report.longrepr}"
    if report.failed and "rng" in getattr(item, "fixturenames", ()):
        report.sections.append(("replay", f"pytest '{item.nodeid}' --seed {item.config.option.seed}"))
    return report
