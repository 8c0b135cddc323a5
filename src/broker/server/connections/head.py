"""Check the head of a request against RFC 9110 and 9112, which are stricter than the parser."""

import httptools

from broker.errors import ExpectationFailed, MalformedRequest

#: Pairs of a name, in lower case, and a value.
Headers = list[tuple[bytes, bytes]]


def check(version: str, headers: Headers) -> None:
    """Check the HTTP version and the headers of a request.

    Raises:
        MalformedRequest: The version is not 1.0 or 1.1, the header `Host` is missing or repeated, or the body
            has an unknown transfer coding.
        ExpectationFailed: The request expects something other than `100-continue`.
    """
    names = [name for name, _ in headers]
    if version != "1.1" and version != "1.0":
        raise MalformedRequest(f"This service supports HTTP/1.1, not HTTP/{version}.")
    hosts = names.count(b"host")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise MalformedRequest("The request must have exactly one `Host` header.")
    if b"transfer-encoding" in names:
        codings = [value for name, value in headers if name == b"transfer-encoding"]
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise MalformedRequest("The only supported transfer coding is `chunked`.")
    if b"expect" in names and version == "1.1":
        expected = [value.lower() for name, value in headers if name == b"expect"]
        if expected != [b"100-continue"]:
            raise ExpectationFailed


def origin_form(method: bytes, target: bytes, headers: Headers) -> bytes:
    """Return the path and query of a request target like `http://host/path`, or the `*` of OPTIONS.

    The host in the target replaces the one in the headers.

    Raises:
        MalformedRequest: The target is invalid.
    """
    if target == b"*" and method == b"OPTIONS":
        return b"/"
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise MalformedRequest from None
    if url.host is None or url.schema not in (b"http", b"https"):
        raise MalformedRequest
    host = b"[%b]" % url.host if b":" in url.host else url.host
    if url.port is not None:
        host += b":%d" % url.port
    headers[:] = [(name, host if name == b"host" else value) for name, value in headers]
    query = b"?" + url.query if url.query is not None else b""
    return (url.path or b"/") + query
