DROP FUNCTION charge_alike;
