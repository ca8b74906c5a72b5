DROP INDEX operations_owed_back;
ALTER TABLE operations DROP COLUMN is_owed_back;
