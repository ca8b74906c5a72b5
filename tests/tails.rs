//! `oncepay events tail`, `charges tail` and `keys tail`: what happens is printed once and in its order, whatever goes away
//! meanwhile.

use std::io::{BufRead, BufReader};
use std::process::Command;

use serde_json::{Value, json};

use crate::command_line::are_told;
use crate::support::database::exposed;
use crate::support::running::Running;
use crate::support::*;

fn oncepay(arguments: &[&str], url: &str, api_key: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncepay"));
    command.args(arguments).env("ONCEPAY_URL", url).env("ONCEPAY_API_KEY", api_key);
    command
}

/// The cursor that a tail prints at its end.
#[track_caller]
fn cursor_of(complained: &[String]) -> String {
    let last = complained.last().expect("it says something");
    let cursor = last.strip_prefix("To go on from here: --after \"").and_then(|rest| rest.strip_suffix('"'));
    cursor.unwrap_or_else(|| panic!("{complained:?}")).to_owned()
}

/// Reads lines until `wanted` of them are there, and returns the ids of the events.
fn ids(tail: &Running, wanted: usize) -> Vec<Value> {
    let event = |_| serde_json::from_str::<Value>(&tail.line()).unwrap()["id"].clone();
    (0..wanted).map(event).collect()
}

#[test]
fn every_event_is_printed_once_and_in_order_over_a_restart_of_the_server_and_of_the_tail() {
    let database = TestDatabase::new();
    let listen = format!("127.0.0.1:{}", free_port());
    let start = || Process::start(&database, &[("ONCEPAY_LISTEN", &listen)]);
    let server = start();
    let merchant = database.merchant();
    let client = server.client.as_merchant(&merchant);
    let charge = || drop(client.charge(&fresh_key(), &visa()).expect(201));
    let tail = |after: &[&str]| {
        let arguments = [&["events", "tail", "--json"], after].concat();
        let tail = Running::start(oncepay(&arguments, client.base(), &merchant.key));
        assert!(tail.complaint().starts_with("Following the events after "));
        tail
    };
    // `now` can bring what was recorded a moment before, while another transaction was open: so there is nothing before.
    let first = tail(&[]);
    charge();
    let mut printed = ids(&first, 1);
    drop(server);
    let complaint = first.complaint();
    assert!(
        complaint.contains("No answer from http://127.0.0.1") && complaint.ends_with(" Trying again."),
        "{complaint}"
    );
    let server = start();
    for _ in 0..3 {
        charge();
    }
    printed.extend(ids(&first, 3));
    let (status, rest, complained) = first.interrupt();
    assert!(status.success() && rest.is_empty(), "{status} {rest:?}");
    assert_eq!((complained.len(), complained[0].as_str()), (2, "The service answers again."));

    // More than a page.
    for _ in 0..105 {
        charge();
    }
    let second = tail(&["--after", &cursor_of(&complained)]);
    printed.extend(ids(&second, 105));
    charge();
    printed.extend(ids(&second, 1));
    let (status, rest, complained) = second.interrupt();
    assert!(status.success() && rest.is_empty() && complained.len() == 1, "{complained:?}");

    let all = tail(&["--after", ""]);
    let all_ids = ids(&all, 110);
    assert_eq!(printed, all_ids);
    let distinct: std::collections::BTreeSet<_> = all_ids.iter().map(ToString::to_string).collect();
    assert_eq!(distinct.len(), 110);
    drop(server);
}

#[test]
fn a_tail_prints_what_the_chapter_says_for_people_and_for_programs() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let mut body = visa();
    body["reference"] = json!("order-7");
    let charge = client.charge(&fresh_key(), &body).expect(201).json();
    let refund = json!({"charge_id": charge["id"], "amount": "2.00"});
    client.send("POST", "/v1/refunds", &fresh_key(), &refund).expect(201);
    let events = client.get("/v1/events").expect(200).json()["data"].take();
    let of_charge = events.as_array().unwrap().last().unwrap();
    let printed = |command: &str, json: &[&str], lines: usize| -> Vec<String> {
        let arguments = [&[command, "tail", "--after", ""], json].concat();
        let tail = Running::start(oncepay(&arguments, client.base(), &merchant.key));
        let printed = (0..lines).map(|_| tail.line()).collect();
        let (status, rest, _) = tail.interrupt();
        assert!(status.success() && rest.is_empty(), "{rest:?}");
        printed
    };
    let parsed = |lines: Vec<String>| -> Vec<Value> {
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    // The charge, the refund, and the charge that was refunded.
    let all = parsed(printed("events", &["--json"], 3));
    let mut told: Vec<_> = events.as_array().unwrap().clone();
    told.reverse();
    assert_eq!(all, told);
    are_told("events tail", &all);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let line = &printed("events", &[], 3)[0];
    assert_eq!(words(line), [&of_charge["created_at"], &of_charge["type"], &of_charge["id"]].map(text));

    let charges = parsed(printed("charges", &["--json"], 2));
    are_told("charges tail", &charges);
    let told = json!({"time": of_charge["created_at"], "event": of_charge["id"], "type": "charge.succeeded",
        "id": charge["id"], "status": "succeeded", "amount": "12.50", "currency": "USD", "reference": "order-7"});
    assert_eq!((&charges[0], &charges[1]["type"]), (&told, &json!("charge.refunded")));
    let line = &printed("charges", &[], 2)[0];
    let told = ["time", "id", "status", "amount", "currency", "reference"].map(|name| text(&told[name]));
    assert_eq!(words(line), told);
}

