//! Requests that share statements stay each on its own.

use std::cell::Cell;
use std::iter;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use diesel::Connection;
use serde_json::{Value, json};

use crate::support::*;

/// Half of the connections: so many changes run alone before others share a transaction.
pub const ALONE_MAX: i64 = app::POOL_SIZE as i64 / 2;

/// An answer to come.
pub type Pending = JoinHandle<Response>;

fn send(client: &Client, key: &str, body: &Value) -> Pending {
    let (client, key, body) = (client.clone(), key.to_owned(), body.clone());
    thread::spawn(move || client.charge(&key, &body))
}

fn of_amount(amount: &str) -> Value {
    json!({"amount": amount, "currency": "USD", "payment_method": "pm_card_visa"})
}

/// Waits until `count` requests wait for the database: they have been read, and who is asked first can't be told any more by
/// when they came.
fn arrive(client: &Client, count: usize) {
    eventually("their arrival", || {
        client.metrics().value("oncepay_db_waiting_requests", &[]) >= count as f64
    });
}

/// Runs `send` while no statement on the table of keys gets through, so that what is sent gathers.
pub fn gathered<T>(database: &TestDatabase, client: &Client, send: impl FnOnce() -> (usize, T)) -> T {
    gathered_at("idempotency_keys", database, client, send)
}

/// The same with another table.
fn gathered_at<T>(
    table: &str,
    database: &TestDatabase,
    client: &Client,
    send: impl FnOnce() -> (usize, T),
) -> T {
    let mut conn = database.as_owner();
    conn.transaction::<_, diesel::result::Error, _>(|conn| {
        execute(conn, &format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"));
        let (count, sent) = send();
        arrive(client, count);
        Ok(sent)
    })
    .unwrap()
}

/// Has the database do something when a charge of 6.66 is written.
fn on_writing_6_66(database: &TestDatabase, does: &str) {
    let mut owner = database.as_owner();
    execute(
        &mut owner,
        &format!(
            "CREATE FUNCTION on_6_66() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN IF NEW.amount = 6.66 THEN {does}; END IF; RETURN NEW; END $$"
        ),
    );
    execute(
        &mut owner,
        "CREATE TRIGGER on_6_66 BEFORE INSERT ON charges FOR EACH ROW EXECUTE FUNCTION on_6_66()",
    );
}

/// How many batches there were of a step, and of how many requests.
pub fn batches(app: &App, step: &str) -> (f64, f64) {
    let metrics = app.client.metrics();
    let of = |what| metrics.value(&format!("oncepay_idempotency_batch_size_{what}"), &[("step", step)]);
    (of("count"), of("sum"))
}

#[test]
fn each_of_a_batch_gets_its_own_answer() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchants: Vec<Merchant> = (0..3).map(|_| database.merchant()).collect();
    let clients: Vec<Client> = merchants.iter().map(|merchant| app.client.as_merchant(merchant)).collect();
    let revoked = app.client.as_merchant(&merchants[2]);
    let first = clients[0].charge("first", &of_amount("9.00")).expect(201);
    clients[1].charge("first", &of_amount("9.00")).expect(201);
    // Known to the instance as valid, so that only the database can tell.
    revoked.charge("first", &of_amount("9.00")).expect(201);
    database.revoke(&merchants[2].key);
    let (batches_before, requests_before) = batches(&app, "claim");

    let (charges, duplicates, replay, reused, strangers) = gathered(&database, &app.client, || {
        let charges: Vec<(usize, Pending)> = (0..20)
            .map(|n| (n, send(&clients[n % 2], &format!("key-{}", n / 2), &of_amount(&format!("{n}.50")))))
            .collect();
        let duplicates: Vec<Pending> =
            (0..5).map(|_| send(&clients[0], "same", &of_amount("7.00"))).collect();
        let replay = send(&clients[0], "first", &of_amount("9.00"));
        let reused = send(&clients[1], "first", &of_amount("8.00"));
        let strangers: Vec<Pending> = (0..3).map(|n| send(&revoked, &format!("r-{n}"), &visa())).collect();
        let count = charges.len() + duplicates.len() + 2 + strangers.len();
        (count, (charges, duplicates, replay, reused, strangers))
    });

    for (n, charge) in charges {
        let charge = charge.join().unwrap().expect(201);
        assert!(!charge.is_replay());
        assert_eq!(charge.field("amount"), format!("{n}.50"));
        let own = clients[n % 2].charge(&format!("key-{}", n / 2), &of_amount(&format!("{n}.50")));
        assert_eq!(own.expect(201).body, charge.body);
    }
    let duplicates: Vec<Response> = duplicates.into_iter().map(|sent| sent.join().unwrap()).collect();
    assert_eq!(duplicates.iter().filter(|r| r.status == 201 && !r.is_replay()).count(), 1);
    for duplicate in duplicates.into_iter().filter(|r| r.status != 201) {
        duplicate.expect_problem(409, "idempotency_request_in_progress");
    }
    let replay = replay.join().unwrap().expect(201);
    assert!(replay.is_replay());
    assert_eq!(replay.body, first.body);
    reused.join().unwrap().expect_problem(422, "idempotency_key_reused");
    for stranger in strangers {
        stranger.join().unwrap().expect_problem(401, "api_key_revoked");
    }
    assert_eq!(database.rows("charges"), 3 + 20 + 1);
    let (batches_after, requests_after) = batches(&app, "claim");
    assert!(
        batches_after - batches_before < (requests_after - requests_before) * 0.8,
        "they didn't share: {} statements for {} requests",
        batches_after - batches_before,
        requests_after - requests_before
    );
}

