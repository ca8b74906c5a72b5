-- Loses the record of what operators did.
DROP TABLE operator_actions;
