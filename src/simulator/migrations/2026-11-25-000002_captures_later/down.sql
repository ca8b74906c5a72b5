DROP INDEX authorizations_to_capture;
ALTER TABLE authorizations DROP COLUMN capture_key;
