"""Examples of all request and response bodies: the life of one task."""

from typing import Any

from broker.schemas import archive, candidates, completion, health, keys, overview, stats, tasks, tools, work
from broker.schemas.values import Nothing

_WORK_ID = "019f2f6c-5d3c-7a10-8c62-9a2c5e6f7a81"
_PAYLOAD = "three small words"
_REGISTERED, _SUBMITTED, _ASSIGNED, _STARTED, _ENDED = (
    f"2026-07-02T09:30:{seconds}.000000Z" for seconds in ("00", "10", "20", "30", "40")
)
_LEASE_ENDS = "2026-07-02T09:31:30.000000Z"

_TIMES = {"assigned_at": _ASSIGNED, "started_at": _STARTED, "ended_at": _ENDED}

_NEW_TASK = {"id": "job-1", "needs": {"can": "count"}, "payload": _PAYLOAD, "priority": 5}
_PAIR = {"task_id": "job-1", "tool_id": "counter"}
_ENDING = {"outcome": "succeeded", "result": {"words": 3}}

_TOOL = {
    "id": "counter",
    "skills": {"can": ["count"]},
    "capacity": 2,
    "load": 0,
    "state": "idle",
    "lease_seconds": 60.0,
    "lease_expires_at": _LEASE_ENDS,
    "registered_at": _REGISTERED,
    "seen_at": _STARTED,
}
_KEY = {"name": "microscope", "roles": ["tool"], "created_at": _REGISTERED}
_TASK = {
    **_NEW_TASK,
    "state": "available",
    "attempt": 0,
    "max_attempts": 3,
    "retry_backoff_seconds": 1.0,
    "timeout_seconds": None,
    "not_before": None,
    "created_at": _SUBMITTED,
    "work_id": None,
    "remark": None,
    "result": None,
    "error": None,
    "ended_at": None,
}
_REPORT = {
    "id": "019f2f6c-7b41-7c02-b7d5-3f0f1d1c2b3a",
    "at": _STARTED,
    "progress": 0.5,
    "message": "half way",
    "data": {"seen": 2},
}
_WORK = {
    "id": _WORK_ID,
    **_PAIR,
    "attempt": 1,
    "state": "running",
    "needs": _TASK["needs"],
    "payload": _PAYLOAD,
    "progress": 0.5,
    "cancel_requested": False,
    "version": 3,
    "assigned_at": _ASSIGNED,
    "started_at": _STARTED,
    "deadline_at": None,
}
_RECORD = {
    "work_id": _WORK_ID,
    **_PAIR,
    "task": {**_TASK, "state": "running", "work_id": _WORK_ID},
    "tool": {**_TOOL, "load": 1},
    "attempt": 1,
    **_ENDING,
    "error": None,
    "late": None,
    "reports": [_REPORT],
    **_TIMES,
}
_NO_MORE = {"next": None}
_NO_OTHER_ENDINGS = {"cancelled": 0, "released": 0, "lost": 0, "timed_out": 0}

# The same needs, skills and work in summaries.
_NEEDS_TEXT = '{"can": "count"}'
_SKILLS_TEXT = '{"can": ["count"]}'
_WORK_SUMMARY = {
    "id": _WORK_ID,
    **_PAIR,
    "attempt": 1,
    "state": "running",
    "progress": 0.5,
    "message": "half way",
    "cancel_requested": False,
    "assigned_at": _ASSIGNED,
    "started_at": _STARTED,
    "deadline_at": None,
}
_TOOL_EVENT = {"id": "counter", "state": "idle", "load": 1, "capacity": 2, "skills": _SKILLS_TEXT}
_ATTEMPT = {"work_id": _WORK_ID, **_PAIR, "attempt": 1, "outcome": "succeeded"}
_BUCKET = {
    "at": "2026-07-02T09:00:00Z",
    "succeeded": 12,
    "failed": 1,
    **_NO_OTHER_ENDINGS,
    "wait_median_seconds": 0.4,
    "wait_p95_seconds": 3.2,
    "run_median_seconds": 41.5,
    "run_p95_seconds": 130.0,
}
_FAILURE = {
    **_ATTEMPT,
    "outcome": "failed",
    "error": "the file is empty",
    "message": "half way",
    "ended_at": _ENDED,
    "late": False,
    "task_state": "scheduled",
}

