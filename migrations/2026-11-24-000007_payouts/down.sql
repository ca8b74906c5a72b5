DROP TABLE payouts;
DROP FUNCTION payouts_refuse_transition();
