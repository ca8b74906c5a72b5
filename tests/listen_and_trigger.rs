//! `oncepay listen` and `oncepay trigger`: what developers have events with.

use std::process::Command;
use std::time::Duration;

use oncepay::base::signature::{Secret, SignatureHeaders, verify};

use crate::support::acquirer::{Acquirer, Received, Receiver, WEBHOOK_SECRET};
use crate::support::running::Running;
use crate::support::*;

/// A service, and the dev.env that the commands read.
struct Scene {
    folder: tempfile::TempDir,
    app: App,
    client: Client,
    database: TestDatabase,
}

impl Scene {
    fn new(database: TestDatabase, app: App, further: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let merchant = database.merchant();
        let settings = format!(
            "ONCEPAY_URL={}\nONCEPAY_API_KEY={}\nONCEPAY_WEBHOOK_SECRET={WEBHOOK_SECRET}\n{further}",
            app.client.base(),
            merchant.key
        );
        std::fs::write(folder.path().join("dev.env"), settings).unwrap();
        let client = app.client.as_merchant(&merchant);
        Self { folder, app, client, database }
    }

    fn in_sandbox() -> Self {
        let database = TestDatabase::new();
        let app = App::start(&database);
        Self::new(database, app, "")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oncepay"));
        command.args(arguments).env("ONCEPAY_DATA_DIR", self.folder.path());
        for variable in ["ONCEPAY_URL", "ONCEPAY_API_KEY", "ONCEPAY_WEBHOOK_SECRET"] {
            command.env_remove(variable);
        }
        command
    }

    #[track_caller]
    fn trigger(&self, kind: &str) -> String {
        let output = self.command(&["trigger", kind]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        said.into_owned()
    }

    /// How many events of a type there are.
    fn count(&self, kind: &str) -> i64 {
        self.database.count(&format!("SELECT count(*) FROM events WHERE type = '{kind}'"))
    }
}

const TRIGGERS: [&str; 9] = [
    "charge.succeeded",
    "charge.failed",
    "refund.failed",
    "payout.paid",
    "payout.failed",
    "settlement.paid",
    "dispute.opened",
    "dispute.won",
    "dispute.lost",
];

#[test]
fn listen_forwards_what_happens_from_now_on_in_its_order_and_signed() {
    let (scene, receiver) = (Scene::in_sandbox(), Receiver::start());
    scene.client.charge(&fresh_key(), &visa()).expect(201);
    let running = Running::start(scene.command(&["listen", "--forward-to", &receiver.url]));
    let ready = running.line();
    let secret = Secret::parse(ready.split(' ').next_back().unwrap()).expect(&ready);

    receiver.answer_next(&[500]);
    scene.trigger("dispute.won");
    let told = ["charge.succeeded", "charge.disputed", "dispute.opened", "charge.dispute_won", "dispute.won"];
    for (number, kind) in told.iter().enumerate() {
        let line = running.line();
        let status = if number == 0 { " 500 in " } else { " 200 in " };
        assert!(line.contains(&format!("Z  {kind} ")) && line.contains(status), "{line}");
    }
    let received = receiver.received();
    assert_eq!(received.len(), told.len(), "what happened before isn't told, nor what wasn't taken again");
    for (Received { id, timestamp, signature, body, .. }, kind) in received.iter().zip(told) {
        let signed = SignatureHeaders { id, timestamp, signature };
        assert_eq!(verify(&[secret_of(&secret)], signed, body.as_bytes(), chrono::Utc::now()), Ok(()));
        let event = scene.client.get(&format!("/v1/events/{id}")).expect(200).json();
        let message: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&message["id"], &message["type"]), (&event["id"], &serde_json::json!(kind)));
        assert_eq!((&message["timestamp"], &message["data"]), (&event["created_at"], &event["data"]));
    }
}

fn secret_of(secret: &Secret) -> Secret {
    Secret::parse(secrecy::ExposeSecret::expose_secret(&secret.reveal())).unwrap()
}

