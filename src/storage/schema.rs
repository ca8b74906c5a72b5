//! The tables as Diesel sees them. The migrations are the source, and describe each column.
//!
//! Only tables that are queried through the DSL are here. The [statements](crate::storage::sql) of their
//! modules read and write the others.

diesel::table! {
    merchants (merchant_id) {
        merchant_id -> Uuid,
        name -> Text,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    merchant_pricing (merchant_id, effective_at) {
        merchant_id -> Uuid,
        effective_at -> Timestamptz,
        fee_rate -> Numeric,
        fee_fixed -> Numeric,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    api_keys (merchant_id, id) {
        merchant_id -> Uuid,
        id -> Uuid,
        name -> Text,
        key_sha256 -> Bytea,
        created_at -> Timestamptz,
        revoked_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    operator_keys (id) {
        id -> Uuid,
        name -> Text,
        key_sha256 -> Bytea,
        created_at -> Timestamptz,
        revoked_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    acquirer_events (id) {
        id -> Uuid,
        event_id -> Text,
        #[sql_name = "type"]
        type_ -> Text,
        body -> Bytea,
        merchant_id -> Nullable<Uuid>,
        object_id -> Nullable<Uuid>,
        state -> Text,
        detail -> Nullable<Text>,
        received_at -> Timestamptz,
        attempts -> Integer,
        due_at -> Nullable<Timestamptz>,
        overdue_at -> Nullable<Timestamptz>,
        settled_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    charges (merchant_id, id) {
        merchant_id -> Uuid,
        id -> Uuid,
        status -> Text,
        currency -> Text,
        amount -> Numeric,
        amount_captured -> Numeric,
        amount_refunded -> Numeric,
        amount_refund_pending -> Numeric,
        fee -> Numeric,
        payment_method -> Text,
        capture -> Bool,
        in_flight -> Nullable<Text>,
        description -> Nullable<Text>,
        reference -> Nullable<Text>,
        metadata -> Jsonb,
        failure_code -> Nullable<Text>,
        failure_decline_code -> Nullable<Text>,
        failure_message -> Nullable<Text>,
        authorization_id -> Text,
        created_at -> Timestamptz,
        captured_at -> Nullable<Timestamptz>,
        canceled_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    ledger_accounts (merchant_id, id) {
        merchant_id -> Uuid,
        id -> Uuid,
        kind -> Text,
        currency -> Text,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    refunds (merchant_id, id) {
        merchant_id -> Uuid,
        id -> Uuid,
        charge_id -> Uuid,
        status -> Text,
        amount -> Numeric,
        currency -> Text,
        reason -> Nullable<Text>,
        metadata -> Jsonb,
        created_at -> Timestamptz,
        failed_at -> Nullable<Timestamptz>,
        failure_code -> Nullable<Text>,
        failure_message -> Nullable<Text>,
    }
}

diesel::table! {
    payouts (merchant_id, id) {
        merchant_id -> Uuid,
        id -> Uuid,
        status -> Text,
        amount -> Numeric,
        currency -> Text,
        destination -> Text,
        metadata -> Jsonb,
        created_at -> Timestamptz,
        settled_at -> Nullable<Timestamptz>,
        failure_code -> Nullable<Text>,
        failure_message -> Nullable<Text>,
        decided_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    disputes (merchant_id, id) {
        merchant_id -> Uuid,
        id -> Uuid,
        charge_id -> Uuid,
        status -> Text,
        amount -> Numeric,
        currency -> Text,
        reason -> Nullable<Text>,
        created_at -> Timestamptz,
        closed_at -> Nullable<Timestamptz>,
        acquirer_id -> Nullable<Text>,
        decided_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    events (merchant_id, id) {
        merchant_id -> Uuid,
        id -> Uuid,
        #[sql_name = "type"]
        kind -> Text,
        object_id -> Uuid,
        data -> Jsonb,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    webhook_endpoints (merchant_id, id) {
        merchant_id -> Uuid,
        id -> Uuid,
        url -> Text,
        event_types -> Array<Text>,
        description -> Nullable<Text>,
        status -> Text,
        secret_version -> Integer,
        previous_secret_expires_at -> Nullable<Timestamptz>,
        failing_since -> Nullable<Timestamptz>,
        disabled_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        enabled_at -> Nullable<Timestamptz>,
        secret_key_version -> Integer,
        previous_secret_key_version -> Integer,
        paused_until -> Nullable<Timestamptz>,
        first_accepted_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    webhook_deliveries (merchant_id, id) {
        merchant_id -> Uuid,
        id -> Uuid,
        event_id -> Uuid,
        endpoint_id -> Uuid,
        state -> Text,
        due_at -> Timestamptz,
        attempts -> Jsonb,
        created_at -> Timestamptz,
        completed_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    journal_entries (merchant_id, id) {
        merchant_id -> Uuid,
        id -> Uuid,
        source -> Text,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    idempotency_policies (operation) {
        operation -> Text,
        enforcement -> Text,
        rollout_percent -> SmallInt,
        ttl_seconds -> Integer,
        tombstone_seconds -> Integer,
        on_mismatch -> Text,
        fingerprint -> Text,
        on_expired -> Text,
        wait_max_seconds -> SmallInt,
        on_suspected_duplicate -> Text,
        suspicion_window_seconds -> Integer,
        updated_at -> Timestamptz,
        updated_by -> Text,
        rate_per_second -> Integer,
        burst -> Integer,
        concurrency_max -> Integer,
    }
}

diesel::table! {
    idempotency_policy_changes (id) {
        id -> Uuid,
        operation -> Text,
        changed_at -> Timestamptz,
        changed_by -> Text,
        before -> Jsonb,
        after -> Jsonb,
    }
}

diesel::allow_tables_to_appear_in_same_query!(charges, refunds);
