"""The limits of the HTTP contract: durations, counts and sizes."""

#: The longest time that a request may wait (`?wait=`, `next_wait_seconds`), in seconds.
LONGEST_WAIT_SECONDS = 60
#: Maximum number of reports returned with work (`GET /v1/work/{work_id}`).
MOST_LATEST_REPORTS = 1_000
#: Maximum number of items on a page of a list (`?limit=`).
MOST_ON_PAGE = 1_000
#: Maximum number of tasks, pairs or remarks in one request.
MOST_IN_BATCH = 10_000
#: Maximum number of completions in one request.
MOST_COMPLETIONS = 1_000
#: Maximum length of a text (`error`, `message`, remarks) in characters, unless configured otherwise.
LONGEST_TEXT_CHARS = 10_000
#: Maximum nesting depth of a JSON value, unless configured otherwise. The value itself counts.
DEEPEST_NESTING = 200
#: Maximum size of `needs` or `skills` in bytes, unless configured otherwise.
LARGEST_MATCH_BYTES = 64 * 1024
#: Maximum size of a request body in bytes, unless configured otherwise.
LARGEST_BODY_BYTES = 32 * 1024 * 1024
#: Maximum capacity of a tool.
MOST_CAPACITY = 10_000
#: Maximum value of `max_attempts`.
MOST_ATTEMPTS = 1_000
#: The lease of a tool that is registered without `lease_seconds`.
DEFAULT_LEASE_SECONDS = 60
#: An assigner counts as absent if it has not asked for candidates for this long.
ASSIGNER_ABSENT_SECONDS = 60
