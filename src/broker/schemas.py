"""Every request and response of the HTTP API, for the server and its clients alike.

What the broker never looks inside (needs, skills, payload, data, result) is `JSON`: the text as it came,
checked to be JSON and otherwise untouched, so that `1.10` and a 30-digit integer come back as they were.
Requests refuse fields they do not know; answers may grow new ones, so the classes for them do not.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field
from msgspec.json import decode

JSON = Annotated[Raw, Meta(description="Any JSON value; it comes back equal.")]
NULL = Raw(b"null")
# A factory, for what describes the API hashes plain defaults, and a Raw has no hash.
_NULL = field(default_factory=lambda: NULL)

# The lookahead refuses the newline at the end that Python's `$` lets through.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._~:-]{0,127}(?!\n)$"

Id = Annotated[
    str,
    Meta(
        pattern=ID_PATTERN,
        description="1 to 128 characters of A-Z a-z 0-9 . _ ~ : - beginning with a letter or digit.",
        examples=["xrd-1"],
    ),
]
Time = Annotated[datetime, Meta(tz=True, description="RFC 3339, with an offset.")]
Moment = Annotated[datetime, Meta(tz=True)]
LeaseEnd = Annotated[
    datetime, Meta(tz=True, description="The tool is offline if it is not heard of by then.")
]
Next = Annotated[
    str | None,
    Meta(
        description="Goes into `?after=`; null at the end. A page may have fewer items than `limit`, or none,"
        " and still have a next one."
    ),
]
Text = Annotated[str, Meta(description="Up to 10,000 characters, unless the service is set otherwise.")]
CancelRequested = Annotated[bool, Meta(description="Whether the tool is asked to stop.")]
AttemptsSoFar = Annotated[int, Meta(description="How many attempts have counted so far.")]
Attempt = Annotated[int, Meta(description="Which attempt at the task it is; the first is 1.")]
LastWord = Annotated[str | None, Meta(description="The assigner's word on why the task still waits.")]
Priority = Annotated[int, Meta(ge=-32768, le=32767, description="Higher is offered first.")]
Capacity = Annotated[int, Meta(ge=1, le=10_000, description="How much work the tool takes at once.")]
MaxAttempts = Annotated[int, Meta(ge=1, le=1_000, description="So many attempts; then the task has failed.")]
Draining = Annotated[bool, Meta(description="It finishes what it has, and gets no more.")]
LeaseSeconds = Annotated[float, Meta(ge=5, le=86_400, description="Silent for longer, a tool is offline.")]
TimeoutSeconds = Annotated[float, Meta(gt=0, le=31_536_000, description="The longest an attempt may run.")]
BackoffSeconds = Annotated[float, Meta(ge=0, le=86_400, description="The wait before the second attempt.")]
Progress = Annotated[float, Meta(ge=0, le=1, description="How much of it is done: 0 to 1.")]
Retry = Annotated[bool, Meta(description="Whether a failed task may be tried again.")]
NextWaitSeconds = Annotated[
    float, Meta(ge=0, le=60, description="Wait this long, in the same call, for this tool's next work.")
]

ToolState = Literal["idle", "busy", "draining", "offline"]
TaskState = Literal["scheduled", "available", "assigned", "running", "failed", "succeeded", "cancelled"]
LiveTaskState = Literal["scheduled", "available", "assigned", "running", "failed"]
WorkState = Literal["assigned", "running"]
ChosenOutcome = Literal["succeeded", "failed", "cancelled", "released"]
Outcome = Literal["succeeded", "failed", "cancelled", "released", "lost", "timed_out"]
AnyWorkState = Literal[
    "assigned", "running", "succeeded", "failed", "cancelled", "released", "lost", "timed_out"
]


class Request(Struct, forbid_unknown_fields=True):
    """What a client sends: an unknown field is an error, never ignored."""


class Nothing(Request, kw_only=True):
    """A request that says all in its path."""


# Tools


class NewTool(Request, kw_only=True):
    """A tool that registers."""

    skills: JSON
    id: Id | None = None
    capacity: Capacity = 1
    lease_seconds: LeaseSeconds = 60.0
    resume: Annotated[bool, Meta(description="It goes on with what its last run had started.")] = False


class ToolChange(Request, kw_only=True):
    """What may be changed of a tool; what is left out stays."""

    skills: JSON | UnsetType = UNSET
    capacity: Capacity | UnsetType = UNSET
    lease_seconds: LeaseSeconds | UnsetType = UNSET
    draining: Draining | UnsetType = UNSET


class Tool(Struct, kw_only=True):
    """A program, an instrument, a machine: anything that does work."""

    id: str
    skills: JSON
    capacity: int
    load: Annotated[int, Meta(description="How much work it has.")]
    state: ToolState
    lease_seconds: float
    lease_expires_at: LeaseEnd
    registered_at: Moment
    seen_at: Moment


class RegisteredTool(Tool, kw_only=True):
    """A tool, with the token that is shown this once."""

    token: Annotated[
        str, Meta(description="For the calls that the tool makes itself; it is shown this once.")
    ]


class Heartbeat(Struct, kw_only=True):
    """Until when the tool's lease runs, and which of its work should stop."""

    lease_expires_at: LeaseEnd
    cancel: Annotated[list[UUID], Meta(description="The work that should stop.")]


