"""What the client and the agent of DSG share; no network, no terminal.

PyPI has an unrelated project that installs the same top-level name: both
entry points check :data:`SENTINEL` before they use anything from here.
"""

SENTINEL = "dsg-sync protocol"
