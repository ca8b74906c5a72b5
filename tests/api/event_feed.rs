//! `GET /v1/events?after=`: events for clients that poll.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use diesel::connection::SimpleConnection;
use serde_json::{Value, json};

use crate::support::*;

fn page(client: &Client, query: &str) -> Value {
    let page = client.get(&format!("/v1/events?{query}")).expect(200).json();
    assert!(page["next"].is_string(), "{page}");
    page
}

fn ids(page: &Value) -> Vec<String> {
    page["data"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

fn next(page: &Value) -> &str {
    page["next"].as_str().unwrap()
}

/// Ids of all events, oldest first.
fn all(client: &Client) -> Vec<String> {
    let mut all = ids(&client.get("/v1/events?limit=100").expect(200).json());
    all.reverse();
    all
}

/// Ids of `count` events after `cursor`, and the cursor after them. Other tests' transactions on this server hold the feed
/// up for a moment.
fn read(client: &Client, cursor: &str, count: usize) -> (Vec<String>, String) {
    let (mut seen, mut cursor) = (Vec::new(), cursor.to_owned());
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < deadline, "of {count} events there are {seen:?}");
        let page = page(client, &format!("after={cursor}"));
        seen.extend(ids(&page));
        next(&page).clone_into(&mut cursor);
        if seen.len() >= count {
            return (seen, cursor);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_event_that_commits_late_is_not_skipped() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("before", &visa()).expect(201);
    let (seen, cursor) = read(&client, "", 1);
    // A transaction that has recorded its event, and hasn't committed.
    let mut slow = database.as_app();
    slow.batch_execute("BEGIN").unwrap();
    let merchant = database.text("SELECT merchant_id FROM merchants");
    let data = database.text("SELECT data::text FROM events");
    let insert = if cluster::is_distributed() {
        // There, the number of the transaction is told to the merchant's node.
        format!(
            "SELECT event_record('{merchant}', jsonb_build_object('type', 'charge.updated', 'object_id', uuid_v7(), \
                 'data', '{data}'::jsonb))"
        )
    } else {
        format!(
            "INSERT INTO events (merchant_id, id, type, object_id, data) \
             VALUES ('{merchant}', uuid_v7(), 'charge.updated', uuid_v7(), '{data}')"
        )
    };
    slow.batch_execute(&insert).unwrap();
    client.charge("during", &visa()).expect(201);
    let during = all(&client)[1].clone();
    let held = page(&client, &format!("after={cursor}"));
    assert_eq!(
        (ids(&held), &held["has_more"]),
        (vec![], &json!(false)),
        "it may be that an earlier one commits"
    );
    assert_eq!(ids(&page(&client, "after=")), seen);
    let from_now = page(&client, "after=now");
    let from_the_newest = page(&client, &format!("after={during}"));
    assert_eq!(ids(&from_the_newest), Vec::<String>::new());
    slow.batch_execute("COMMIT").unwrap();

    let all = all(&client);
    assert_eq!((all.len(), &all[2]), (3, &during), "the late one has the older id");
    let newer = client.get(&format!("/v1/events?ending_before={during}")).expect(200).json();
    assert_eq!(ids(&newer), Vec::<String>::new(), "which is why the list by ids leaves it out");
    for start in [cursor.as_str(), next(&held), next(&from_now), next(&from_the_newest)] {
        assert_eq!(read(&client, start, 2).0, all[1..], "{start}");
    }
    assert_eq!(
        ids(&page(&client, &format!("after={during}"))),
        Vec::<String>::new(),
        "nothing can come before it"
    );
}

#[test]
fn pages_go_on_where_the_last_one_ended() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    app.client.as_merchant(&database.merchant()).charge("other", &visa()).expect(201);
    let nothing = page(&client, "after=");
    assert_eq!((ids(&nothing), &nothing["has_more"]), (vec![], &json!(false)));
    for number in 0..5 {
        client.charge(&number.to_string(), &visa()).expect(201);
    }
    let declined = client.charge("declined", &with_method("pm_card_declined")).expect(402).field("charge_id");
    let all = all(&client);
    assert_eq!(read(&client, next(&nothing), 6).0, all);

    let mut pages = vec![page(&client, "after=&limit=2")];
    while pages[pages.len() - 1]["has_more"] == true {
        pages.push(page(&client, &format!("limit=2&after={}", next(&pages[pages.len() - 1]))));
    }
    assert_eq!(pages.iter().map(ids).collect::<Vec<_>>(), [&all[..2], &all[2..4], &all[4..]]);
    let end = next(&pages[2]);
    assert_eq!(ids(&page(&client, &format!("after={end}"))), Vec::<String>::new());
    assert_eq!(ids(&page(&client, &format!("after={}", all[3]))), all[4..]);
    assert_eq!(ids(&page(&client, "after=now")), Vec::<String>::new());

    let failed = page(&client, "type=charge.failed&after=");
    assert_eq!((ids(&failed), &failed["has_more"]), (all[5..].to_vec(), &json!(false)));
    let of_object = page(&client, &format!("limit=1&object_id={declined}&after={}", all[0]));
    assert_eq!((ids(&of_object), &of_object["has_more"]), (all[5..].to_vec(), &json!(false)));
    let two = page(&client, "type=charge.succeeded&limit=4&after=");
    assert_eq!((ids(&two), &two["has_more"]), (all[..4].to_vec(), &json!(true)));
    assert_eq!(ids(&page(&client, &format!("type=charge.succeeded&after={}", next(&two)))), all[4..5]);
    let at = client.get(&format!("/v1/events/{}", all[4])).field("created_at");
    assert!(ids(&page(&client, &format!("after=&created_after={at}"))).contains(&all[5]));
    assert!(!ids(&page(&client, &format!("after=&created_before={at}"))).contains(&all[4]));
}

#[test]
fn a_page_with_a_filter_looks_at_some_events_and_goes_on() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("first", &visa()).expect(201);
    let many = "INSERT INTO events (merchant_id, id, type, object_id, data) \
                SELECT merchant_id, uuid_v7(), 'payout.paid', uuid_v7(), '{}' FROM events, generate_series(1, 1500)";
    execute(&mut database.as_app(), many);
    client.charge("last", &with_method("pm_card_declined")).expect(402);
    let last = client.get("/v1/events?limit=1").expect(200).json();
    let mut cursor = String::new();
    let (mut found, mut pages) = (Vec::new(), 0);
    while found.is_empty() {
        let page = page(&client, &format!("type=charge.failed&after={cursor}"));
        found.extend(ids(&page));
        pages += usize::from(page["has_more"] == true);
        next(&page).clone_into(&mut cursor);
    }
    assert_eq!(found, ids(&last));
    assert_eq!(pages, 1, "pages that end before all has been looked at");
}

