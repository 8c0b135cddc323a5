"""Ids of new rows: version 7 UUIDs, whose first half is the time.

`uuid7()` takes longer than the insert of a row. So a statement that writes a set calls it once, and each row
gets its own random part.
"""

#: A CTE with the first part of the ids that a statement creates: the time and the version.
CTE = "new_ids as materialized (select substr(cast(uuid7() as text), 1, 15) as prefix)"

#: SQL for a new id, in a query that includes the CTE.
NEW_ID = "cast(new_ids.prefix || substr(cast(gen_random_uuid() as text), 16) as uuid)"
