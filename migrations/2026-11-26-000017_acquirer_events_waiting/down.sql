CREATE INDEX acquirer_events_due ON acquirer_events (due_at) WHERE state = 'parked';
DROP INDEX acquirer_events_waiting;
