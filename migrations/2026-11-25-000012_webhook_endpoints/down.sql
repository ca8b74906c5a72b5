DROP FUNCTION events_prune;
DROP FUNCTION uuid_v7_lowest;
DROP TABLE event_retention;
DROP TRIGGER events_fan_out ON events;
DROP FUNCTION events_fan_out;
DROP TABLE webhook_deliveries;
DROP TABLE webhook_endpoints;
