# SPDX-License-Identifier: Apache-2.0
"""HTTP to public addresses only.

A client names the URL that this server fetches. It must not reach through the server
what it could not reach itself: the machine's own ports, its private network, the
metadata service of a cloud (169.254.169.254). Names are not enough to tell: one may
resolve to any address, another one at the next look, and a public server may redirect.
So the addresses are checked that a connection is about to be made to.
"""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import aiohttp
from vllm.connections import HTTPConnection

_NAT64 = IPv6Network("64:ff9b::/96")
_PORTS = {"http": 80, "https": 443}


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet, and of a single host.

    IPv6 addresses that stand for an IPv4 one (mapped, 6to4, NAT64) are as that one.
    """
    try:
        found: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _NAT64:
            inner = IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    return found.is_global and not found.is_multicast


class PublicConnector(aiohttp.TCPConnector):
    """Connects to public addresses, and to trusted hosts wherever they are.

    A proxy of the environment (``HTTP_PROXY``) is trusted at its port: it resolves
    names itself, and what it may reach is its own affair.

    Args:
        trusted: host names.
    """

    def __init__(self, trusted: Collection[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trusted = {host.lower() for host in trusted}
        self._proxies = _proxies()

    # Where aiohttp turns the host of every connection, redirects included, literal
    # addresses too, into the addresses that it then connects to.
    async def _resolve_host(
        self, host: str, port: int, traces: Any = None
    ) -> list[Any]:
        found = await super()._resolve_host(host, port, traces=traces)
        if host.lower() in self._trusted or (host, port) in self._proxies:
            return found
        public = [address for address in found if is_public(address["host"])]
        if not public:
            # As where a name is not found, so that neither error nor time tells more.
            raise OSError(f"{host} has no public address")
        return public


class PublicConnection(HTTPConnection):
    """vLLM's HTTP client for a server's media, on a :class:`PublicConnector`.

    What runs in the user's own process, ``LLM``, fetches without ``async`` and is
    not restricted.

    Args:
        trusted: host names that may have any address.
    """

    def __init__(self, trusted: Collection[str]) -> None:
        super().__init__()
        self._trusted = trusted

    async def get_async_client(self) -> aiohttp.ClientSession:
        if self._async_client is None:
            self._async_client = aiohttp.ClientSession(
                connector=PublicConnector(self._trusted),
                # One client's URLs set no cookies for another's.
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=True,
            )
        return self._async_client


def _proxies() -> set[tuple[str, int]]:
    """(host, port) of the environment's proxies."""
    found = set()
    for url in getproxies().values():
        parts = urlsplit(url)
        if parts.hostname:
            found.add((parts.hostname, parts.port or _PORTS.get(parts.scheme, 80)))
    return found
