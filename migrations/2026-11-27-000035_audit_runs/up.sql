-- What the last audit has found, so that every instance can show it in its metrics, whoever ran it; and when the next is due,
-- so that one instance at a time runs it. A new table, so nothing waits for it.
SET LOCAL lock_timeout = '500ms';

CREATE TABLE audit_runs (
    one         boolean PRIMARY KEY DEFAULT true CONSTRAINT audit_runs_one CHECK (one),
    due_at      timestamptz NOT NULL DEFAULT '-infinity',
    started_at  timestamptz,
    finished_at timestamptz,
    findings    jsonb,
    CONSTRAINT audit_runs_finished CHECK (
        (started_at IS NULL) = (finished_at IS NULL) AND (started_at IS NULL) = (findings IS NULL)
    )
);
COMMENT ON TABLE audit_runs IS 'One row: the last audit that came to an end, and when the next is due. Belongs to no merchant.';
COMMENT ON COLUMN audit_runs.due_at IS 'When the next instance may run a scheduled audit.';
COMMENT ON COLUMN audit_runs.started_at IS 'Begin of the last audit that came to an end: what was committed by then was checked. Null before the first.';
COMMENT ON COLUMN audit_runs.finished_at IS 'End of that audit.';
COMMENT ON COLUMN audit_runs.findings IS 'Its checks, as GET /v1/operator/audit shows them.';
INSERT INTO audit_runs DEFAULT VALUES;

GRANT SELECT, UPDATE (due_at, started_at, finished_at, findings) ON audit_runs TO oncepay_app;
