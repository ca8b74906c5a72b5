-- Events in the order in which they can be read without missing any. Built without keeping anybody from writing; a build that was
-- interrupted leaves an invalid index, to be dropped before the next try.
CREATE INDEX CONCURRENTLY events_by_transaction ON events (merchant_id, epoch, transaction_id, id);
