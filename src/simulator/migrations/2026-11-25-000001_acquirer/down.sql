DROP TABLE outbox, settlements, failed_once, operations, authorizations;
