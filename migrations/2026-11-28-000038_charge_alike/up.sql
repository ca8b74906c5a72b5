-- Suspected duplicates were searched for in a transaction per charge. With a function, the statement that completes many charges
-- can search, too.
--
-- A new function locks no table: this is safe beside load.
SET LOCAL lock_timeout = '500ms';

-- Returns the id of the merchant's latest other charge with this reference, currency, amount and payment method whose id is
-- `p_since` or later, and that hasn't failed or been canceled. Null if there is none.
--
-- A reference that is used more than a hundred times since then doesn't name a payment: only the latest hundred are compared.
--
-- VOLATILE, so that its query sees what was committed when the function was called, and not only what was there when the
-- statement around it began: the caller has locked what makes charges alike in between.
CREATE FUNCTION charge_alike(
    p_merchant_id uuid, p_id uuid, p_since uuid, p_reference text, p_currency text, p_amount numeric, p_payment_method text
) RETURNS uuid LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        SELECT recent.id FROM (
            SELECT c.id, c.currency, c.amount, c.payment_method, c.status FROM public.charges c
            WHERE c.merchant_id = p_merchant_id AND c.reference = p_reference AND c.id >= p_since AND c.id <> p_id
            ORDER BY c.id DESC LIMIT 100) AS recent
        WHERE recent.currency = p_currency AND recent.amount = p_amount AND recent.payment_method = p_payment_method
            AND recent.status NOT IN ('failed', 'canceled')
        ORDER BY recent.id DESC LIMIT 1);
END $$;
COMMENT ON FUNCTION charge_alike IS 'The latest other charge that looks like this one: a suspected duplicate''s first.';
REVOKE EXECUTE ON FUNCTION charge_alike FROM PUBLIC;
GRANT EXECUTE ON FUNCTION charge_alike TO oncepay_app;