#[test]
fn what_arrives_while_a_connection_is_fetched_is_one_batch() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("first", &visa()).expect(201);
    // The readers give up their connections after two seconds: on a busy machine, before ten requests have come.
    let came = (0..5).any(|round| ten_arrive_while_connections_are_fetched(&database, &app, &client, round));
    assert!(came, "ten requests never waited at a time");
}

/// Whether ten charges came to wait while readers had all connections. If so, they must have been one batch.
fn ten_arrive_while_connections_are_fetched(
    database: &TestDatabase,
    app: &App,
    client: &Client,
    round: u32,
) -> bool {
    let value = |name, labels: &[_]| app.client.metrics().value(name, labels);
    let before = batches(app, "claim");
    let (came, readers, charges) = database
        .as_owner()
        .transaction::<_, diesel::result::Error, _>(|conn| {
            execute(conn, "LOCK TABLE refunds IN ACCESS EXCLUSIVE MODE");
            let readers: Vec<_> = (0..app::POOL_SIZE)
                .map(|_| {
                    let client = client.clone();
                    thread::spawn(move || client.get("/v1/refunds"))
                })
                .collect();
            eventually("all connections are in use", || {
                value("oncepay_db_pool_in_use", &[]) >= f64::from(app::POOL_SIZE)
            });
            let charges: Vec<_> =
                (0..10).map(|n| send(client, &format!("key-{round}-{n}"), &visa())).collect();
            let until = Instant::now() + Duration::from_secs(1);
            let mut came = false;
            while !came && Instant::now() < until {
                came = value("oncepay_idempotency_batch_waiting", &[("step", "claim")]) >= 10.0;
            }
            Ok((came, readers, charges))
        })
        .unwrap();
    for charge in charges {
        charge.join().unwrap().expect(201);
    }
    let read: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap().status).collect();
    let all_read = read.iter().all(|status| *status == 200);
    if !came || !all_read {
        return false;
    }
    let after = batches(app, "claim");
    assert_eq!((after.0 - before.0, after.1 - before.1), (1.0, 10.0));
    true
}

#[test]
fn a_look_that_fails_fails_for_nobody_else() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let charge = client.charge("bad", &visa()).expect(201);
    for statement in [
        "CREATE FUNCTION is_read(key text) RETURNS boolean LANGUAGE plpgsql AS \
         $$ BEGIN IF key = 'bad' THEN RAISE 'it is bad'; END IF; RETURN true; END $$",
        "ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY read ON idempotency_keys USING (is_read(key)) WITH CHECK (true)",
    ] {
        execute(&mut database.as_owner(), statement);
    }
    let mut sent = gathered(&database, &app.client, || {
        let keys = ["bad", "a", "b", "c", "d"];
        (5, keys.iter().map(|key| send(&client, key, &visa())).collect::<Vec<_>>())
    });
    for good in sent.drain(1..) {
        good.join().unwrap().expect(201);
    }
    sent.remove(0).join().unwrap().expect_problem(500, "internal");
    execute(&mut database.as_owner(), "ALTER TABLE idempotency_keys DISABLE ROW LEVEL SECURITY");
    let again = client.charge("bad", &visa()).expect(201);
    assert!(again.is_replay() && again.body == charge.body);
    assert_eq!(database.rows("charges"), 5);
}

