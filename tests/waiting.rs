//! Duplicates that wait (`Prefer: wait=N`): without a connection, and not for long.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use oncepay::processor::Sandbox;
use serde_json::json;

use crate::support::*;

/// Most threads for blocking work; waiting must not depend on it.
const POOL: u32 = 4;

fn start(database: &TestDatabase, sandbox: &Arc<Sandbox>) -> App {
    App::start_sharing(database, Arc::clone(sandbox), |config| {
        config.pool_size = POOL;
        // Nobody else is to take connections from the pool.
        config.recovery_interval_ms = 600_000;
        config.delivery.delivery_interval_ms = 600_000;
        config.processor_events.processor_event_interval_ms = 600_000;
    })
}

/// A duplicate that is ready to wait.
fn waiting(client: &Client, key: &str, body: &serde_json::Value, prefer: &str) -> Response {
    client.request("POST", "/v1/charges").idempotency_key(key).header("Prefer", prefer).json(body).send()
}

/// When the answer under `k` was committed, in milliseconds since the epoch.
fn committed_ms(database: &TestDatabase) -> i64 {
    database.count("SELECT extract(epoch FROM completed_at) * 1000 FROM idempotency_keys WHERE key = 'k'")
}

fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

#[test]
fn two_hundred_wait_without_a_connection_and_wake_on_two_instances() {
    let database = TestDatabase::new();
    // So long that everybody comes before the answer.
    let sandbox = Arc::new(Sandbox::recording().with_slowness(Duration::from_secs(6)));
    let (here, there) = (start(&database, &sandbox), start(&database, &sandbox));
    let merchant = database.merchant();
    let slow = with_method("pm_card_slow");
    let first = {
        let (client, slow) = (here.client.as_merchant(&merchant), slow.clone());
        thread::spawn(move || client.charge("k", &slow))
    };
    eventually("the claim", || database.rows("idempotency_keys") == 1);

    let waiters: Vec<_> = (0..200)
        .map(|number| {
            let app = if number < 100 { &here } else { &there };
            let (client, slow) = (app.client.as_merchant(&merchant), slow.clone());
            thread::spawn(move || (waiting(&client, "k", &slow, "wait=10"), now_ms()))
        })
        .collect();
    eventually("all waiting", || {
        let waiting = |app: &App| app.client.metrics().value("oncepay_idempotency_waiters", &[]);
        waiting(&here) + waiting(&there) == 200.0
    });

    // With everybody waiting, others get their turn, since nobody who waits has a connection.
    for app in [&here, &there] {
        let client = app.client.as_merchant(&merchant);
        for _ in 0..10 {
            client.charge(&fresh_key(), &visa()).expect(201);
        }
        // Some work in the background uses the pool too.
        eventually("a moment at which a hundred wait and no connection is in use", || {
            let metrics = app.client.metrics();
            let value = |name| metrics.value(name, &[]);
            value("oncepay_idempotency_waiters") == 100.0 && value("oncepay_db_pool_in_use") == 0.0
        });
    }

    let first = first.join().unwrap().expect(201);
    let committed = committed_ms(&database);
    let mut delays = [Vec::new(), Vec::new()];
    for (number, waiter) in waiters.into_iter().enumerate() {
        let (answer, at) = waiter.join().unwrap();
        let answer = answer.expect(201);
        assert!(answer.is_replay());
        assert_eq!(answer.body, first.body);
        assert_eq!(answer.header("Preference-Applied"), Some("wait=10"));
        delays[number / 100].push(at - committed);
    }
    assert_eq!(sandbox.calls().iter().filter(|call| call.call == "authorize").count(), 21);
    for delays in &mut delays {
        delays.sort_unstable();
        println!("woken after {} ms (median), {} ms (last)", delays[50], delays[99]);
        assert!(delays[99] < 5_000, "woken after {delays:?} ms");
    }
    // A hundred, by one that learned of it.
    let learned = |app: &App| app.client.metrics().value("oncepay_idempotency_answers_awaited_total", &[]);
    assert_eq!([&here, &there].map(learned), [1.0, 1.0]);
}