#[test]
fn a_bad_cursor_is_named() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    client.charge("k", &visa()).expect(201);
    let id = all(&client)[0].clone();
    let stranger = app.client.as_merchant(&database.merchant());
    let refused = stranger.get(&format!("/v1/events?after={id}")).expect_problem(422, "validation_failed");
    assert_eq!(refused.pointers(), ["/after"], "another merchant's event");
    for query in [
        "after=x".to_owned(),
        "after=0".to_owned(),
        "after=c1_".to_owned(),
        "after=evt_00000000000070008000000000000000".to_owned(),
        format!("after={}", id.replace("evt_", "ch_")),
        format!("after=now&starting_after={id}"),
        format!("after=&ending_before={id}"),
    ] {
        let refused = client.get(&format!("/v1/events?{query}")).expect_problem(422, "validation_failed");
        assert_eq!(refused.pointers(), ["/after"], "{query}");
    }
    let refused = client.get("/v1/charges?after=now").expect_problem(422, "validation_failed");
    assert_eq!(refused.pointers(), ["/after"], "no other list has it");
}

/// A cursor of transactions that are so many later.
fn later(cursor: &str, transactions: i64) -> String {
    let mut bytes = URL_SAFE_NO_PAD.decode(cursor.strip_prefix("c1_").unwrap()).unwrap();
    let transaction = i64::from_be_bytes(bytes[4..12].try_into().unwrap()) + transactions;
    bytes[4..12].copy_from_slice(&transaction.to_be_bytes());
    format!("c1_{}", URL_SAFE_NO_PAD.encode(bytes))
}

#[test]
fn cursors_survive_a_restore_in_another_cluster() {
    const AHEAD: i64 = 1_000_000_000;
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    for key in ["1", "2"] {
        client.charge(key, &visa()).expect(201);
    }
    read(&client, "", 2);
    let first = page(&client, "after=&limit=1");
    // As if both had been written where transactions were further: they are restored here.
    let ahead =
        format!("UPDATE events SET transaction_id = (transaction_id::text::bigint + {AHEAD})::text::xid8");
    execute(&mut database.as_owner(), &ahead);
    let cursor = later(next(&first), AHEAD);
    let refused = client.get(&format!("/v1/events?after={cursor}")).expect_problem(422, "validation_failed");
    assert_eq!(refused.pointers(), ["/after"], "no transaction is so far");
    assert!(refused.text().contains("another database"));

    execute(&mut database.as_owner(), "UPDATE event_feed SET cluster = 'elsewhere/00000001'");
    assert_eq!(ids(&page(&client, &format!("after={cursor}"))), all(&client)[1..], "what was restored");
    client.charge("3", &visa()).expect(201);
    assert_eq!(read(&client, &cursor, 2).0, all(&client)[1..]);
    assert_eq!(read(&client, "", 3).0, all(&client));
    // Seconds, so that another restore of the same backup doesn't begin the same epoch.
    assert!(database.count("SELECT epoch FROM event_feed") > 1_000_000);
    // And so it goes on, without another epoch.
    oncepay::storage::migrations::migrate(&mut database.as_owner()).unwrap();
    client.charge("4", &visa()).expect(201);
    assert_eq!(read(&client, &all(&client)[2], 1).0, all(&client)[3..]);
    assert_eq!(database.count("SELECT count(DISTINCT epoch) FROM events"), 2);
}
