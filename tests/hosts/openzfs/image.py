"""The virtual machine's image: built once by ``build.sh``, and kept in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["find_image"]

_HERE = Path(__file__).resolve().parent
_SCRIPTS = ("build.sh", "guest/initrd-init", "guest/init", "guest/power-off")
# Looked up before any test gives itself a home of its own.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsg-openzfs"


def find_image() -> Path:
    """The folder with the image, which is built if need be; several may ask at once.

    It goes by what makes it and by the versions of kernel and ZFS that this
    machine's apt knows. RuntimeError when it cannot be built.
    """
    folder = _CACHE / _key()
    if folder.is_dir():
        return folder
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder  # somebody else built it meanwhile
        aside = folder.with_suffix(".new")
        shutil.rmtree(aside, ignore_errors=True)  # of a build that was broken off
        built = subprocess.run([_HERE / "build.sh", aside], stdin=subprocess.DEVNULL, check=False)
        if built.returncode:
            raise RuntimeError("the image for the tests on OpenZFS could not be built (see above)")
        aside.rename(folder)
    return folder


def _key() -> str:
    digest = hashlib.sha256()
    for name in _SCRIPTS:
        digest.update((_HERE / name).read_bytes())
    for package in ("linux-image-cloud-amd64", "zfs-dkms"):
        digest.update(_candidate(package).encode())
    return digest.hexdigest()[:16]


def _candidate(package: str) -> str:
    """The version that would be installed; '' where apt does not know it, or is not there."""
    try:
        told = subprocess.run(
            ["apt-cache", "policy", package],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        ).stdout
    except FileNotFoundError:
        return ""
    return next((line.split()[1] for line in told.splitlines() if "Candidate:" in line), "")
