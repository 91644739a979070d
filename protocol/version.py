"""The version of this distribution; pyproject.toml says the same, and a test holds them together.

A constant, because asking an installed distribution for its metadata costs
every command 30 ms.
"""

VERSION = "0.1.0"
