DROP FUNCTION events_prune;
DROP TABLE event_retention;
DROP TRIGGER events_fan_out ON events;
DROP FUNCTION events_fan_out;
DROP INDEX events_by_age;
DROP TABLE webhook_deliveries;
DROP TABLE webhook_endpoints;
