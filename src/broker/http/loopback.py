"""While there are no keys, admit only programs on the service's own machine.

The service then listens on loopback addresses only. Browsers and proxies on the machine can still forward
requests of others; the headers show that.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from broker.errors import Forbidden

_IPV4_HERE = rb"127(?:\.[0-9]{1,3}){3}"
_LOOPBACK = re.compile(rb"(localhost|%b|\[::1\])(:[0-9]+)?" % _IPV4_HERE, re.IGNORECASE)
_HERE = re.compile(rb"(for=)?\"?(%b|\[?::1\]?)(:[0-9]+)?\"?" % _IPV4_HERE, re.IGNORECASE)
# Proxies name their clients in these.
_FORWARDED = (b"x-forwarded-for", b"x-real-ip", b"forwarded")
#: The headers that show where a request comes from.
HEADERS = frozenset((b"host", b"origin", b"sec-fetch-site", *_FORWARDED))
_CACHED = 1_024

_FOR_ITSELF = (
    "There are no keys, so this service is for programs on its own machine, by the name of localhost or"
    " 127.0.0.1, and for no page from elsewhere. To open it to others, make keys: `broker keys create`."
)


def refuse_others(headers: Mapping[bytes, bytes]) -> None:
    """Check that a request comes from this machine, as far as its headers show.

    Raises:
        Forbidden: It does not.
    """
    _refuse_foreign_pages(headers.get(b"host"), headers.get(b"origin"), headers.get(b"sec-fetch-site"))
    for name in _FORWARDED:
        if name in headers:
            _refuse_forwarded(headers[name])


@lru_cache(_CACHED)
def _refuse_foreign_pages(host: bytes | None, origin: bytes | None, site: bytes | None) -> None:
    """Refuse requests of pages from elsewhere, and hosts that may point here by DNS rebinding."""
    host = host or b"localhost"
    is_ours = site in (None, b"none", b"same-origin") and origin in (None, b"http://" + host)
    if not (is_ours and _LOOPBACK.fullmatch(host)):
        raise Forbidden(_FOR_ITSELF)


@lru_cache(_CACHED)
def _refuse_forwarded(forwarded: bytes) -> None:
    """Refuse requests that a proxy on this machine forwards from another machine, or an unknown one."""
    if not all(_HERE.fullmatch(address.strip()) for address in forwarded.split(b",")):
        raise Forbidden(_FOR_ITSELF)
