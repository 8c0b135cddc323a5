-- The ids of work, reports and archive records, and of tasks and tools for which the client sent no id. A
-- version 7 UUID (RFC 9562) begins with 48 bits of milliseconds, so rows created together are adjacent in an
-- index. The rest is random.

-- Return a new version 7 UUID. PostgreSQL has such a function since version 18.
create function uuid7() returns uuid language sql volatile parallel safe as $$
    select cast(lpad(to_hex(cast(floor(extract(epoch from clock_timestamp()) * 1000) as bigint)), 12, '0')
        || '7' || substr(replace(cast(gen_random_uuid() as text), '-', ''), 14) as uuid)
$$;

-- Return the smallest version 7 UUID of a time. The partitions of the archive begin and end at such ids.
create function uuid7_floor(at timestamptz) returns uuid language sql immutable parallel safe as $$
    select cast(lpad(to_hex(cast(floor(extract(epoch from at) * 1000) as bigint)), 12, '0')
        || repeat('0', 20) as uuid)
$$;
