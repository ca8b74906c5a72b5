-- What operators did to merchants' requests and books, and why.
SET LOCAL lock_timeout = '1s';

CREATE TABLE operator_actions (
    id         uuid PRIMARY KEY DEFAULT uuid_v7(),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    operator   text NOT NULL,
    action     text NOT NULL,
    subject    text NOT NULL,
    reason     text
);
COMMENT ON TABLE operator_actions IS 'One row per action of an operator, written in the transaction of its effect. Append-only. Belongs to no merchant.';
COMMENT ON COLUMN operator_actions.operator IS 'Name of the operator''s key, or `command line`.';
COMMENT ON COLUMN operator_actions.action IS 'Name of the operation, such as idempotency_keys.resolve.';
COMMENT ON COLUMN operator_actions.subject IS 'What it was done to, such as mer_…/key.';
COMMENT ON COLUMN operator_actions.reason IS 'What the operator gave as the reason, where one is asked for.';
CREATE INDEX operator_actions_by_subject ON operator_actions (subject, id);

GRANT SELECT, INSERT ON operator_actions TO oncepay_app;
