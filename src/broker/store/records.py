"""Stored records: the JSON in which the archive keeps a task, a tool, a report and a late result.

A record stays readable forever. Responses require each of their fields, so a field that migration 0001 did
not write gets its default here: in a subclass of the response's struct, which is then what is decoded.
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
