//! Requests that no key protects, because the policy observes or gives keys no effect: whatever may have taken effect is
//! answered with `outcome_unknown`, and never with an invitation to send it again.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use oncepay::processor::Sandbox;
use serde_json::json;

use crate::support::*;

const UNPROTECTED: [&str; 2] = ["observe", "off"];

/// A service that gives a request one second, beside a processor that takes three for a slow card.
fn start(database: &TestDatabase) -> App {
    let sandbox = Arc::new(Sandbox::recording().with_slowness(Duration::from_secs(3)));
    App::start_sharing(database, sandbox, |config| config.request_deadline_ms = 1_000)
}

/// Has the operation follow `enforcement` on this instance.
fn enforce(app: &App, database: &TestDatabase, operation: &str, enforcement: &str) {
    eventually("the policies", || {
        database.count(&format!("SELECT count(*) FROM idempotency_policies WHERE operation = '{operation}'"))
            == 1
    });
    database.set_policy(operation, &format!("enforcement = '{enforcement}'"));
    eventually("the policy", || {
        let document = app.client.get("/openapi.json").expect(200).json();
        let items = document["paths"].as_object().unwrap().values();
        let mut policies =
            items.flat_map(|item| item.as_object().unwrap().values()).map(|item| &item["x-idempotency"]);
        policies
            .any(|policy| policy["operation"] == operation && policy["policy"]["enforcement"] == enforcement)
    });
}

/// Panics unless it's an answer that invites to nothing; where to look, if it says.
fn open_outcome(answer: Response) -> Option<String> {
    let answer = answer.expect_problem(503, "outcome_unknown");
    assert_eq!(answer.json()["retryable"], false);
    assert_eq!(answer.header("Retry-After"), None);
    answer.header("Location").map(str::to_owned)
}

/// Ends every session of the service that commits a claim, before the commit: to the service it looks as if it might have
/// come through.
fn cut_at_commit(database: &TestDatabase) {
    cut_at(database, "INSERT");
}

/// The same for commits of another change of a key's row.
fn cut_at(database: &TestDatabase, change: &str) {
    let trigger = format!(
        "CREATE CONSTRAINT TRIGGER cut AFTER {change} ON idempotency_keys DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION cut()"
    );
    for statement in [
        "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(1); RETURN NULL; END $$",
        &trigger,
    ] {
        execute(&mut database.as_owner(), statement);
    }
}

#[test]
fn a_request_that_runs_into_its_deadline_is_not_to_be_sent_again() {
    let database = TestDatabase::new();
    let app = start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let slow = with_method("pm_card_slow");
    for (number, enforcement) in UNPROTECTED.into_iter().enumerate() {
        enforce(&app, &database, "charges.create", enforcement);
        let place = open_outcome(client.charge(enforcement, &slow)).expect("its id is known");
        eventually("the charge", || client.get(&place).status == 200);
        assert_eq!(client.get(&place).expect(200).field("status"), "succeeded");
        assert_eq!(database.rows("charges"), i64::try_from(number + 1).unwrap());
    }
    // With a key that protects, the retry gets the answer.
    enforce(&app, &database, "charges.create", "enforce");
    let late = client.charge("k", &slow).expect_problem(503, "database_unavailable");
    assert_eq!(late.json()["retryable"], true);
    eventually("the answer", || client.charge("k", &slow).status == 201);
    assert_eq!(database.rows("charges"), 3);
}

#[test]
fn a_change_of_our_own_database_that_runs_into_its_deadline_is_not_to_be_sent_again() {
    let database = TestDatabase::new();
    let app = start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let place = format!("/v1/charges/{}", client.charge("charge", &visa()).expect(201).field("id"));
    for enforcement in UNPROTECTED {
        enforce(&app, &database, "charges.update", enforcement);
        let mut owner = database.as_owner();
        let answer = diesel::Connection::transaction(&mut owner, |conn| {
            crate::support::lock_charges(conn)?;
            Ok::<_, diesel::result::Error>(client.send(
                "PATCH",
                &place,
                enforcement,
                &json!({"description": enforcement}),
            ))
        });
        assert_eq!(open_outcome(answer.unwrap()), Some(place.clone()));
        eventually("the change", || client.get(&place).expect(200).json()["description"] == enforcement);
    }
}

#[test]
fn an_attempt_that_fails_beside_the_processor_is_not_to_be_sent_again() {
    let database = TestDatabase::new();
    let app = start(&database);
    let client = app.client.as_merchant(&database.merchant());
    for enforcement in UNPROTECTED {
        enforce(&app, &database, "charges.create", enforcement);
        let place = open_outcome(client.charge(enforcement, &with_method("pm_card_timeout")));
        client.get(&place.expect("its id is known")).expect(404);
    }
}

/// A takeover by the recovery worker, which is still at it.
#[test]
fn a_request_that_loses_its_claim_is_not_to_be_sent_again() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording());
    let app = App::start_sharing(&database, sandbox, |_| {});
    let client = app.client.as_merchant(&database.merchant());
    for enforcement in UNPROTECTED {
        enforce(&app, &database, "charges.create", enforcement);
        let sent = {
            let client = client.clone();
            thread::spawn(move || client.charge(enforcement, &with_method("pm_card_slow")))
        };
        take_over(&database);
        assert!(open_outcome(sent.join().unwrap()).is_some());
    }
}

