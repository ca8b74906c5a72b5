-- A pending authorization can be captured by itself as soon as it's approved.
ALTER TABLE authorizations ADD COLUMN capture_key text;
COMMENT ON COLUMN authorizations.capture_key IS 'While it''s to be captured as soon as it''s approved: the idempotency key of that capture.';
CREATE INDEX authorizations_to_capture ON authorizations (id) WHERE capture_key IS NOT NULL AND status IN ('open', 'captured');
