"""What is an address, what is refused, and with which advice."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsg_client.remote.address import RemoteAddress, parse_address
from protocol.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server:/srv/data", RemoteAddress("/srv/data", "server")),
        ("ann@server:/srv/data/", RemoteAddress("/srv/data", "server", "ann")),
        ("ann@corp.example@server:/d", RemoteAddress("/d", "server", "ann@corp.example")),
        ("[2001:db8::1]:/d", RemoteAddress("/d", "2001:db8::1")),
        ("ann@[fe80::1%eth0]:/d", RemoteAddress("/d", "fe80::1%eth0", "ann")),
        ("192.0.2.7:/d", RemoteAddress("/d", "192.0.2.7")),
        ("server:/with space/and:colon", RemoteAddress("/with space/and:colon", "server")),
        ("server://double//slash", RemoteAddress("/double/slash", "server")),
        ("u@h:/one-letter", RemoteAddress("/one-letter", "h", "u")),
        ("/here/it is", RemoteAddress("/here/it is")),
        ("server:zfs:tank/dsg/x", RemoteAddress("zfs:tank/dsg/x", "server")),
        ("zfs:tank/dsg/x", RemoteAddress("zfs:tank/dsg/x")),
        ("./a:b", RemoteAddress("/base/a:b")),
        ("../up", RemoteAddress("/up")),
        ("plain", RemoteAddress("/base/plain")),
    ],
)
def test_an_address_is_read(text: str, expected: RemoteAddress) -> None:
    assert parse_address(text, folder="/base") == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "why", "hint"),
    [
        ("", "empty", "host:/path"),
        ("-oProxyCommand=x:/d", "begins with '-'", "option"),
        ("-u@host:/d", "user begins with '-'", "option"),
        ("ann@-host:/d", "host begins with '-'", "option"),
        ("-folder", "begins with '-'", "./-folder"),
        ("C:\\data", "Windows", "Unix"),
        ("c:/data", "Windows", "user@h:/path"),
        ("\\\\server\\share", "Windows", "Unix"),
        ("ssh://server/data", "URL", "host:/path"),
        ("server:zfs:tank", "pool", "zfs:tank/dsg/survey"),
        ("zfs:", "no name of a ZFS dataset", "zfs:tank/dsg/survey"),
        ("zfs:/tank/x", "does not begin with '/'", "zfs:tank/dsg/survey"),
        ("server:zfs:tank/../x", "no name of a ZFS dataset", "zfs:tank/dsg/survey"),
        ("server:zfs:tank/x@s1", "no name of a ZFS dataset", "zfs:tank/dsg/survey"),
        ("server:zfs:tank/-r", "no name of a ZFS dataset", "zfs:tank/dsg/survey"),
        ("server:data", "not absolute", "server:/home/you/data"),
        ("server:~/data", "not absolute", "server:/home/you/data"),
        ("server:", "not absolute", "/srv/data"),
        ("server:2222:/data", "port", "~/.ssh/config"),
        ("server:2222/data", "port", "~/.ssh/config"),
        ("fe80::1:/data", "IPv6", "brackets"),
        ("[nonsense]:/data", "IPv6", "[::1]"),
        ("@server:/d", "user is empty", "host:/path"),
        ("ann@:/d", "host is empty", "host:/path"),
        ("ser ver:/d", "' '", "host:/path"),
        ("$(id):/d", "has", "host:/path"),
        ("server:/a\nb", "control", "without"),
        ("server:/a/../b", "'..'", "without"),
        ("server:/", "root", "/srv/data"),
        ("/", "root", "/srv/data"),
    ],
)
def test_what_is_not_an_address_is_refused_with_advice(text: str, why: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text, folder="/base")
    assert why in caught.value.message
    assert hint in caught.value.hint


@given(st.text(max_size=60))
def test_whatever_is_parsed_is_safe_and_reads_back(text: str) -> None:
    try:
        address = parse_address(text, folder="/base")
    except UsageError as error:
        assert error.message.isprintable() or not error.message.isascii()
        assert "\x1b" not in error.message
        return
    if address.path.startswith("zfs:"):
        assert set(address.path) <= set(string.ascii_letters + string.digits + "/_.:-")
    else:
        assert address.path.startswith("/")
    assert "/../" not in address.path + "/"
    for name in (address.host, address.user):
        assert name is None or (name and not name.startswith("-") and not any(c.isspace() for c in name))
    assert parse_address(str(address), folder="/elsewhere") == address