#[test]
fn listen_shows_only_what_it_is_asked_for() {
    let scene = Scene::in_sandbox();
    let running = Running::start(scene.command(&["listen", "--events", "payout.paid,dispute.opened"]));
    assert!(running.line().starts_with("Listening."));
    for kind in ["payout.failed", "payout.paid", "dispute.opened"] {
        scene.trigger(kind);
    }
    for kind in ["payout.paid", "dispute.opened"] {
        let line = running.line();
        assert!(line.contains(kind), "{line}");
    }
    let refusal = |arguments: &[&str]| {
        let output = scene.command(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refusal(&["listen", "--events", "payout.lost"]);
    assert!(
        said.contains("payout.lost is no type of event; there are") && said.contains("payout.paid"),
        "{said}"
    );
    for url in ["localhost:3000/hook", "3000", "ftp://localhost/"] {
        let said = refusal(&["listen", "--forward-to", url]);
        assert!(said.contains("it must be like http://localhost:3000/hook"), "{said}");
    }
}

#[test]
fn trigger_plays_the_acquirer_where_a_sandbox_stands_for_it() {
    let scene = Scene::in_sandbox();
    for kind in TRIGGERS {
        let before = scene.count(kind);
        let said = scene.trigger(kind);
        assert!(
            said.contains(&format!("Sent {kind} as the processor's event evt_")) && said.contains("applied"),
            "{said}"
        );
        assert!(scene.count(kind) > before, "{kind}");
    }
}

#[test]
fn trigger_takes_what_it_needs_from_the_environment_too() {
    let scene = Scene::in_sandbox();
    let nothing = tempfile::tempdir().unwrap();
    let merchant = scene.database.merchant();
    let trigger = |secret: &str| {
        let mut command = scene.command(&["trigger", "payout.paid"]);
        command.env("ONCEPAY_DATA_DIR", nothing.path()).env("ONCEPAY_URL", scene.app.client.base());
        command.env("ONCEPAY_API_KEY", &merchant.key).env("ONCEPAY_WEBHOOK_SECRET", secret).output().unwrap()
    };
    let other = "whsec_bmV4dCBzZWNyZXQgb2YgdGhlIGFjcXVpcmVyIDEyMzQ1Njc4";
    assert!(trigger(&format!("{WEBHOOK_SECRET}, {other}")).status.success());
    assert_eq!(scene.count("payout.paid"), 1);
    assert!(!trigger(other).status.success(), "the service doesn't know that one");
}

#[test]
fn trigger_has_the_acquirer_send_where_there_is_one() {
    let database = TestDatabase::new();
    // It decides some by itself, but on a busy machine not before it is told to.
    let acquirer = Acquirer::start_with(&database, |settings| settings.decide_after = Duration::from_secs(3));
    let (acquirer, app) = App::start_beside(acquirer, &database);
    let control = format!("ONCEPAY_SIMULATOR_CONTROL_URL={}/control\n", acquirer.control_url);
    let scene = Scene::new(database, app, &control);
    for kind in TRIGGERS {
        let before = scene.count(kind);
        scene.trigger(kind);
        eventually(kind, || scene.count(kind) > before);
    }
    let sent = acquirer.events();
    assert!(TRIGGERS.iter().all(|kind| sent.iter().any(|event| event["type"] == *kind)), "{sent:?}");
    let applied =
        || scene.app.client.metrics().value("oncepay_acquirer_events_total", &[("outcome", "applied")]);
    eventually("the count", || applied() as usize == sent.len());
}

/// The books of both sides, after a refund came back: the charge can be refunded again, and the settlement is of what the
/// processor still has.
#[test]
fn trigger_changes_both_books_also_with_settings_of_the_environment() {
    let database = TestDatabase::new();
    let (acquirer, app) = App::start_beside(
        Acquirer::start_with(&database, |settings| settings.decide_after = Duration::ZERO),
        &database,
    );
    let scene = Scene::new(database, app, "");
    let nothing = tempfile::tempdir().unwrap();
    let settings = std::fs::read_to_string(scene.folder.path().join("dev.env")).unwrap();
    let trigger = |kind: &str, control: Option<String>| {
        let mut command = scene.command(&["trigger", kind]);
        command.env("ONCEPAY_DATA_DIR", nothing.path()).envs(acquirer.environment());
        command.envs(settings.lines().filter_map(|line| line.split_once('=')));
        command.envs(control.map(|url| ("ONCEPAY_SIMULATOR_CONTROL_URL", url)));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said.into_owned())
    };
    let (sends, said) = trigger("payout.paid", None);
    assert!(!sends && said.contains("ONCEPAY_SIMULATOR_CONTROL_URL"), "{said}");
    assert_eq!(scene.database.rows("charges"), 0, "nothing was made for an event that can't be sent");

    let control = format!("{}/control", acquirer.control_url);
    let (sends, said) = trigger("refund.failed", Some(control));
    assert!(sends && said.contains("The simulator sends refund.failed"), "{said}");
    eventually("the refund's end", || scene.count("refund.failed") == 1);
    let refund = scene.client.get("/v1/refunds").expect(200).json()["data"][0].clone();
    assert_eq!(refund["status"], "failed");
    // Its fee is no part of what can be returned.
    scene.client.charge(&fresh_key(), &visa()).expect(201);
    let all = serde_json::json!({"charge_id": refund["charge_id"]});
    let again = scene.client.send("POST", "/v1/refunds", "again", &all).expect(201);
    assert_eq!(again.field("amount"), "12.50");
    acquirer.wait_for_its_list();
    let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
        .args(["reconcile", "--reconcile-grace-s", "0"])
        .env("DATABASE_URL", crate::support::database::exposed(&scene.database.app_url))
        .envs(acquirer.environment())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.ends_with("Both sides agree.\n"), "{said}");
}