#[test]
fn who_waits_is_told_of_an_answer_on_the_same_instance_and_on_another() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording());
    let (here, there) = (start(&database, &sandbox), start(&database, &sandbox));
    let merchant = database.merchant();
    let keys: Vec<_> = (0..8).map(|number| format!("k{number}")).collect();
    let send_all = |app: &App, prefer: &'static str| -> Vec<_> {
        let sends = keys.iter().map(|key| {
            let (client, key) = (app.client.as_merchant(&merchant), key.clone());
            thread::spawn(move || waiting(&client, &key, &with_method("pm_card_slow"), prefer))
        });
        sends.collect()
    };
    let owners = send_all(&here, "wait=0");
    eventually("the claims", || database.rows("idempotency_keys") == 8);
    let waiters: Vec<_> = [&here, &there].into_iter().map(|app| send_all(app, "wait=30")).collect();
    let answers: Vec<_> = owners.into_iter().map(|owner| owner.join().unwrap().expect(201)).collect();
    for waiters in waiters {
        for (waiter, answer) in waiters.into_iter().zip(&answers) {
            let replay = waiter.join().unwrap().expect(201);
            assert!(replay.is_replay());
            assert_eq!(replay.body, answer.body);
        }
    }
    let learned = |app: &App, by: &[(&str, &str)]| {
        app.client.metrics().value("oncepay_idempotency_answers_awaited_total", by)
    };
    // A look that was due at the moment of the commit may come first; on a busy machine that happens to most of them.
    for (app, way) in [(&here, "here"), (&there, "notification")] {
        let as_meant = learned(app, &[("learned_by", way)]);
        assert!(as_meant >= 1.0, "{way}: {as_meant}");
        assert_eq!(learned(app, &[]), 8.0);
    }
}

#[test]
fn a_wait_is_clamped_to_the_policy_and_says_so() {
    let database = TestDatabase::new();
    let app = start(&database, &Arc::new(Sandbox::recording()));
    let client = app.client.as_merchant(&database.merchant());
    client.get("/v1/idempotency-policies").expect(200);
    let slow = with_method("pm_card_slow");
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    execute(
        &mut database.as_owner(),
        "UPDATE idempotency_keys SET lease_expires_at = statement_timestamp() + interval '1 hour' WHERE key = 'k'",
    );
    let asked = |prefer: &str| {
        let started = Instant::now();
        let refused = waiting(&client, "k", &with_method("pm_card_timeout"), prefer);
        let refused = refused.expect_problem(409, "idempotency_request_in_progress");
        assert!(refused.header("Retry-After").is_some());
        (refused.header("Preference-Applied").map(str::to_owned), started.elapsed())
    };
    let (applied, waited) = asked("wait=1");
    assert_eq!(applied.as_deref(), Some("wait=1"));
    assert!((1.0..5.0).contains(&waited.as_secs_f64()), "{waited:?}");
    for prefer in ["wait=0", "wait=soon", "respond-async"] {
        let (applied, waited) = asked(prefer);
        assert_eq!(applied, None, "{prefer}");
        assert!(waited < Duration::from_secs(5), "{prefer}: {waited:?}");
    }
    database.set_policy("charges.create", "wait_max_seconds = 1");
    eventually("the policy", || {
        waiting(&client, "replayed", &visa(), "wait=30");
        let replay = waiting(&client, "replayed", &visa(), "wait=30").expect(201);
        replay.header("Preference-Applied") == Some("wait=1")
    });
    let (applied, waited) = asked("wait=30");
    assert_eq!(applied.as_deref(), Some("wait=1"));
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    database.set_policy("charges.create", "wait_max_seconds = 0");
    eventually("the policy", || asked("wait=30").0.is_none());
    // First runs aren't affected by the preference.
    assert_eq!(waiting(&client, "new", &slow, "wait=30").expect(201).header("Preference-Applied"), None);
}

#[test]
fn a_wait_adds_to_the_time_in_which_a_request_is_answered() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording());
    let app = start(&database, &sandbox);
    let hasty =
        App::start_sharing(&database, Arc::clone(&sandbox), |config| config.request_deadline_ms = 1_000);
    let client = app.client.as_merchant(&database.merchant());
    let slow = with_method("pm_card_slow");
    thread::scope(|scope| {
        let first = scope.spawn(|| client.charge("k", &slow));
        eventually("the claim", || database.rows("idempotency_keys") == 1);
        // Its answer comes after two seconds.
        assert!(waiting(&hasty.client.like(&client), "k", &slow, "wait=20").expect(201).is_replay());
        first.join().unwrap().expect(201);
    });
}