EXAMPLES: dict[Any, dict[str, Any]] = {
    tools.NewTool: {"id": "counter", "skills": {"can": ["count"]}, "capacity": 2},
    tools.ToolChange: {"draining": True},
    Nothing: {},
    tasks.NewTask: _NEW_TASK,
    tasks.NewTasks: {"items": [_NEW_TASK, {"needs": {"can": "count"}}]},
    tasks.NewRemark: {"text": "no tool can count"},
    tasks.TaskRemarks: {"items": [{"task_id": "job-1", "text": "no tool can count"}]},
    candidates.Pair: _PAIR,
    candidates.Pairs: {"items": [_PAIR]},
    work.NewCancellation: {"requeue": True},
    work.NewReport: {"progress": 0.5, "message": "half way", "data": {"seen": 2}},
    completion.Completion: {**_ENDING, "next_wait_seconds": 30},
    completion.WorkCompletions: {"items": [{"work_id": _WORK_ID, **_ENDING}]},
    tools.ToolStatus: _TOOL,
    tools.RegisteredTool: {**_TOOL, "token": "bt_Y291bnRlcg_1sC0bQ2mXlUqk1Gd7v0vJpVYh3oYcM6rT9wZ5nE8aKs"},
    tools.ToolPage: {"items": [_TOOL], **_NO_MORE},
    keys.NewKey: {"name": "microscope", "roles": ["tool"]},
    keys.CreatedKey: {**_KEY, "key": "bk_3q2-7wXl0nJt5cYb8RfVd1mKpZs6HuGoEaIiTjQxNvM"},
    keys.KeyPage: {"items": [{**_KEY, "last_used_at": _STARTED}], **_NO_MORE},
    tools.Heartbeat: {"lease_expires_at": _LEASE_ENDS, "cancel": [_WORK_ID]},
    tasks.Task: _TASK,
    tasks.TaskPage: {"items": [_TASK], **_NO_MORE},
    tasks.SubmittedTasks: {"items": [{"id": "job-1", "status": "created"}]},
    tasks.Explanation: {
        "state": "available",
        "verdict": "no_tool_available",
        "detail": "No tool has room: all are busy, draining or offline, or there is none.",
        "remark": None,
        "available_tools": 0,
        "assigner_seen_at": _STARTED,
    },
    tasks.RemarkedTasks: {"items": [{"task_id": "job-1", "status": "ok"}]},
    candidates.Candidates: {"cursor": "x7Ac", "tasks": [_TASK], "tools": [_TOOL], "more": False},
    work.Work: _WORK,
    work.WorkPage: {"items": [_WORK], **_NO_MORE},
    work.WorkItems: {"items": [_WORK]},
    work.WorkWithReports: {**_WORK, "reports": [_REPORT], "report_count": 1},
    candidates.AssignedPairs: {"items": [{**_PAIR, "status": "assigned", "work_id": _WORK_ID}]},
    work.Reported: {"id": _REPORT["id"], "cancel_requested": False, "lease_expires_at": _LEASE_ENDS},
    work.ReportPage: {"items": [_REPORT], **_NO_MORE},
    completion.Completed: {"archived": _RECORD, "next": []},
    completion.CompletedBatch: {"items": [{"work_id": _WORK_ID, "status": "archived"}]},
    archive.ArchiveRecord: _RECORD,
    archive.ArchivePage: {"items": [_RECORD], **_NO_MORE},
    overview.TaskEvent: {"id": "job-1", "state": "running", "priority": 5, "attempt": 0},
    overview.ToolEvent: _TOOL_EVENT,
    overview.WorkEvent: _WORK_SUMMARY,
    overview.ArchiveEvent: {**_ATTEMPT, "error": None, **_TIMES},
    overview.Resync: {"of": ["task", "archive"], "why": "Too much has changed at once."},
    health.Alive: {"status": "alive"},
    health.Ready: {
        "status": "ready",
        "checks": {"database": "ok", "schema": "ok", "listener": "ok"},
        "causes": [],
    },
    stats.Stats: {
        "at": _STARTED,
        "tasks": {"scheduled": 0, "available": 3, "assigned": 0, "running": 1, "failed": 0},
        "tools": {"idle": 1, "busy": 0, "draining": 0, "offline": 0, "room": 1},
        "work": {"assigned": 0, "running": 1, "cancel_requested": 0},
        "last_minute": {"submitted": 12, "succeeded": 7, "failed": 1, **_NO_OTHER_ENDINGS},
        "oldest_available_seconds": 7.5,
        "assigner_seen_at": _ASSIGNED,
    },
    overview.ToolSummaryPage: {
        "items": [{**_TOOL_EVENT, "seen_at": _STARTED, "work": [_WORK_SUMMARY]}],
        **_NO_MORE,
    },
    overview.Queue: {
        "at": _ENDED,
        "counted": 3,
        "more": False,
        "kinds": [
            {
                "needs": _NEEDS_TEXT,
                "priority": 5,
                "tasks": 3,
                "oldest_id": "job-2",
                "oldest_at": _SUBMITTED,
                "passed_by": 0,
            }
        ],
        "unasked": [{"id": "sorter", "skills": '{"can": ["sort"]}', "since": "2026-07-02T08:00:00Z"}],
    },
    overview.WaitingTasks: {
        "assigner_seen_at": _STARTED,
        "available_tools": 0,
        "items": [
            {
                "id": "job-2",
                "needs": _NEEDS_TEXT,
                "priority": 5,
                "state": "available",
                "attempt": 0,
                "max_attempts": 3,
                "created_at": _SUBMITTED,
                "verdict": "no_tool_available",
                "detail": "No tool is available. Registered: 1 busy.",
                "remark": None,
            }
        ],
    },
    overview.Timeline: {"complete": True, "items": [{**_ATTEMPT, **_TIMES}]},
    overview.History: {
        "since": "2026-07-02T09:00:00Z",
        "until": "2026-07-02T10:00:00Z",
        "bucket_seconds": 3600.0,
        "complete": True,
        "items": [_BUCKET],
    },
    overview.Failures: {"items": [_FAILURE], **_NO_MORE},
}
