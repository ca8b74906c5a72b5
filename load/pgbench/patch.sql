-- An update as a team would naturally write it: one transaction, a round trip per statement, on Oncepay's tables. It changes
-- one of the charges that load/bench has prepared.
\set n random(1, 9000000000000000)
\set c random(1, :charges)
\set m :c % 100 + 1
BEGIN;
INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, request_id, request_method, request_path, request_query, request_body, resource_type, resource_id, claim_token, lease_expires_at, recover_at, attempts, recovery_point, created_at, expires_at) VALUES (md5(:m::text)::uuid, md5('patch' || :n), 'in_progress', 'charges.update', 1, sha256(:n::text::bytea), 'req_01a20d6db71276b4b8d98d9390d3499c', 'PATCH', '/v1/charges/' || ('01900000000370008000' || lpad(to_hex(:c::bigint), 12, '0'))::uuid::text, '', '{"metadata":{"n":"1"}}', 'charge', ('01900000000370008000' || lpad(to_hex(:c::bigint), 12, '0'))::uuid, md5('t' || :n)::uuid, clock_timestamp() + interval '30 s', clock_timestamp() + interval '30 s', 1, 'started', clock_timestamp(), clock_timestamp() + interval '1 day');
SELECT description, metadata AS before FROM charges WHERE merchant_id = md5(:m::text)::uuid AND id = ('01900000000370008000' || lpad(to_hex(:c::bigint), 12, '0'))::uuid FOR UPDATE \gset
UPDATE charges SET metadata = jsonb_build_object('n', :n::text) WHERE merchant_id = md5(:m::text)::uuid AND id = ('01900000000370008000' || lpad(to_hex(:c::bigint), 12, '0'))::uuid;
INSERT INTO events (merchant_id, id, type, object_id, data) VALUES (md5(:m::text)::uuid, uuid_v7(), 'charge.updated', ('01900000000370008000' || lpad(to_hex(:c::bigint), 12, '0'))::uuid, '{"object": "charge", "amount": "12.50", "currency": "USD", "status": "succeeded"}');
UPDATE idempotency_keys SET state = 'completed', recovery_point = 'finished', claim_token = NULL, lease_expires_at = NULL, recover_at = NULL, response_status = 200, response_headers = '[["Content-Type","application/json"]]', response_body = convert_to(repeat('x', 480), 'UTF8'), completed_at = clock_timestamp() WHERE merchant_id = md5(:m::text)::uuid AND key = md5('patch' || :n);
COMMIT;
