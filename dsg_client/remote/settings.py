"""How a connection is to be made: what the configuration, the options and the terminal say."""

from __future__ import annotations

from dsg_client.remote.ask import Ask
from protocol.value import Value

__all__ = ["LinkSettings"]


class LinkSettings(Value):
    """Settings of one connection.

    ``transport``: ``asyncssh``, or ``openssh`` for the system's ``ssh``.
    ``agent_command``: the command that starts the agent on the server, '' for
    a search of its PATH. ``accept_new_host_key``: write the key of a host
    that is not known yet to known_hosts. ``ask``: asks the user, None where
    nobody is there. ``again``: the command line that the user gave, for the
    advice to repeat it with another option. ``agent_options``: for an agent
    on this machine. ``connect_limit``: seconds until the sign-in is through,
    not counting those in which the user is asked.
    """

    transport: str = "asyncssh"
    agent_command: str = ""
    accept_new_host_key: bool = False
    ask: Ask | None = None
    again: str = "dsg sync"
    agent_options: tuple[str, ...] = ()
    connect_limit: float = 30.0
    start_limit: float = 10.0
