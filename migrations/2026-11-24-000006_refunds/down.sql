DROP TABLE refunds;
DROP FUNCTION refunds_refuse_transition();