#[test]
fn of_a_batch_those_that_are_alike_name_the_one_before() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let clients =
        [app.client.as_merchant(&database.merchant()), app.client.as_merchant(&database.merchant())];
    for client in &clients {
        client.charge("first", &of_amount("9.00")).expect(201);
    }
    let order = |amount: &str, card: &str| json!({"amount": amount, "currency": "USD", "payment_method": card, "reference": "1"});
    let alike = order("5.00", "pm_card_visa");
    let (batches_before, requests_before) = batches(&app, "finish");
    let (same, others) = gathered(&database, &app.client, || {
        let same: Vec<Pending> = (0..6).map(|n| send(&clients[0], &format!("same-{n}"), &alike)).collect();
        let others = vec![
            send(&clients[1], "another-merchant", &alike),
            send(&clients[0], "another-amount", &order("5.01", "pm_card_visa")),
            send(&clients[0], "another-card", &order("5.00", "pm_card_slow")),
            send(&clients[0], "declined", &order("5.00", "pm_card_declined")),
            send(&clients[0], "no-reference", &of_amount("5.00")),
        ];
        (11, (same, others))
    });
    let name = "Suspected-Duplicate-Of";
    for answer in others.into_iter().map(|pending| pending.join().unwrap()) {
        assert_eq!(answer.header(name), None, "{}", answer.text());
    }
    let same: Vec<Response> = same.into_iter().map(|pending| pending.join().unwrap().expect(201)).collect();
    let ids: Vec<String> = same.iter().map(|answer| answer.field("id")).collect();
    let named: Vec<Option<&str>> = same.iter().map(|answer| answer.header(name)).collect();
    assert_eq!(
        named.iter().flatten().count(),
        5,
        "the first names none, and each other one names one: {named:?}"
    );
    for (id, other) in ids.iter().zip(&named) {
        // The latest by its id, which may be the same one for two that were written by different statements: ids are
        // allocated with the claims, and written in any order.
        assert!(
            other.is_none_or(|other| other != id && ids.iter().any(|id| id == other)),
            "{named:?} of {ids:?}"
        );
    }
    let (batches, requests) = batches(&app, "finish");
    assert_eq!(requests - requests_before, 11.0);
    assert!(batches - batches_before < 11.0, "they shared statements");
}

#[test]
fn what_fails_for_one_does_not_fail_the_others() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    on_writing_6_66(&database, "RAISE EXCEPTION 'no' USING ERRCODE = 'raise_exception'");
    let (good, bad) = gathered(&database, &app.client, || {
        let good: Vec<Pending> =
            (0..20).map(|n| send(&client, &format!("good-{n}"), &of_amount("5.00"))).collect();
        let bad: Vec<Pending> =
            (0..2).map(|n| send(&client, &format!("bad-{n}"), &of_amount("6.66"))).collect();
        (22, (good, bad))
    });
    for good in good {
        assert!(!good.join().unwrap().expect(201).is_replay());
    }
    for bad in bad {
        bad.join().unwrap().expect_problem(500, "internal");
    }
    assert_eq!(database.rows("charges"), 20);
    execute(&mut database.as_owner(), "DROP TRIGGER on_6_66 ON charges");
    for n in 0..2 {
        client.charge(&format!("bad-{n}"), &of_amount("6.66")).expect(201);
    }
}

