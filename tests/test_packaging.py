"""What is installed is complete, and is recognised as ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import protocol

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("protocol", "dsg_client", "dsg_remote_agent")


def project() -> dict[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def folders_of(package: str) -> list[Path]:
    """The package's folders that hold Python files."""
    return sorted({path.parent for path in (ROOT / package).rglob("*.py")})


def test_every_package_is_listed() -> None:
    listed = project()["tool"]["setuptools"]["packages"]  # type: ignore[index]
    found = [
        ".".join(folder.relative_to(ROOT).parts) for package in PACKAGES for folder in folders_of(package)
    ]
    assert sorted(listed) == sorted(found)


def test_every_package_folder_has_an_init() -> None:
    bare = [
        str(folder.relative_to(ROOT))
        for package in PACKAGES
        for folder in folders_of(package)
        if not (folder / "__init__.py").exists()
    ]
    assert bare == []


def test_the_sentinel_is_what_the_entry_points_expect() -> None:
    assert protocol.SENTINEL == "dsg-sync protocol"


@pytest.mark.parametrize("entry", ["dsg_client.cli.start", "dsg_remote_agent.main"])
@pytest.mark.parametrize("overwritten", ["whole", "init only"])
def test_a_foreign_protocol_package_is_named(entry: str, overwritten: str, tmp_path: Path) -> None:
    """PyPI's project 'protocol' installs the same top-level name, before or over ours."""
    foreign = tmp_path / "protocol"
    if overwritten == "init only":
        foreign.mkdir()
        for path in (ROOT / "protocol").iterdir():
            if path.name not in ("__init__.py", "__pycache__"):
                (foreign / path.name).symlink_to(path)
    else:
        foreign.mkdir()
    (foreign / "__init__.py").write_text('"""Python Protocols for Network Packets"""\n__version__ = "0.37"\n')
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; from {entry} import main; sys.exit(main())", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode not in (0, 120), result.stdout
    assert "Traceback" not in result.stderr
    assert "package named 'protocol'" in result.stderr, "the message says what stands in the way"
    assert "virtual environment" in result.stderr, "and how to get out of it"


@pytest.mark.slow
def test_a_wheel_holds_every_module_and_starts(tmp_path: Path) -> None:
    """Built from the source alone, installed away from it, both commands start."""
    source = tmp_path / "source"  # a copy: an older build folder in the checkout would leak into the wheel
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--wheel-dir", tmp_path, source],
        check=True,
        timeout=250,
    )
    (wheel,) = tmp_path.glob("dsg_sync-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.endswith(".py")}
    modules = {
        path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")
    }
    assert inside == modules

    place = tmp_path / "venv"
    # Its dependencies are those of the environment that runs the tests; DSG itself is only the wheel.
    venv.create(place, with_pip=False, symlinks=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            place / "bin" / "python",
            "install",
            "-qq",
            "--no-deps",
            wheel,
        ],
        check=True,
        timeout=120,
    )
    dependencies = Path(pytest.__file__).resolve().parent.parent
    for command in ("dsg", "dsg-remote-agent"):
        result = subprocess.run(
            [place / "bin" / command, "--version"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(dependencies)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert str(project()["project"]["version"]) in result.stdout  # type: ignore[index]
