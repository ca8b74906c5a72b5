-- Fails if a charge was canceled by the processor since: the release before doesn't know such a charge.
SET LOCAL lock_timeout = '1s';

ALTER TABLE charges
    DROP CONSTRAINT charges_failure,
    ADD CONSTRAINT charges_failure CHECK ((status = 'failed') = (failure_code IS NOT NULL));