#[test]
fn a_row_that_somebody_has_locked_does_not_hold_up_the_others() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let slow = send(&client, "slow", &with_method("pm_card_slow"));
    let claimed = "SELECT count(*) FROM idempotency_keys WHERE key = 'slow' AND state = 'in_progress'";
    eventually("the claim", || database.count(claimed) == 1);
    let mut conn = database.as_owner();
    conn.transaction::<_, diesel::result::Error, _>(|conn| {
        execute(conn, "SELECT 1 FROM idempotency_keys WHERE key = 'slow' FOR UPDATE");
        // Until the slow one comes to its end and waits for the lock, however long that takes: with a statement of its
        // own, not the one that it shares with others.
        let waits = |statement| {
            database.count(&format!(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND query LIKE '{statement}%'"
            ))
        };
        eventually("the wait for the lock", || {
            client.charge(&fresh_key(), &visa()).expect(201);
            assert_eq!(waits("WITH held"), 0);
            waits("SELECT claim_token") == 1
        });
        Ok(())
    })
    .unwrap();
    assert!(!slow.join().unwrap().expect(201).is_replay());
}

#[test]
fn what_is_stuck_does_not_hold_up_what_comes_later() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    on_writing_6_66(&database, "PERFORM pg_sleep(3)");
    // Makes the merchant's accounts, for which others would have to wait.
    client.charge("first", &visa()).expect(201);
    let stuck = send(&client, "stuck", &of_amount("6.66"));
    let asleep =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually("the sleep", || database.count(asleep) == 1);
    for _ in 0..5 {
        client.charge(&fresh_key(), &visa()).expect(201);
    }
    assert!(!stuck.is_finished(), "they waited for it");
    stuck.join().unwrap().expect(201);
}

#[test]
fn a_charge_pays_the_price_of_its_first_claim_however_late_it_is_made() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let operator = app.client.with_key(&database.operator_key());
    let before = client.charge("before", &visa()).expect(201);
    client.charge("k", &with_method("pm_card_timeout")).expect_problem(503, "processor_unavailable");
    let path = format!("/v1/operator/merchants/{}/pricing", merchant.id);
    operator.send("POST", &path, "p", &json!({"fee_rate": "0.5", "fee_fixed": "0.00"})).expect(201);
    let resumed = client.charge("k", &with_method("pm_card_timeout")).expect(201);
    assert_eq!(resumed.field("fee"), before.field("fee"));
    assert_eq!(client.charge("after", &visa()).expect(201).field("fee"), "6.25");
}

#[test]
fn times_are_the_same_wherever_they_are_shown() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    for n in 0..20 {
        client.charge(&format!("k{n}"), &visa()).expect(201);
    }
    let stored = "SELECT count(*) FROM charges c JOIN events e ON e.merchant_id = c.merchant_id AND e.object_id = c.id \
        WHERE (e.data->>'captured_at')::timestamptz <> date_trunc('milliseconds', c.captured_at) \
            OR c.captured_at < c.created_at";
    assert_eq!(database.count(stored), 0);
}

/// How many keys of `merchant` were claimed before `key`.
fn claimed_before(database: &TestDatabase, merchant: &Merchant, key: &str) -> i64 {
    database.count(&format!(
        "SELECT count(*) FROM idempotency_keys WHERE merchant_id = '{}' AND key LIKE 'many-%' \
         AND created_at < (SELECT created_at FROM idempotency_keys WHERE key = '{key}')",
        merchant.id.0
    ))
}

/// Like [`gathered`], and waits until all that was sent but `alone` is in the queue of the batches of `step`, or was taken out.
/// Also returns how many were, with the lonely ones: they are under way.
fn gathered_in_queue(
    database: &TestDatabase,
    app: &App,
    step: &str,
    alone: i64,
    send: impl FnOnce() -> (usize, Vec<Pending>),
) -> (i64, Vec<Pending>) {
    let (taken_before, taken) = (batches(app, step).1, Cell::new(0.0));
    let sent = gathered(database, &app.client, || {
        let (count, sent) = send();
        eventually("their place in the queue", || {
            taken.set(batches(app, step).1 - taken_before);
            let waiting = app.client.metrics().value("oncepay_idempotency_batch_waiting", &[("step", step)]);
            taken.get() + waiting >= count as f64 - alone as f64
        });
        (count, sent)
    });
    let taken = taken.get() as i64 + alone;
    assert!(taken <= 40, "they took too long to arrive: {taken}");
    (taken, sent)
}

/// Number of requests of the merchant with many.
const MANY: usize = 128;

