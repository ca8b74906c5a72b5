-- Which requests were about an object: somebody who was charged twice names the charge, not the key. Without those in progress, which
-- are few and have an index of their own, a claim doesn't pay for it. Built without keeping anybody from writing; a build that was
-- interrupted leaves an invalid index, to be dropped before the next try.
CREATE INDEX CONCURRENTLY idempotency_keys_by_resource ON idempotency_keys (merchant_id, resource_id) WHERE state <> 'in_progress';
