-- What is due is found by the time alone. With a condition on the state the planner could also take the index by state, and sort all
-- that is parked for each event: so it did with statistics that were made while nothing was.
CREATE INDEX acquirer_events_waiting ON acquirer_events (due_at) WHERE due_at IS NOT NULL;
DROP INDEX acquirer_events_due;