class ToolPage(Struct, kw_only=True):
    """Some of the tools; `next` goes into `?after=`, null at the end."""

    items: list[Tool]
    next: Next


# Tasks


class NewTask(Request, kw_only=True):
    """Something that needs doing."""

    needs: JSON
    id: Id | None = None
    payload: JSON = _NULL
    priority: Priority = 0
    not_before: Time | None = None
    timeout_seconds: TimeoutSeconds | None = None
    max_attempts: MaxAttempts = 3
    retry_backoff_seconds: BackoffSeconds = 1.0


class NewTasks(Request, kw_only=True):
    """Many tasks in one call: all of them are written, or none."""

    items: Annotated[list[NewTask], Meta(min_length=1, max_length=10_000)]


class Task(Struct, kw_only=True):
    """A task, live or ended."""

    id: str
    needs: JSON
    payload: JSON
    priority: int
    state: TaskState
    attempt: AttemptsSoFar
    max_attempts: int
    retry_backoff_seconds: float
    timeout_seconds: float | None
    not_before: Moment | None
    created_at: Moment
    work_id: Annotated[UUID | None, Meta(description="The work under way.")]
    remark: LastWord
    result: JSON
    error: str | None
    ended_at: Annotated[Moment | None, Meta(description="When it ended, or failed for good.")]


class TaskPage(Struct, kw_only=True):
    """Some of the live tasks; `next` goes into `?after=`, null at the end."""

    items: list[Task]
    next: Next


class SubmittedTask(Struct, kw_only=True):
    """What became of one task of a batch."""

    id: str
    status: Literal["created", "exists"]


class SubmittedTasks(Struct, kw_only=True):
    """What became of each task of a batch, in its order."""

    items: list[SubmittedTask]


Verdict = Literal[
    "ended",
    "failed",
    "running",
    "assigned",
    "not_before_its_time",
    "backing_off",
    "no_assigner",
    "refused_by_assigner",
    "no_tool_available",
    "waiting_for_assigner",
]


class Explanation(Struct, kw_only=True):
    """Why a task has not run yet: a word for programs, and a sentence for people."""

    state: TaskState
    verdict: Annotated[Verdict, Meta(description="Why it has not run yet, in a word.")]
    detail: str
    remark: LastWord
    available_tools: int
    assigner_seen_at: Annotated[Moment | None, Meta(description="When an assigner last asked.")]


class NewRemark(Request, kw_only=True):
    """The assigner's word on why a task still waits."""

    text: Text


class TaskRemark(Request, kw_only=True):
    """A remark, and the task it is about."""

    task_id: Id
    text: Text


class TaskRemarks(Request, kw_only=True):
    """Many remarks in one call."""

    items: Annotated[list[TaskRemark], Meta(min_length=1, max_length=10_000)]


class Remarked(Struct, kw_only=True):
    """What became of one remark."""

    task_id: str
    status: Literal["ok", "task_not_found"]


class RemarkedTasks(Struct, kw_only=True):
    """What became of each remark, in their order."""

    items: list[Remarked]


# The assigner


class Candidates(Struct, kw_only=True):
    """Tasks and tools that are available, and the cursor to go on from."""

    cursor: Annotated[str, Meta(description="Goes into `?cursor=`: then only what is new since is answered.")]
    tasks: list[Task]
    tools: list[Tool]
    more: Annotated[bool, Meta(description="Whether there is more to be had at once.")]


class Pair(Request, kw_only=True):
    """A task, and the tool that shall do it."""

    task_id: Id
    tool_id: Id


class Pairs(Request, kw_only=True):
    """Many pairs in one call, each for itself."""

    items: Annotated[list[Pair], Meta(min_length=1, max_length=10_000)]


PairStatus = Literal[
    "assigned", "exists", "task_unavailable", "tool_unavailable", "task_not_found", "tool_not_found"
]


