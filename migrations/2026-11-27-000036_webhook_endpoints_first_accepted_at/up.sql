-- An endpoint that has accepted nothing yet gets one message at a time. Those that exist show with the next message what they do.
SET LOCAL lock_timeout = '500ms';

ALTER TABLE webhook_endpoints ADD COLUMN first_accepted_at timestamptz;
COMMENT ON COLUMN webhook_endpoints.first_accepted_at IS 'When it accepted its first message since it was created or last enabled. Null: it hasn''t.';
GRANT UPDATE (first_accepted_at) ON webhook_endpoints TO oncepay_app;
