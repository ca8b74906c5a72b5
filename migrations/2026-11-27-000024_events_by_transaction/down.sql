DROP INDEX CONCURRENTLY events_by_transaction;