#[test]
fn who_waits_takes_over_when_the_first_attempt_fails() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording());
    let (here, there) = (start(&database, &sandbox), start(&database, &sandbox));
    let merchant = database.merchant();
    let body = with_method("pm_card_error_once");
    here.client.as_merchant(&merchant).charge("k", &body).expect_problem(503, "processor_unavailable");
    // The first attempt is made to look alive, and then to fail, while duplicates wait on both instances.
    execute(
        &mut database.as_owner(),
        "UPDATE idempotency_keys SET lease_expires_at = statement_timestamp() + interval '1 hour' WHERE key = 'k'",
    );
    let waiters: Vec<_> = (0..20)
        .map(|number| {
            let app = if number % 2 == 0 { &here } else { &there };
            let (client, body) = (app.client.as_merchant(&merchant), body.clone());
            thread::spawn(move || waiting(&client, "k", &body, "wait=20"))
        })
        .collect();
    thread::sleep(Duration::from_millis(300));
    database.end_lease("k");
    let answers: Vec<_> = waiters.into_iter().map(|waiter| waiter.join().unwrap().expect(201)).collect();
    assert_eq!(answers.iter().filter(|answer| !answer.is_replay()).count(), 1);
    assert!(answers.iter().all(|answer| answer.body == answers[0].body));
    assert_eq!(database.rows("charges"), 1);
}

/// A claim in an open transaction can't be seen, so nobody has compared its request when the wait begins.
#[test]
fn who_waits_with_another_request_is_refused_and_not_given_its_answer() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording());
    let (here, there) = (start(&database, &sandbox), start(&database, &sandbox));
    let merchant = database.merchant();
    let client = here.client.as_merchant(&merchant);
    let charge = client.charge("charge", &visa()).expect(201).field("id");
    let path = format!("/v1/charges/{charge}");
    let refund = json!({"charge_id": charge, "amount": "1.00"});
    for (name, method, first_path, body) in [
        ("local", "PATCH", path.as_str(), json!({"description": "first"})),
        ("external", "POST", "/v1/refunds", refund),
    ] {
        let send =
            |app: &App, method: &'static str, path: &str, body: serde_json::Value, wait: &'static str| {
                let (client, path) = (app.client.as_merchant(&merchant), path.to_owned());
                thread::spawn(move || {
                    let request = client.request(method, &path).idempotency_key(name).header("Prefer", wait);
                    request.json(&body).send()
                })
            };
        let mut owner = database.as_owner();
        let (first, others, same) = diesel::Connection::transaction(&mut owner, |conn| {
            crate::support::lock_charges(conn)?;
            let first = send(&here, method, first_path, body.clone(), "wait=0");
            eventually("the first's wait for the lock", || database.long_lock_waits() > 0);
            let other_body = json!({"description": "second"});
            let others: Vec<_> = [&here, &there]
                .into_iter()
                .flat_map(|app| {
                    [
                        send(app, "PATCH", &path, other_body.clone(), "wait=10"),
                        send(app, "POST", "/v1/charges", visa(), "wait=10"),
                    ]
                })
                .collect();
            let same = send(&there, method, first_path, body.clone(), "wait=10");
            thread::sleep(Duration::from_millis(600));
            Ok::<_, diesel::result::Error>((first, others, same))
        })
        .unwrap();
        let first = first.join().unwrap();
        assert!(first.status < 300, "{}", first.text());
        for other in others {
            other.join().unwrap().expect_problem(422, "idempotency_key_reused");
        }
        let same = same.join().unwrap();
        assert!(same.is_replay(), "{}", same.text());
        assert_eq!(same.body, first.body);
    }
    assert_eq!(database.rows("charges"), 1);
}

#[test]
fn waiters_do_not_make_a_storm_of_what_fails() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording());
    let app = start(&database, &sandbox);
    let client = app.client.as_merchant(&database.merchant());
    execute(&mut database.as_owner(), "ALTER TABLE events ADD CONSTRAINT bug CHECK (false) NOT VALID");
    client.charge("k", &visa()).expect_problem(500, "internal");
    execute(
        &mut database.as_owner(),
        "UPDATE idempotency_keys SET lease_expires_at = statement_timestamp() + interval '500 ms' WHERE key = 'k'",
    );
    let waiters: Vec<_> = (0..60)
        .map(|_| {
            let client = client.clone();
            thread::spawn(move || waiting(&client, "k", &visa(), "wait=3"))
        })
        .collect();
    let answers: Vec<_> = waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect();
    assert!(answers.iter().all(|answer| matches!(answer.status, 500 | 409)));
    let tries = database.count("SELECT attempts FROM idempotency_keys") - 1;
    assert!((1..=10).contains(&tries), "{tries} tries in three seconds");
    execute(&mut database.as_owner(), "ALTER TABLE events DROP CONSTRAINT bug");
    client.charge("k", &visa()).expect(201);
}

