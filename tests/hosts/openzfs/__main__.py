"""``python -m tests.hosts.openzfs``: make the machine's image unless it is there; what it holds."""

from __future__ import annotations

import sys

from tests.hosts.openzfs.image import find_image

if __name__ == "__main__":
    try:
        folder = find_image()
    except RuntimeError as error:
        sys.exit(str(error))
    print(f"{folder}\n{(folder / 'VERSIONS').read_text()}", end="")
