//! Databases and roles with settings of their own, on which the service must not depend.

use std::time::Duration;

use diesel::RunQueryDsl;
use serde_json::json;

use crate::support::database::exposed;
use crate::support::*;

/// Changes settings of the service's role in this database.
fn set(database: &TestDatabase, settings: &[(&str, &str)]) {
    let mut superuser = database.as_superuser();
    for (name, value) in settings {
        execute(
            &mut superuser,
            &format!("ALTER ROLE oncepay_app IN DATABASE {} SET {name} = {value}", database.name()),
        );
    }
}

#[test]
fn a_session_sets_what_it_depends_on() {
    if cluster::cannot("the role's settings reach the other nodes, too, so instances don't start") {
        return;
    }
    let database = TestDatabase::new();
    set(
        &database,
        &[
            ("default_transaction_isolation", "'serializable'"),
            ("default_transaction_deferrable", "on"),
            ("search_path", "pg_catalog"),
            ("TimeZone", "'Asia/Kolkata'"),
            ("DateStyle", "'German, DMY'"),
            ("IntervalStyle", "'sql_standard'"),
            ("bytea_output", "'escape'"),
            ("extra_float_digits", "-15"),
            ("standard_conforming_strings", "off"),
            ("array_nulls", "off"),
            ("transform_null_equals", "on"),
            ("lock_timeout", "'1ms'"),
            // What a connection takes until the session sets its own is left to the role.
            ("statement_timeout", "'200ms'"),
            ("synchronous_commit", "off"),
            ("plan_cache_mode", "'force_custom_plan'"),
        ],
    );
    let app = App::start(&database);
    let merchant = database.merchant();
    let (client, operator) =
        (app.client.as_merchant(&merchant), app.client.with_key(&database.operator_key()));
    let charge = while_locked(&database, "charges", Duration::from_millis(1500), || {
        client.charge("charge", &visa()).expect(201)
    });
    let (id, created_at) = (charge.field("id"), charge.field("created_at"));
    assert!(client.charge("charge", &visa()).expect(201).is_replay());
    client.send("POST", "/v1/refunds", "refund", &json!({"charge_id": id, "amount": "2.00"})).expect(201);
    let payout = json!({"amount": "1.00", "currency": "USD", "destination": "ba_1"});
    client.send("POST", "/v1/payouts", "payout", &payout).expect(201);
    client.send("PATCH", &format!("/v1/charges/{id}"), "patch", &json!({"description": "x"})).expect(200);
    assert_eq!(client.get(&format!("/v1/charges/{id}")).expect(200).field("created_at"), created_at);
    let since = client.get("/v1/charges?created_after=2026-01-31T09:30:00.000Z").expect(200).json();
    assert_eq!(since["data"][0]["id"], *id);
    assert_eq!(client.available("USD").unwrap(), "8.84");
    client.get("/v1/events?limit=1").expect(200);
    client.get("/v1/ledger/trial-balance").expect(200);
    operator.get("/v1/operator/idempotency-keys").expect(200);
    assert_eq!(operator.get("/v1/operator/audit").expect(200).json()["clean"], true);
    let body = json!({"type": "dispute.opened", "data": {"merchant": merchant.id.to_string(), "reference": id, "dispute": "d"}});
    assert_eq!(app.client.delivery("event", &body.to_string()).send().expect(200).field("state"), "applied");
    // The audit that ends every test connects once, without the patience of a pool.
    execute(
        &mut database.as_superuser(),
        &format!("ALTER ROLE oncepay_app IN DATABASE {} RESET ALL", database.name()),
    );
}

/// Does `work` while another transaction holds a table for this long: longer than all tries with the limit of the role.
fn while_locked<T>(database: &TestDatabase, table: &str, time: Duration, work: impl FnOnce() -> T) -> T {
    let mut holder = database.as_superuser();
    execute(&mut holder, "BEGIN");
    execute(&mut holder, &format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(time);
            execute(&mut holder, "COMMIT");
        });
        work()
    })
}

#[test]
fn errors_in_another_language_are_a_reason_not_to_start_and_not_to_migrate() {
    let database = TestDatabase::new();
    let speak_german = |role: &str| {
        let german =
            format!("ALTER ROLE {role} IN DATABASE {} SET lc_messages = 'de_DE.UTF-8'", database.name());
        diesel::sql_query(german).execute(&mut database.as_superuser()).is_ok()
    };
    if !speak_german("oncepay_app") || !speak_german("oncepay_owner") || says(&database) == "division by zero"
    {
        eprintln!("skipped: the server's machine has no German");
        return;
    }
    for (command, role) in [("serve", "oncepay_app"), ("migrate", "oncepay_owner")] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_oncepay"))
            .arg(command)
            .env("DATABASE_URL", exposed(&database.app_url))
            .env("ONCEPAY_OWNER_DATABASE_URL", exposed(&database.owner_url))
            .env("ONCEPAY_LISTEN", "127.0.0.1:0")
            .env("ONCEPAY_MASTER_KEY", "m".repeat(32))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let advice = format!("ALTER ROLE {role} SET lc_messages = 'C';");
        assert!(!output.status.success() && said.contains(&advice), "{command}: {said}");
    }
}

/// What the service's role is told about an error.
fn says(database: &TestDatabase) -> String {
    let error = diesel::sql_query("SELECT 1 / 0").execute(&mut database.as_app()).expect_err("it's an error");
    error.to_string()
}

#[test]
fn settings_of_other_nodes_are_a_reason_not_to_start() {
    let database = TestDatabase::new();
    if !database.is_on_cluster() {
        return;
    }
    // What a session sets itself on the coordinator, the role has on the other nodes, too.
    let settings = [
        ("standard_conforming_strings", "off"),
        ("lock_timeout", "'1ms'"),
        ("synchronous_commit", "off"),
        ("DateStyle", "'German, DMY'"),
    ];
    for (name, value) in settings {
        set(&database, &[(name, value)]);
        let refused = Process::refusal(&database, &[]);
        let said = format!("the service's sessions have settings with which it can't work: {name} = ");
        assert!(refused.contains(&said) && refused.contains("Reset them"), "{refused}");
        let reset = format!("ALTER ROLE oncepay_app IN DATABASE {} RESET {name}", database.name());
        execute(&mut database.as_superuser(), &reset);
    }
    let app = App::start(&database);
    app.client.as_merchant(&database.merchant()).charge(&fresh_key(), &visa()).expect(201);
}
