-- A receiver may ask to be left alone for a time (Retry-After). That is a wish of the endpoint, not of one message.
SET LOCAL lock_timeout = '500ms';

ALTER TABLE webhook_endpoints ADD COLUMN paused_until timestamptz;
COMMENT ON COLUMN webhook_endpoints.paused_until IS 'Until then nothing is sent, since the receiver asked for that. Null: it hasn''t, or it has taken a message or was enabled since.';
GRANT UPDATE (paused_until) ON webhook_endpoints TO oncepay_app;
