-- What happened to a merchant's objects, written in the transaction that changed them: a change and
-- its event are both there or neither is.
CREATE TABLE events (
    merchant_id uuid NOT NULL,
    id          uuid NOT NULL,
    type        text NOT NULL,
    object_id   uuid NOT NULL,
    data        jsonb NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (merchant_id, id)
);
COMMENT ON TABLE events IS 'State changes, one row each, with the object as it was right after the change. Append-only.';

CREATE INDEX events_by_object ON events (merchant_id, object_id, id);

GRANT SELECT, INSERT ON events TO oncepay_app;
