-- Whoever catches up with the events of one type reads those, and not all that happened in between. Built without keeping
-- anybody from writing; a build that was interrupted leaves an invalid index, to be dropped before the next try.
CREATE INDEX CONCURRENTLY events_by_type ON events (merchant_id, type, id);
