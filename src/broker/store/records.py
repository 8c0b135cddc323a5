"""Stored JSON: the form of a report and of a late result in the archive.

A record stays readable forever. Responses require all of their fields. So a field that migration 0001 did not
write gets its default here, in a subclass of the response's struct that is used for decoding.
"""

from msgspec.json import Decoder

from broker.schemas.archive import LateResult
from broker.schemas.work import Report

REPORT = Decoder(Report)
LATE_RESULT = Decoder(LateResult)
