ALTER TABLE webhook_endpoints DROP COLUMN first_accepted_at;
