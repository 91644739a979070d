"""``python -m tests.hosts.openzfs``: make the machine's image and saved state; what they hold."""

from __future__ import annotations

import sys

from tests.hosts.openzfs.image import find_image
from tests.hosts.openzfs.machine import find_state

if __name__ == "__main__":
    try:
        folder = find_image()
    except RuntimeError as error:
        sys.exit(str(error))
    find_state(folder)
    print(f"{folder}\n{(folder / 'VERSIONS').read_text()}", end="")
