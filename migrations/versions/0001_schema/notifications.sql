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
-- waits on the channel reads again. If pg_notify raises an error, the write that caused the notification
-- still succeeds.

-- Send ids, after a prefix, to a channel. Without ids, do nothing.
create function notify_ids(channel text, ids text[], prefix text default '') returns void language plpgsql as $$
    declare
        payload text := array_to_string(ids, ',');
    begin
        if cardinality(ids) > 0 then
            perform pg_notify(channel,
                prefix || case when octet_length(payload) <= 7000 then payload else '*' end);
        end if;
    exception when others then
        raise warning 'no notification on %: %', channel, sqlerrm;
    end
$$;

-- Notify the event stream of changes that no other channel reports. A statement that writes many rows sends a
-- star, after which subscribers read everything again. This saves collecting ids that would not fit.
create function notify_event(kind text, ids text[]) returns void language plpgsql as $$
    begin
        perform notify_ids('broker_events', ids, kind || ' ');
    end
$$;