#[test]
fn a_refund_that_fails_after_it_was_settled_is_in_the_next_settlement() {
    let database = TestDatabase::new();
    let (acquirer, app) = App::start_beside(Acquirer::start(&database), &database);
    let merchant = database.merchant();
    let client = app.client.as_merchant(&merchant);
    let clearing = || {
        let trial = client.get("/v1/ledger/trial-balance").expect(200).json();
        let accounts = trial["accounts"].as_array().unwrap().clone();
        accounts.into_iter().find(|account| account["kind"] == "acquirer_clearing").unwrap()["debit"].clone()
    };
    let refund_of = |amount: &str| {
        let charge = client.charge(&fresh_key(), &visa()).expect(201).field("id");
        let body = serde_json::json!({"charge_id": charge, "amount": amount});
        client.send("POST", "/v1/refunds", &fresh_key(), &body).expect(201).field("id")
    };
    let id = merchant.id.to_string();
    let fail = |refund: &str| {
        acquirer.send_event("refund.failed", &serde_json::json!({"merchant": id, "reference": refund}))
    };
    let failed = |count: i64| {
        let failures = "SELECT count(*) FROM events WHERE type = 'refund.failed'";
        eventually("the failure", || database.count(failures) == count);
    };
    let (settled, unsettled) = (refund_of("5.00"), refund_of("2.00"));
    fail(&unsettled);
    failed(1);
    assert_eq!(acquirer.settle(&id, "USD")["amount"], "20.00", "two captures less the refund that holds");
    eventually("the settlement", || clearing() == "0.00");
    fail(&settled);
    failed(2);
    assert_eq!(clearing(), "5.00");
    assert_eq!(acquirer.settle(&id, "USD")["amount"], "5.00");
    eventually("the settlement", || clearing() == "0.00");
}

#[test]
fn without_a_service_the_commands_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["listen"][..], &["trigger", "payout.paid"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_oncepay"))
            .args(arguments)
            .env("ONCEPAY_DATA_DIR", folder.path())
            .env_remove("ONCEPAY_URL")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("oncepay dev"), "{said}");
    }
}
