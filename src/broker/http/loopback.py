"""Accept only requests of programs on the service's own machine while no keys exist.

The service then listens on loopback addresses only. But a browser on this machine can send requests of web
pages, and a proxy can forward requests of other machines. The headers of such requests show it.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from broker.errors import Forbidden

_IPV4_HERE = rb"127(?:\.[0-9]{1,3}){3}"
_LOOPBACK = re.compile(rb"(localhost|%b|\[::1\])(:[0-9]+)?" % _IPV4_HERE, re.IGNORECASE)
_HERE = re.compile(rb"(for=)?\"?(%b|\[?::1\]?)(:[0-9]+)?\"?" % _IPV4_HERE, re.IGNORECASE)
# Proxies name their clients in these headers.
_FORWARDED = (b"x-forwarded-for", b"x-real-ip", b"forwarded")
#: The headers that show where a request comes from.
HEADERS = frozenset((b"host", b"origin", b"sec-fetch-site", *_FORWARDED))
_CACHED = 1_024

_LOCAL_ONLY = (
    "This service has no keys. So it accepts requests only from its own machine, to localhost or 127.0.0.1."
    " It refuses requests from other web sites, and requests that a proxy forwards from other machines. To"
    " accept other clients, create keys with `broker keys create`. See /help/operate/keys/."
)


def refuse_others(headers: Mapping[bytes, bytes]) -> None:
    """Check in the headers that a request comes from this machine.

    Raises:
        Forbidden: The headers show another origin.
    """
    _refuse_foreign_pages(headers.get(b"host"), headers.get(b"origin"), headers.get(b"sec-fetch-site"))
    for name in _FORWARDED:
        if name in headers:
            _refuse_forwarded(headers[name])


@lru_cache(_CACHED)
def _refuse_foreign_pages(host: bytes | None, origin: bytes | None, site: bytes | None) -> None:
    """Refuse requests of other web pages, and host names that DNS rebinding may point to this machine."""
    host = host or b"localhost"
    is_ours = site in (None, b"none", b"same-origin") and origin in (None, b"http://" + host)
    if not (is_ours and _LOOPBACK.fullmatch(host)):
        raise Forbidden(_LOCAL_ONLY)


@lru_cache(_CACHED)
def _refuse_forwarded(forwarded: bytes) -> None:
    """Refuse requests that a local proxy forwards from another or an unknown machine."""
    if not all(_HERE.fullmatch(address.strip()) for address in forwarded.split(b",")):
        raise Forbidden(_LOCAL_ONLY)