/// What can't be taken over by a request, because the policy forgives that it's another one, isn't asked for all the time.
#[test]
fn a_wait_for_a_forgiven_mismatch_does_not_spin() {
    let database = TestDatabase::new();
    let app = start(&database, &Arc::new(Sandbox::recording()));
    let client = app.client.as_merchant(&database.merchant());
    client.get("/v1/idempotency-policies").expect(200);
    app.set_policy(&database, "on_mismatch = 'replay'");
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    let looks = || app.client.metrics().value("oncepay_db_pool_wait_duration_seconds_count", &[]);
    let before = looks();
    waiting(&client, "k", &visa(), "wait=3").expect_problem(409, "idempotency_request_in_progress");
    let looked = looks() - before;
    assert!(looked < 60.0, "{looked} times in three seconds");
    let first = client.charge("k", &with_method("pm_card_timeout")).expect(201);
    assert_eq!(waiting(&client, "k", &visa(), "wait=3").expect(201).body, first.body);
}

#[test]
fn a_client_that_hangs_up_waits_no_longer() {
    let database = TestDatabase::new();
    let app = start(&database, &Arc::new(Sandbox::recording()));
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let body = with_method("pm_card_timeout");
    client.charge("k", &body).expect_problem(503, "processor_unavailable");
    execute(
        &mut database.as_owner(),
        "UPDATE idempotency_keys SET lease_expires_at = statement_timestamp() + interval '1 hour' WHERE key = 'k'",
    );
    let waiters = || app.client.metrics().value("oncepay_idempotency_waiters", &[]);
    let address = app.client.base().trim_start_matches("http://").to_owned();
    let mut connection = std::net::TcpStream::connect(address).unwrap();
    let text = body.to_string();
    let request = format!(
        "POST /v1/charges HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nIdempotency-Key: k\r\nPrefer: wait=30\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
        merchant.key,
        text.len()
    );
    std::io::Write::write_all(&mut connection, request.as_bytes()).unwrap();
    eventually("the wait", || waiters() == 1.0);
    // A reset: that the client merely sends no more doesn't mean that it doesn't listen.
    socket2::SockRef::from(&connection).set_linger(Some(Duration::ZERO)).unwrap();
    drop(connection);
    eventually("its end", || waiters() == 0.0);
}

#[test]
fn a_local_operation_can_be_waited_for_too() {
    let database = TestDatabase::new();
    let app = start(&database, &Arc::new(Sandbox::recording()));
    let client = app.client.as_merchant(&database.merchant());
    let path = format!("/v1/charges/{}", client.charge("charge", &visa()).expect(201).field("id"));
    let patch = json!({"description": "new"});
    // The first holds its transaction open while it waits for the charge's lock.
    let mut owner = database.as_owner();
    let (first, second) = diesel::Connection::transaction(&mut owner, |conn| {
        crate::support::lock_charges(conn)?;
        let send = |prefer: &'static str| {
            let (client, path, patch) = (client.clone(), path.clone(), patch.clone());
            thread::spawn(move || {
                let request = client.request("PATCH", &path).idempotency_key("k");
                request.header("Prefer", prefer).json(&patch).send()
            })
        };
        let first = send("wait=0");
        eventually("the first's wait for the lock", || database.long_lock_waits() > 0);
        let second = send("wait=10");
        thread::sleep(Duration::from_millis(500));
        Ok::<_, diesel::result::Error>((first, second))
    })
    .unwrap();
    let freed = Instant::now();
    let first = first.join().unwrap().expect(200);
    let second = second.join().unwrap().expect(200);
    assert!(freed.elapsed() < Duration::from_secs(3), "{:?}", freed.elapsed());
    assert!(second.is_replay());
    assert_eq!(second.body, first.body);
}

/// Whose key is revoked meanwhile gets nothing, like anybody who sends a request again with a revoked key.
#[test]
fn who_waits_gets_no_answer_with_a_key_that_was_revoked_meanwhile() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording().with_slowness(Duration::from_secs(4)));
    let (here, there) = (start(&database, &sandbox), start(&database, &sandbox));
    let merchant = database.merchant();
    let client = here.client.as_merchant(&merchant);
    let issued = client.send("POST", "/v1/api-keys", "issue", &json!({"name": "stolen"})).expect(201).json();
    let (id, stolen) = (issued["id"].as_str().unwrap(), issued["key"].as_str().unwrap());
    let send = |app: &App, key: &str, path: &'static str, body: &serde_json::Value, prefer: &'static str| {
        let (client, body) = (app.client.with_key(key), body.clone());
        thread::spawn(move || {
            let request = client.request("POST", path).idempotency_key("k").header("Prefer", prefer);
            request.json(&body).send()
        })
    };
    let slow = with_method("pm_card_slow");
    let first = send(&here, &merchant.key, "/v1/charges", &slow, "wait=0");
    eventually("the claim", || database.count("SELECT count(*) FROM idempotency_keys WHERE key = 'k'") == 1);
    let strangers = [&here, &there].map(|app| send(app, stolen, "/v1/charges", &slow, "wait=20"));
    let others = [&here, &there].map(|app| send(app, &merchant.key, "/v1/charges", &slow, "wait=20"));
    let waiters = |app: &App| app.client.metrics().value("oncepay_idempotency_waiters", &[]);
    eventually("all waiting", || waiters(&here) == 2.0 && waiters(&there) == 2.0);
    let revocation = client.request("DELETE", &format!("/v1/api-keys/{id}")).idempotency_key("revoke");
    revocation.send().expect(200);
    let first = first.join().unwrap().expect(201);
    for stranger in strangers {
        stranger.join().unwrap().expect_problem(401, "api_key_revoked");
    }
    for other in others {
        let replay = other.join().unwrap().expect(201);
        assert!(replay.is_replay() && replay.body == first.body);
    }
}

