DROP INDEX webhook_endpoints_failing;
ALTER TABLE webhook_endpoints DROP COLUMN enabled_at;
