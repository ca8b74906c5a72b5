DROP TABLE idempotency_policies;
DROP FUNCTION idempotency_policies_changed;
DROP TABLE idempotency_policy_changes;
