-- A constraint that has been validated needs no undoing.
SELECT 1;