/// Takes over the one request that's being executed, when it is, and leaves it at that.
fn take_over(database: &TestDatabase) {
    let running = "SELECT count(*) FROM idempotency_keys WHERE claim_token IS NOT NULL AND attempts = 1";
    eventually("the claim", || database.count(running) == 1);
    execute(
        &mut database.as_owner(),
        "UPDATE idempotency_keys SET claim_token = '018f3e3e-0000-7000-8000-000000000000', takeovers = 1, attempts = 2, \
             lease_expires_at = statement_timestamp() + interval '1 hour' WHERE attempts = 1 AND claim_token IS NOT NULL",
    );
}

/// The caller was who it said when the request was claimed, and it takes effect all the same.
#[test]
fn a_request_whose_caller_is_revoked_after_the_claim_is_not_to_be_sent_again() {
    let database = TestDatabase::new();
    let app = App::start_sharing(&database, Arc::new(Sandbox::recording()), |_| {});
    for enforcement in UNPROTECTED {
        enforce(&app, &database, "charges.create", enforcement);
        let merchant = database.merchant();
        let client = app.client.as_merchant(&merchant);
        let sent = {
            let client = client.clone();
            thread::spawn(move || client.charge("k", &with_method("pm_card_slow")))
        };
        take_over(&database);
        database.revoke(&merchant.key);
        assert!(open_outcome(sent.join().unwrap()).is_some());
        // Who comes only now is a stranger.
        client.charge("k2", &visa()).expect_problem(401, "api_key_revoked");
    }
}

/// The request goes on under the client's key. If it looked like another's, this one would be executed beside it.
#[test]
fn a_request_whose_takeover_has_no_answer_is_not_to_be_sent_again() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    enforce(&app, &database, "charges.create", "observe");
    cut_at(&database, "UPDATE");
    open_outcome(client.charge("k", &with_method("pm_card_timeout")));
    execute(&mut database.as_owner(), "DROP FUNCTION cut CASCADE");
    assert_eq!(database.rows("idempotency_keys"), 1);
    client.charge("k", &with_method("pm_card_timeout")).expect(201);
    assert_eq!(database.rows("charges"), 1);
    // With a key that protects, the service may try again, and the client too.
    enforce(&app, &database, "charges.create", "enforce");
    client.charge("k2", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    cut_at(&database, "UPDATE");
    let refused =
        client.charge("k2", &with_method("pm_card_timeout")).expect_problem(503, "database_unavailable");
    assert_eq!(refused.json()["retryable"], true);
    execute(&mut database.as_owner(), "DROP FUNCTION cut CASCADE");
    client.charge("k2", &with_method("pm_card_timeout")).expect(201);
}

/// The service repeats nothing by itself either: it couldn't tell its own claim from another request's.
#[test]
fn a_request_whose_commit_has_no_answer_is_not_to_be_sent_again() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let charge = client.charge("charge", &visa()).expect(201).field("id");
    let place = format!("/v1/charges/{charge}");
    let operations = ["charges.create", "charges.update", "refunds.create", "api_keys.create"];
    let send = |operation: &str, key: &str| match operation {
        "charges.create" => client.charge(key, &visa()),
        "charges.update" => client.send("PATCH", &place, key, &json!({"description": key})),
        "refunds.create" => {
            client.send("POST", "/v1/refunds", key, &json!({"charge_id": charge, "amount": "1.00"}))
        }
        _ => client.send("POST", "/v1/api-keys", key, &json!({"name": "key"})),
    };
    for operation in operations {
        for enforcement in UNPROTECTED {
            enforce(&app, &database, operation, enforcement);
            cut_at_commit(&database);
            let place = open_outcome(send(operation, &format!("{operation}-{enforcement}")));
            execute(&mut database.as_owner(), "DROP FUNCTION cut CASCADE");
            // A claim that is sent by itself returns its id together with the commit.
            let is_told = operation != "charges.create" || cluster::is_distributed();
            assert_eq!(place.is_some(), is_told, "{operation}");
        }
        // With a key that protects, the service may try again, and the client too.
        enforce(&app, &database, operation, "enforce");
        cut_at_commit(&database);
        let refused = send(operation, operation).expect_problem(503, "database_unavailable");
        assert_eq!(refused.json()["retryable"], true, "{operation}");
        execute(&mut database.as_owner(), "DROP FUNCTION cut CASCADE");
        let done = send(operation, operation);
        assert!(done.status < 300, "{}", done.text());
    }
}

/// What certainly has no effect may be sent again.
#[test]
fn a_request_that_finds_no_connection_may_be_sent_again() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| {
        (config.pool_size, config.pool_timeout_ms) = (1, 1_500);
        config.batch_size_max = 1;
    });
    let client = app.client.as_merchant(&database.merchant());
    let place = format!("/v1/charges/{}", client.charge("charge", &visa()).expect(201).field("id"));
    enforce(&app, &database, "charges.update", "off");
    let mut owner = database.as_owner();
    diesel::Connection::transaction(&mut owner, |conn| {
        crate::support::lock_charges(conn)?;
        let patch = |key: &'static str| {
            let (client, place) = (client.clone(), place.clone());
            thread::spawn(move || client.send("PATCH", &place, key, &json!({"description": key})))
        };
        let first = patch("first");
        eventually("the first's wait for the lock", || database.lock_waits() > 0);
        let second = patch("second").join().unwrap().expect_problem(503, "database_unavailable");
        assert_eq!(second.json()["retryable"], true);
        Ok::<_, diesel::result::Error>(first)
    })
    .unwrap()
    .join()
    .unwrap()
    .expect(200);
    assert_eq!(client.get(&place).expect(200).json()["description"], "first");
}
