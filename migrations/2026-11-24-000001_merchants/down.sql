DROP TABLE operator_keys;
DROP TABLE api_keys;
DROP TABLE merchant_pricing;
DROP TABLE merchants;
DROP FUNCTION uuid_v7(timestamptz);
