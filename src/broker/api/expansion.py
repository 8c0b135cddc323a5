"""Numbers with an exponent, which PostgreSQL returns written out: `1e99` becomes a hundred digits."""

import re

# A string, or the exponent of a number.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[eE][+-]?(?P<exponent>[0-9]++)', re.DOTALL)
# Exponents of more digits are bounded by the digits that they stand for in all, see `limits`.
_LARGEST_EXPONENT = 99


def expands_beyond(value: bytes, limit: int) -> bool:
    """Return whether the numbers of a JSON value grow by more than `limit` bytes when written out."""
    if (value.count(b"e") + value.count(b"E")) * _LARGEST_EXPONENT <= limit:
        return False
    grown = 0
    for found in _TOKEN.finditer(value):
        if exponent := found["exponent"]:
            grown += min(int(exponent), _LARGEST_EXPONENT)
            if grown > limit:
                return True
    return False
