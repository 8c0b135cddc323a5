"""Stored records: the JSON of a task, a tool, a report and a late result in the archive.

A record stays readable forever. Responses require all of their fields. So a field that migration 0001 did not
write gets its default here, in a subclass of the response's struct that is used for decoding.
"""

from msgspec.json import Decoder

from broker.schemas.archive import LateResult
from broker.schemas.tasks import Task
from broker.schemas.tools import ToolStatus
from broker.schemas.work import Report

TASK = Decoder(Task)
TOOL = Decoder(ToolStatus)
REPORT = Decoder(Report)
LATE_RESULT = Decoder(LateResult)
