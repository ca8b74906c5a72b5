DROP TABLE disputes;
DROP FUNCTION disputes_refuse_transition();
