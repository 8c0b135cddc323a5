-- Notifications wake waiting requests. A woken request reads the tables again. If a notification is lost, the
-- request reads them a little later.
--
--   broker_candidates  a task or a tool became available, or changed while available
--   broker_tool        tools that got work or were deleted, by tool id
--   broker_work        work that changed or ended, by work id
--   broker_task        tasks that ended or failed, by task id
--   broker_upkeep      a kind of rows that come due before the next regular round of upkeep
--   broker_events      other changes, for the event stream: a kind and its ids
--
-- A payload has less than 8,000 bytes. If the ids do not fit, the payload is a star, and every request that
-- waits on the channel reads again. PostgreSQL sends equal notifications of a transaction once.
--
-- A trigger fires once for each statement and runs one query, because a query takes longer than a row. If a
-- notification fails, the write that caused it still succeeds.

-- Send comma-separated ids, after a prefix, to a channel. If they are null, do nothing.
create function notify_ids(channel text, ids text, prefix text default '') returns void language sql as $$
    select case when ids is not null then
        pg_notify(channel, prefix || case when octet_length(ids) <= 7000 then ids else '*' end) end
$$;