/// Asserts that of [`MANY`], fewer than half of those that waited were before the one of another merchant. Without turns
/// all were. How many are depends on the system, too: the batch that has it may be the last that gets a processor once
/// the lock is released, and the others go on meanwhile.
fn assert_came_early(earlier: i64, under_way: i64) {
    let bound = under_way + (MANY as i64 - under_way) / 2;
    assert!(earlier < bound, "{earlier} of {MANY} came first, and {under_way} were under way");
}

/// Sends `count` requests of one merchant and, once they have arrived, those of others.
fn many_then_few(
    app: &App,
    count: usize,
    many: impl Fn(usize) -> Pending,
    few: impl IntoIterator<Item = Pending>,
) -> (usize, Vec<Pending>) {
    let mut sent: Vec<Pending> = (0..count).map(many).collect();
    arrive(&app.client, count);
    sent.extend(few);
    (sent.len(), sent)
}

#[test]
fn a_charge_waits_for_one_batch_of_a_merchant_with_many_and_not_for_all() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.batch_size_max = 4);
    let merchants = [database.merchant(), database.merchant()];
    let [many, few] = [0, 1].map(|n| app.client.as_merchant(&merchants[n]));
    for client in [&many, &few] {
        client.charge("first", &visa()).expect(201);
    }
    let (taken, sent) = gathered_in_queue(&database, &app, "claim", 0, || {
        let few = iter::once_with(|| send(&few, "few", &visa()));
        many_then_few(&app, MANY, |n| send(&many, &format!("many-{n}"), &visa()), few)
    });
    for answer in sent {
        answer.join().unwrap().expect(201);
    }
    assert_came_early(claimed_before(&database, &merchants[0], "few"), taken);
}

#[test]
fn a_change_waits_for_one_turn_of_a_merchant_with_many_and_not_for_all() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.batch_size_max = 4);
    // Several others: changes of the merchant with many hold up only those of the same lane.
    let merchants = [(); 7].map(|()| database.merchant());
    let clients: Vec<_> = merchants.iter().map(|merchant| app.client.as_merchant(merchant)).collect();
    let patches: Vec<_> = clients
        .iter()
        .map(|client| {
            let charge = client.charge("first", &visa()).expect(201);
            let path = format!("/v1/charges/{}", charge.field("id"));
            move |key: String| -> Pending {
                let (client, path) = (client.clone(), path.clone());
                thread::spawn(move || {
                    client.send("PATCH", &path, &key, &json!({"metadata": {"key": key.clone()}}))
                })
            }
        })
        .collect();
    let (taken, sent) = gathered_in_queue(&database, &app, "begin", ALONE_MAX, || {
        let few = patches[1..].iter().zip(1..).map(|(patch, n)| patch(format!("few-{n}")));
        many_then_few(&app, MANY, |n| patches[0](format!("many-{n}")), few)
    });
    for answer in sent {
        answer.join().unwrap().expect(200);
    }
    for n in 1..merchants.len() {
        assert_came_early(claimed_before(&database, &merchants[0], &format!("few-{n}")), taken);
    }
}

#[test]
fn a_read_waits_for_one_turn_of_a_merchant_with_many_and_not_for_all() {
    if cluster::differs("requests share nothing there") {
        return;
    }
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.pool_size = 2);
    let clients = [0, 1].map(|_| app.client.as_merchant(&database.merchant()));
    let paths = [0, 1].map(|n| {
        let charge = clients[n].charge("first", &visa()).expect(201);
        format!("/v1/charges/{}", charge.field("id"))
    });
    // Each read notes itself, and takes a while.
    for statement in [
        "CREATE SEQUENCE turns",
        "CREATE TABLE reads (turn bigint DEFAULT nextval('turns'), charge uuid)",
        "CREATE FUNCTION note_read(charge uuid) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS \
         $$ BEGIN INSERT INTO reads (charge) VALUES (charge); PERFORM pg_sleep(0.01); RETURN true; END $$",
        "ALTER TABLE charges ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY noted ON charges USING (note_read(id))",
    ] {
        execute(&mut database.as_owner(), statement);
    }
    let read = |n: usize| -> Pending {
        let (client, path) = (clients[n].clone(), paths[n].clone());
        thread::spawn(move || client.get(&path))
    };
    let sent = gathered_at("charges", &database, &app.client, || {
        many_then_few(&app, 40, |_| read(0), iter::once_with(|| read(1)))
    });
    for answer in sent {
        answer.join().unwrap().expect(200);
    }
    let (_, one) = paths[1].split_once("ch_").unwrap();
    let earlier = database.count(&format!(
        "SELECT coalesce((SELECT min(turn) FROM reads WHERE charge = '{one}'), 42) - (SELECT min(turn) FROM reads)"
    ));
    execute(&mut database.as_owner(), "ALTER TABLE charges DISABLE ROW LEVEL SECURITY");
    assert!(earlier <= 20, "{earlier} of 40 came first");
}