class AssignedPair(Struct, kw_only=True):
    """What became of one pair."""

    task_id: str
    tool_id: str
    status: PairStatus
    work_id: Annotated[UUID | None, Meta(description="The work, where there is one.")]


class AssignedPairs(Struct, kw_only=True):
    """What became of each pair, in their order."""

    items: list[AssignedPair]


# Work


class Work(Struct, kw_only=True):
    """One attempt of one tool at one task; its id is the fencing token."""

    id: UUID
    task_id: str
    tool_id: str
    attempt: Attempt
    state: AnyWorkState
    needs: JSON
    payload: JSON
    progress: float | None
    cancel_requested: CancelRequested
    version: Annotated[int, Meta(description="Grows with every change.")]
    assigned_at: Moment
    started_at: Moment | None
    deadline_at: Annotated[
        Moment | None, Meta(description="It ends by then if it is not started, or not ended.")
    ]


class NewReport(Request, kw_only=True):
    """How far the work is, in a number, in words, in data."""

    id: Annotated[UUID | None, Meta(description="Makes it safe to send the report again.")] = None
    progress: Progress | None = None
    message: Text | None = None
    data: JSON = _NULL


class Report(Struct, kw_only=True):
    """A report as it was taken."""

    id: UUID
    at: Moment
    progress: float | None
    message: str | None
    data: JSON


class ReportPage(Struct, kw_only=True):
    """Some of a work's reports, in order; `next` goes into `?after=`, null at the end."""

    items: list[Report]
    next: Next


class Reported(Struct, kw_only=True):
    """The answer to a report: whether the work should stop, and until when the lease runs."""

    id: UUID
    cancel_requested: CancelRequested
    lease_expires_at: LeaseEnd


class WorkWithReports(Work, kw_only=True):
    """Work with its latest reports; all of them have a list of their own."""

    reports: Annotated[
        Sequence[Report],
        Meta(description="The latest 1,000, the oldest first; fewer if they are larger than 8 MiB."),
    ]
    report_count: Annotated[int, Meta(description="How many reports there are.")]


class WorkStatus(Struct, kw_only=True):
    """What a watcher needs to know of work: `Prefer: return=minimal` asks for no more."""

    state: AnyWorkState
    cancel_requested: CancelRequested
    version: Annotated[int, Meta(description="Grows with every change.")]


class WorkPage(Struct, kw_only=True):
    """Some of the work under way; `next` goes into `?after=`, null at the end."""

    items: list[Work]
    next: Next


class WorkItems(Struct, kw_only=True):
    """The work that waits for a tool to start it."""

    items: list[Work]


class NewCancellation(Request, kw_only=True):
    """How work is to be cancelled: with its task, or so that the task goes back."""

    requeue: Annotated[bool, Meta(description="The task goes back, for another tool.")] = False


class Completion(Request, kw_only=True):
    """How the work ended."""

    outcome: ChosenOutcome
    result: JSON = _NULL
    error: Text | None = None
    retry: Retry = True
    next_wait_seconds: NextWaitSeconds = 0.0


class WorkCompletion(Request, kw_only=True):
    """How one piece of work of a batch ended."""

    work_id: UUID
    outcome: ChosenOutcome
    result: JSON = _NULL
    error: Text | None = None
    retry: Retry = True


class WorkCompletions(Request, kw_only=True):
    """How many pieces of work ended, each for itself."""

    items: Annotated[list[WorkCompletion], Meta(min_length=1, max_length=1_000)]


class LateResult(Struct, kw_only=True):
    """What a tool said after its work had ended without it."""

    outcome: str
    result: JSON
    error: str | None
    at: Moment


class ArchiveRecord(Struct, kw_only=True):
    """The whole story of one attempt."""

    work_id: UUID
    task_id: str
    tool_id: str | None
    task: Task
    tool: Tool | None
    attempt: Attempt
    outcome: Outcome
    result: JSON
    error: str | None
    late: Annotated[LateResult | None, Meta(description="What came after it had ended otherwise.")]
    reports: list[Report]
    assigned_at: Moment | None
    started_at: Moment | None
    ended_at: Moment


class ArchivePage(Struct, kw_only=True):
    """Some of the archive, newest first; `next` goes into `?after=`, null at the end."""

    items: list[ArchiveRecord]
    next: Next


class Completed(Struct, kw_only=True):
    """The record that went to the archive, and the tool's next work where it asked to wait for it."""

    archived: ArchiveRecord
    next: Annotated[list[Work], Meta(description="The work that its tool has not started.")]


CompletedStatus = Literal["archived", "exists", "work_ended", "work_not_found", "forbidden"]


