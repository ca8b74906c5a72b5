-- A message is given up when it has been tried for too long. While its endpoint was disabled it wasn't tried, so that time
-- doesn't count.
ALTER TABLE webhook_endpoints ADD COLUMN enabled_at timestamptz;
COMMENT ON COLUMN webhook_endpoints.enabled_at IS 'When it was enabled again; what had waited for it is as if it were from then.';
GRANT UPDATE (enabled_at) ON webhook_endpoints TO oncepay_app;

-- Which have failed for too long, also where nothing is sent to them any more.
CREATE INDEX webhook_endpoints_failing ON webhook_endpoints (failing_since) WHERE status = 'enabled' AND failing_since IS NOT NULL;