#[test]
fn a_tail_that_cannot_begin_says_why() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let refusal = |url: &str, key: &str, after: &str| {
        let mut command = oncepay(&["charges", "tail", "--after", after], url, key);
        let output = command.output().unwrap();
        assert!(output.stdout.is_empty());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let (status, said) = refusal(&nowhere, &merchant.key, "now");
    assert_eq!(status, Some(3));
    assert!(said.starts_with(&format!("error: No answer from {nowhere}/v1/events: ")), "{said}");
    let (status, said) = refusal(app.client.base(), &format!("{}0", merchant.key), "now");
    assert!(status == Some(3) && said.contains("answers 401 Unauthorized: "), "{said}");
    let (status, said) = refusal(app.client.base(), &merchant.key, "yesterday & today");
    assert!(
        status == Some(2) && said.contains("422 Unprocessable Entity: after must be the `next` of"),
        "{said}"
    );
}

#[test]
fn a_tail_whose_key_is_revoked_ends_and_tells_where_to_go_on() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let client = app.client.as_merchant(&database.merchant());
    let key = client.send("POST", "/v1/api-keys", "k", &json!({"name": "tail"})).expect(201);
    let tail = Running::start(oncepay(&["events", "tail"], client.base(), &key.field("key")));
    tail.complaint();
    let path = format!("/v1/api-keys/{}", key.field("id"));
    client.request("DELETE", &path).idempotency_key("r").send().expect(200);
    let (status, rest, mut complained) = tail.end();
    let error = complained.pop().unwrap();
    assert!(status.code() == Some(3) && error.contains("answers 401 Unauthorized: "), "{status} {error}");
    assert!(rest.is_empty() && cursor_of(&complained).starts_with("c1_"), "{rest:?} {complained:?}");
}

#[test]
fn a_tail_that_nobody_reads_any_more_ends_and_does_not_count_what_it_could_not_print() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let command = oncepay(&["events", "tail", "--json"], client.base(), &merchant.key);
    let (tail, stdout) = Running::start_unread(command);
    tail.complaint();
    let charge = || client.charge(&fresh_key(), &visa()).expect(201).field("id");
    let mut reader = BufReader::new(stdout);
    let read = charge();
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains(&read), "{line}");
    drop(reader);
    let unread = charge();
    let (status, _, complained) = tail.end();
    assert!(status.success(), "{status} {complained:?}");
    let arguments = ["events", "tail", "--json", "--after", &cursor_of(&complained)];
    let next = Running::start(oncepay(&arguments, client.base(), &merchant.key)).line();
    assert!(next.contains(&unread), "{next}");
}

#[test]
fn changes_of_keys_are_printed_once_each_also_over_a_lost_connection() {
    let database = TestDatabase::new();
    let app = App::start(&database);
    execute(&mut database.as_owner(), "ALTER TABLE events ADD CONSTRAINT bug CHECK (false) NOT VALID");
    let tail = |form: &[&str]| {
        let mut command = oncepay(&[&["keys", "tail"], form].concat(), "", "");
        command.env("DATABASE_URL", exposed(&database.app_url));
        Running::start(command)
    };
    let changes = tail(&["--json"]);
    let change = || serde_json::from_str::<Value>(&changes.line()).unwrap();
    let client = app.client.as_merchant(&database.merchant());
    client.charge("order-1", &visa()).expect_problem(500, "internal");
    // It may be seen while it's tried or recovered.
    let until = |state: &str| {
        let mut seen = vec![change()];
        while seen.last().unwrap()["state"] != state {
            seen.push(change());
        }
        seen
    };
    let mut seen = until("abandoned");
    are_told("keys tail", &seen);
    drop(app);
    let recovering = |config: &mut oncepay::config::Config| {
        config.recovery_interval_ms = 50;
        config.recovery_delay_ms = 1;
        config.recovery_attempts_max = 1;
    };
    let app = App::start_with(&database, recovering);
    seen.extend(until("parked"));
    drop(app);

    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    execute(&mut database.as_superuser(), end);
    let complaint = changes.complaint();
    // However many lines the database's own words have.
    assert!(complaint.ends_with(". Trying again."), "{complaint}");
    assert_eq!(changes.complaint(), "The database answers again.");

    let people = tail(&[]);
    let line = people.line();
    assert!(
        line.contains("  –         → parked     charges.create  ") && line.ends_with("/order-1"),
        "{line}"
    );
    execute(&mut database.as_owner(), "ALTER TABLE events DROP CONSTRAINT bug");
    let app = App::start_with(&database, recovering);
    let id = seen[0]["id"].as_str().unwrap();
    let mut retry = oncepay(&["keys", "retry", id], "", "");
    assert!(retry.env("DATABASE_URL", exposed(&database.app_url)).output().unwrap().status.success());
    seen.extend(until("completed"));
    let mut last = &Value::Null;
    for change in &seen {
        assert_eq!((&change["previous_state"], &change["key"]), (last, &json!("order-1")), "{seen:#?}");
        assert_ne!(&change["state"], last, "{seen:#?}");
        last = &change["state"];
    }
    assert_eq!(seen.last().unwrap()["response_status"], 201);
    let (_, rest, complained) = changes.interrupt();
    assert!(rest.is_empty() && complained.is_empty(), "{rest:?} {complained:?}");
    drop((people, app));
}
