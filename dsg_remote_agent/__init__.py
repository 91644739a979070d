"""The agent: what runs on the server, one process for each client."""

from __future__ import annotations

# The same as in pyproject.toml (a test holds them together): the metadata of an installed
# distribution takes longer to read than all else that stands before the preamble.
VERSION = "0.1.0"
