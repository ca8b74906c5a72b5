DROP FUNCTION acquirer_differences(interval);
DROP VIEW operations_in_effect_here;
DROP VIEW operations_in_effect_there;
DROP TABLE acquirer_reads;
DROP TABLE acquirer_operations;
