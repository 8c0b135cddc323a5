"""The numbers of the HTTP contract: how long, how many and how large. Each stands here only."""

#: The longest time that a request may wait (`?wait=`, `next_wait_seconds`), in seconds.
LONGEST_WAIT_SECONDS = 60
#: The most reports that come with work (`GET /v1/work/{work_id}`).
MOST_LATEST_REPORTS = 1_000
#: The most items on a page of a list (`?limit=`).
MOST_ON_PAGE = 1_000
#: The most tasks, pairs or remarks in one request.
MOST_IN_BATCH = 10_000
#: The most completions in one request.
MOST_COMPLETIONS = 1_000
#: The longest text (`error`, `message`, remarks) in characters, unless the service is configured otherwise.
LONGEST_TEXT_CHARS = 10_000
#: How deep a JSON value may nest, unless the service is configured otherwise. The value itself counts.
DEEPEST_NESTING = 200
#: The largest `needs` or `skills` in bytes, unless the service is configured otherwise.
LARGEST_MATCH_BYTES = 64 * 1024
#: The largest request body in bytes, unless the service is configured otherwise.
LARGEST_BODY_BYTES = 32 * 1024 * 1024
#: The most work that a tool may have at once.
MOST_CAPACITY = 10_000
#: The most attempts that a task may ask for.
MOST_ATTEMPTS = 1_000
#: The lease of a tool that names none, in seconds.
DEFAULT_LEASE_SECONDS = 60
#: An assigner that has not asked for this long, in seconds, counts as absent.
ASSIGNER_ABSENT_SECONDS = 60
