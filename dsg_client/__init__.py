"""The command ``dsg``: what runs on the machine of the user."""

from __future__ import annotations

# The same as in pyproject.toml (a test holds them together); reading the metadata of an installed
# distribution takes 20 ms.
VERSION = "0.1.0"