class CompletedWork(Struct, kw_only=True):
    """What became of one completion of a batch."""

    work_id: UUID
    status: CompletedStatus


class CompletedBatch(Struct, kw_only=True):
    """What became of each completion, in their order."""

    items: list[CompletedWork]


# Keys


#: The first characters of each key.
KEY_PREFIX = "bk_"

Role = Literal["submitter", "tool", "assigner", "operator", "admin"]
KeyName = Annotated[Id, Meta(description="What the key submits and registers belongs to this name.")]


class NewKey(Request, kw_only=True):
    """A key to make: its name, and what it may do."""

    name: KeyName
    roles: Annotated[list[Role], Meta(min_length=1, max_length=100)]
    replace: Annotated[
        bool, Meta(description="Revoke the key that has the name; the new one gets what belongs to the name.")
    ] = False


class Key(Struct, kw_only=True):
    """A key in use; the key itself is shown only once, when it is made."""

    name: str
    roles: list[Role]
    created_at: Moment
    last_used_at: Annotated[
        Moment | None, Meta(description="To about ten seconds; null if it was never used.")
    ]


class MadeKey(Struct, kw_only=True):
    """A key that was made just now, with the key itself."""

    name: str
    roles: list[Role]
    created_at: Moment
    key: Annotated[str, Meta(description="Keep it: it is shown only here.")]


class KeyPage(Struct, kw_only=True):
    """Some of the keys in use; `next` goes into `?after=`, null at the end."""

    items: list[Key]
    next: Next


# The rest


class FieldError(Struct, kw_only=True):
    """One field that was refused, and why."""

    field: Annotated[str, Meta(description="Its name, in a batch like `items[13].needs`.")]
    message: str


#: Every code that a problem of the broker may have: a client knows the broker's problems by them.
ERROR_CODES = frozenset(
    {
        "validation_failed",
        "malformed_json",
        "malformed_request",
        "not_found",
        "method_not_allowed",
        "request_timeout",
        "task_not_found",
        "tool_not_found",
        "work_not_found",
        "conflict",
        "task_unavailable",
        "tool_unavailable",
        "tool_busy",
        "work_ended",
        "task_ended",
        "key_exists",
        "key_not_found",
        "nothing_to_accept",
        "cursor_expired",
        "payload_too_large",
        "unsupported_media_type",
        "headers_too_large",
        "unauthenticated",
        "forbidden",
        "too_many_requests",
        "unavailable",
        "internal",
    }
)


class Problem(Struct, kw_only=True, omit_defaults=True):
    """An error, as RFC 9457 has it, with a stable word for programs in `code`."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: Annotated[str, Meta(description="A stable word for programs.")]
    errors: list[FieldError] | UnsetType = UNSET
    outcome: Annotated[str, Meta(description="With `work_ended`: how it ended.")] | UnsetType = UNSET


class Alive(Struct, kw_only=True):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(Struct, kw_only=True):
    """Whether the service can do its job; where not, the check that failed says why."""

    status: Literal["ready", "unready"]
    checks: Annotated[dict[str, str], Meta(description="`ok`, or what is wrong.")]
    causes: Annotated[
        list[str],
        Meta(description="Errors that PostgreSQL reported lately; one request alone can cause some of them."),
    ] = []


class TaskCounts(Struct, kw_only=True):
    """How many live tasks there are, by their state."""

    scheduled: int
    available: int
    assigned: int
    running: int
    failed: int


class ToolCounts(Struct, kw_only=True):
    """How many tools there are, by their state."""

    idle: int
    busy: int
    draining: int
    offline: int
    room: Annotated[int, Meta(description="How much more work they could be given now.")]


class WorkCounts(Struct, kw_only=True):
    """How much work is under way, by its state."""

    assigned: int
    running: int
    cancel_requested: Annotated[int, Meta(description="How much of it is asked to stop.")]


class LastMinute(Struct, kw_only=True):
    """Rates per minute: the tasks that came in the last one, and the attempts that ended, by outcome."""

    submitted: int
    succeeded: int
    failed: int
    cancelled: int
    released: int
    lost: int
    timed_out: int


class Stats(Struct, kw_only=True):
    """How many of everything there are, all at one moment, and what has happened in the minute before."""

    at: Moment
    tasks: TaskCounts
    tools: ToolCounts
    work: WorkCounts
    last_minute: LastMinute
    oldest_available_seconds: Annotated[
        float | None, Meta(description="How long ago the oldest available task was submitted.")
    ]
    assigner_seen_at: Annotated[Moment | None, Meta(description="When an assigner last asked.")]


def plain(value: JSON) -> Any:
    """The Python value of a JSON text that was passed through."""
    return decode(value)
