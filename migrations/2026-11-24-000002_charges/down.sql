DROP TABLE charges;
DROP FUNCTION charges_refuse_transition();