/// Nor does the end of the wait tell it whether the request is still being executed.
#[test]
fn who_waits_in_vain_with_a_key_that_was_revoked_meanwhile_is_refused() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording().with_slowness(Duration::from_secs(5)));
    let app = start(&database, &sandbox);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let issued = client.send("POST", "/v1/api-keys", "issue", &json!({"name": "stolen"})).expect(201).json();
    let send = |key: &str, prefer: &'static str| {
        let client = app.client.with_key(key);
        thread::spawn(move || {
            let request = client.request("POST", "/v1/charges").idempotency_key("k").header("Prefer", prefer);
            request.json(&with_method("pm_card_slow")).send()
        })
    };
    let first = send(&merchant.key, "wait=0");
    eventually("the claim", || database.count("SELECT count(*) FROM idempotency_keys WHERE key = 'k'") == 1);
    let (other, stranger) = (send(&merchant.key, "wait=2"), send(issued["key"].as_str().unwrap(), "wait=2"));
    let waiters = || app.client.metrics().value("oncepay_idempotency_waiters", &[]);
    eventually("both waiting", || waiters() == 2.0);
    database.revoke(issued["key"].as_str().unwrap());
    stranger.join().unwrap().expect_problem(401, "api_key_revoked");
    let refused = other.join().unwrap().expect_problem(409, "idempotency_request_in_progress");
    assert_eq!(refused.header("Preference-Applied"), Some("wait=2"));
    first.join().unwrap().expect(201);
}

#[test]
fn who_waits_as_an_operator_with_a_revoked_key_gets_no_answer_either() {
    let database = TestDatabase::new();
    let sandbox = Arc::new(Sandbox::recording());
    let (here, there) = (start(&database, &sandbox), start(&database, &sandbox));
    let (kept, revoked) = (database.operator_key(), database.operator_key());
    let path = "/v1/operator/idempotency-policies/charges.create";
    let body = json!({"wait_max_seconds": 20});
    here.client.with_key(&kept).get(path).expect(200);
    // The first holds its transaction open while it waits for the policy's lock.
    let mut owner = database.as_owner();
    let (first, second, stranger) = diesel::Connection::transaction(&mut owner, |conn| {
        diesel::RunQueryDsl::execute(
            diesel::sql_query(
                "SELECT FROM idempotency_policies WHERE operation = 'charges.create' FOR UPDATE",
            ),
            conn,
        )?;
        let send = |app: &App, key: &str, prefer: &'static str| {
            let (client, body) = (app.client.with_key(key), body.clone());
            thread::spawn(move || {
                client.request("PUT", path).idempotency_key("k").header("Prefer", prefer).json(&body).send()
            })
        };
        let first = send(&here, &kept, "wait=0");
        eventually("the first's wait for the lock", || database.lock_waits() > 0);
        let (second, stranger) = (send(&there, &kept, "wait=10"), send(&there, &revoked, "wait=10"));
        let waiters = || there.client.metrics().value("oncepay_idempotency_waiters", &[]);
        eventually("both waiting", || waiters() == 2.0);
        execute(
            &mut database.as_owner(),
            &format!("UPDATE operator_keys SET revoked_at = now() WHERE key_sha256 = sha256('{revoked}')"),
        );
        Ok::<_, diesel::result::Error>((first, second, stranger))
    })
    .unwrap();
    let first = first.join().unwrap().expect(200);
    let second = second.join().unwrap().expect(200);
    assert!(second.is_replay() && second.body == first.body);
    stranger.join().unwrap().expect_problem(401, "api_key_revoked");
}