#[test]
fn strangers_who_name_a_merchant_take_none_of_its_places() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.waiting_max = 8);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    client.get("/v1/charges").expect(200);
    let sent = gathered_at("api_keys", &database, &app.client, || {
        let strangers = (0..8).map(|n| {
            let stranger = app.client.with_key(&format!("{}{n}", &merchant.key[..merchant.key.len() - 1]));
            thread::spawn(move || stranger.get("/v1/charges"))
        });
        let mut sent: Vec<Pending> = strangers.collect();
        eventually("their places", || app.client.metrics().value("oncepay_db_waiting_requests", &[]) >= 8.0);
        let client = client.clone();
        sent.push(thread::spawn(move || client.get("/v1/charges")));
        eventually("its place", || app.client.metrics().value("oncepay_db_waiting_requests", &[]) >= 9.0);
        (9, sent)
    });
    let statuses: Vec<_> = sent.into_iter().map(|answer| answer.join().unwrap().status).collect();
    assert_eq!(statuses.last(), Some(&200));
    // One of them may have guessed the last digit.
    assert!(statuses[..8].iter().filter(|status| **status == 401).count() >= 7, "{statuses:?}");
}

#[test]
fn who_waits_for_the_processor_does_not_wait_for_the_database() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.waiting_max = 4);
    let client = app.client.as_merchant(&database.merchant());
    let sent: Vec<Pending> = (1..=8)
        .map(|n| {
            let pending = send(&client, &format!("slow-{n}"), &with_method("pm_card_slow"));
            eventually("its claim", || database.rows("idempotency_keys") == n);
            pending
        })
        .collect();
    for answer in sent {
        answer.join().unwrap().expect(201);
    }
}

#[test]
fn whoever_fills_the_queue_is_refused_and_nobody_else() {
    let database = TestDatabase::new();
    let app = App::start_with(&database, |config| config.waiting_max = 8);
    let [many, few] = [0, 1].map(|_| app.client.as_merchant(&database.merchant()));
    for client in [&many, &few] {
        client.charge("first", &visa()).expect(201);
    }
    let mut conn = database.as_owner();
    let (answers, other) = conn
        .transaction::<_, diesel::result::Error, _>(|conn| {
            execute(conn, "LOCK TABLE idempotency_keys IN ACCESS EXCLUSIVE MODE");
            let sent: Vec<_> = (0..12).map(|n| (n, send(&many, &format!("many-{n}"), &visa()))).collect();
            let refused = || sent.iter().filter(|(_, answer)| answer.is_finished()).count();
            eventually("the refusals", || refused() == 4);
            let other = send(&few, "few", &visa());
            eventually("their arrival", || {
                app.client.metrics().value("oncepay_db_waiting_requests", &[]) >= 9.0
            });
            assert_eq!(refused(), 4);
            Ok((sent, other))
        })
        .unwrap();
    other.join().unwrap().expect(201);
    let mut refused = 0;
    for (n, answer) in answers {
        let answer = answer.join().unwrap();
        if answer.status == 503 {
            let wait: u32 = answer.header("Retry-After").unwrap().parse().unwrap();
            assert!((1..=3).contains(&wait));
            answer.expect_problem(503, "overloaded");
            let again = many.charge(&format!("many-{n}"), &visa()).expect(201);
            assert!(!again.is_replay());
            refused += 1;
        } else {
            answer.expect(201);
        }
    }
    assert_eq!(refused, 4);
    assert_eq!(database.rows("charges"), 2 + 12 + 1);
    assert!(app.client.metrics().value("oncepay_overloads_total", &[]) >= 4.0);
    eventually("the empty queue", || app.client.metrics().value("oncepay_db_waiting_requests", &[]) == 0.0);
}
