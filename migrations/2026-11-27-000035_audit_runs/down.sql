-- Loses what the last audit has found.
DROP TABLE audit_runs;
