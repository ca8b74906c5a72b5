DROP FUNCTION acquirer_differences(interval);
DROP TABLE acquirer_reads;
DROP TABLE acquirer_operations;
