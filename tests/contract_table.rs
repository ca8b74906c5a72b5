//! The rules of idempotency as a table: a line is a case.

use serde_json::{Value, json};

use crate::support::*;

/// What a case has to work with.
struct Scene {
    app: App,
    database: TestDatabase,
    client: Client,
    merchant: Merchant,
    /// A charge that exists.
    charge_path: String,
}

/// How many rows and runs a step adds.
#[derive(Debug, PartialEq, Eq)]
struct Effects {
    keys: i64,
    charges: i64,
    entries: i64,
    events: i64,
    /// Runs of the creating handler, counted by the processor.
    runs: i64,
}

impl Scene {
    fn new() -> Self {
        let database = TestDatabase::new();
        // Forgotten keys stay, so that rows can be counted.
        let app = App::start_with(&database, |config| config.reaper_interval_ms = 600_000);
        let merchant = database.merchant();
        let client = app.client.as_merchant(&merchant);
        let mut scene = Self { charge_path: String::new(), database, app, client, merchant };
        scene.make_charge();
        scene
    }

    /// Clears the stage for another case: with a merchant that has no keys yet.
    fn begin_anew(&mut self) {
        self.merchant = self.database.merchant();
        self.client = self.app.client.as_merchant(&self.merchant);
        self.make_charge();
    }

    fn make_charge(&mut self) {
        let id = self.client.charge("scene", &visa()).expect(201).field("id");
        self.charge_path = format!("/v1/charges/{id}");
    }

    /// The SQL condition for the key `k`.
    fn key(&self) -> String {
        format!("key = 'k' AND merchant_id = '{}'", self.merchant.id.0)
    }

    fn effects(&self) -> Effects {
        Effects {
            keys: self.database.rows("idempotency_keys"),
            charges: self.database.rows("charges"),
            entries: self.database.rows("journal_entries"),
            events: self.database.rows("events"),
            runs: self.app.runs() as i64,
        }
    }

    fn owner(&self, statement: &str) {
        execute(&mut self.database.as_owner(), statement);
    }
}

const NOTHING: Effects = Effects { keys: 0, charges: 0, entries: 0, events: 0, runs: 0 };
const CAPTURED: Effects = Effects { keys: 1, charges: 1, entries: 1, events: 1, runs: 1 };
/// A declined charge is a charge, but moves no money.
const DECLINED: Effects = Effects { keys: 1, charges: 1, entries: 0, events: 1, runs: 1 };
/// An attempt that ended without an outcome leaves its claim, for the next one.
const CLAIM_ONLY: Effects = Effects { keys: 1, charges: 0, entries: 0, events: 0, runs: 1 };
/// What the attempt after that adds.
const RESUMED: Effects = Effects { keys: 0, charges: 1, entries: 1, events: 1, runs: 1 };
/// A key that was forgotten makes its row anew.
const REUSED: Effects = Effects { keys: 0, ..CAPTURED };
const UPDATED: Effects = Effects { keys: 1, charges: 0, entries: 0, events: 1, runs: 0 };
const KEY_ONLY: Effects = Effects { keys: 1, charges: 0, entries: 0, events: 0, runs: 0 };

type Step = Box<dyn Fn(&Scene) -> Response>;

fn post(key: &'static str, body: Value) -> Step {
    Box::new(move |scene| scene.client.charge(key, &body))
}

fn patch(key: &'static str, body: Value) -> Step {
    Box::new(move |scene| scene.client.send("PATCH", &scene.charge_path, key, &body))
}

fn nothing_before() -> Step {
    Box::new(|scene| scene.client.get("/v1/balance"))
}

struct Case {
    situation: &'static str,
    before: Step,
    request: Step,
    status: u16,
    code: &'static str,
    /// `Some(replayed)` when the answer is kept, which the `Idempotent-Replayed` header tells.
    kept: Option<bool>,
    header: &'static str,
    effects: Effects,
}

// A line a case, so that the table can be read as one.
#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let case = |situation, before, request, status, code, kept, header, effects| Case {
        situation, before, request, status, code, kept, header, effects,
    };
    let first = |body: Value| post("k", body);
    let unknown = "/v1/charges/ch_00000000000070008000000000000000";
    let raw = |key: Option<&'static [u8]>| -> Step {
        Box::new(move |scene| {
            let request = scene.client.request("POST", "/v1/charges").json(&visa());
            match key {
                Some(key) => request.header_bytes("Idempotency-Key", key).send(),
                None => request.send(),
            }
        })
    };
    let other_order = r#" {"payment_method":"pm_card_visa", "currency":"USD", "amount":"12.50"} "#;
    let running = || -> Step {
        Box::new(|scene| {
            let response = scene.client.charge("k", &with_method("pm_card_timeout"));
            let lease = "lease_expires_at = statement_timestamp() + interval '1 hour'";
            scene.owner(&format!("UPDATE idempotency_keys SET {lease} WHERE {}", scene.key()));
            response
        })
    };
    let buggy = |request: Step| -> Step {
        Box::new(move |scene| {
            scene.owner("ALTER TABLE events ADD CONSTRAINT bug CHECK (false) NOT VALID");
            let response = request(scene);
            scene.owner("ALTER TABLE events DROP CONSTRAINT bug");
            response
        })
    };
    let colliding = |request: Step| -> Step {
        Box::new(move |scene| {
            scene.owner(
                "CREATE FUNCTION collide() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$",
            );
            scene.owner("CREATE TRIGGER collide BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION collide()");
            let response = request(scene);
            scene.owner("DROP FUNCTION collide CASCADE");
            response
        })
    };
    let endpoint = |url: &'static str| -> Step {
        Box::new(move |scene| scene.client.send("POST", "/v1/webhook-endpoints", "k", &json!({"url": url})))
    };
    let new_text = || json!({"description": "new"});
    let aged = |request: Step, days: i64| -> Step {
        Box::new(move |scene| {
            let response = request(scene);
            scene.database.age_keys(&scene.key(), days * 24 * 60 * 60);
            response
        })
    };
    let waiting = |body: Value| -> Step {
        Box::new(move |scene| {
            let request = scene.client.request("POST", "/v1/charges").idempotency_key("k").json(&body);
            request.header("Prefer", "wait=1").send()
        })
    };

    vec![
        // An operation that calls the processor.
        case("first run", nothing_before(), first(visa()), 201, "", Some(false), "Idempotency-Expires", CAPTURED),
        case("retry after completion", first(visa()), first(visa()), 201, "", Some(true), "Original-Request-Id", NOTHING),
        case("retry with the quoted spelling", first(visa()), raw(Some(b"\"k\"")), 201, "", Some(true), "Location", NOTHING),
        case("retry in another order and spacing", first(visa()), Box::new(move |scene| {
            scene.client.request("POST", "/v1/charges").idempotency_key("k").body("application/json", other_order).send()
        }), 201, "", Some(true), "Location", NOTHING),
        case("key missing", nothing_before(), raw(None), 400, "idempotency_key_missing", None, "Link", NOTHING),
        case("key empty", nothing_before(), raw(Some(b"")), 400, "idempotency_key_invalid", None, "Link", NOTHING),
        case("key quoted and empty", nothing_before(), raw(Some(b"\"\"")), 400, "idempotency_key_invalid", None, "Link", NOTHING),
        case("key with a space", nothing_before(), raw(Some(b"a b")), 400, "idempotency_key_invalid", None, "Link", NOTHING),
        case("key outside ASCII", nothing_before(), raw(Some("schlüssel".as_bytes())), 400, "idempotency_key_invalid", None, "Link", NOTHING),
        case("key with parameters", nothing_before(), raw(Some(b"\"k\";a=1")), 400, "idempotency_key_invalid", None, "Link", NOTHING),
        case("bare key with parameters", nothing_before(), raw(Some(b"k;a=1")), 400, "idempotency_key_invalid", None, "Link", NOTHING),
        case("key of 256 characters", nothing_before(), raw(Some(&[b'k'; 256])), 400, "idempotency_key_invalid", None, "Link", NOTHING),
        case("key of 255 characters", nothing_before(), raw(Some(&[b'k'; 255])), 201, "", Some(false), "Location", CAPTURED),
        case("key repeated", nothing_before(), Box::new(|scene| {
            let request = scene.client.request("POST", "/v1/charges").json(&visa());
            request.idempotency_key("k").idempotency_key("k").send()
        }), 400, "idempotency_key_invalid", None, "Link", NOTHING),
        case("same key, other body", first(visa()), first(with_method("pm_card_slow")), 422, "idempotency_key_reused", None, "Link", NOTHING),
        case("same key, other value of an optional field", first(visa()), Box::new(|scene| {
            let mut body = visa();
            body["capture"] = json!(true);
            scene.client.charge("k", &body)
        }), 422, "idempotency_key_reused", None, "Link", NOTHING),
        case("same key, unknown query", first(visa()), Box::new(|scene| {
            scene.client.send("POST", "/v1/charges?x=1", "k", &visa())
        }), 422, "validation_failed", None, "X-Request-Id", NOTHING),
        case("same key, other path", patch("k", new_text()), Box::new(move |scene| {
            scene.client.send("PATCH", unknown, "k", &new_text())
        }), 422, "idempotency_key_reused", None, "Link", NOTHING),
        case("same key, other method and path", first(visa()), patch("k", new_text()), 422, "idempotency_key_reused", None, "Link", NOTHING),
        case("first request still running", running(), first(with_method("pm_card_timeout")), 409, "idempotency_request_in_progress", None, "Retry-After", NOTHING),
        case("first request still running, and time to wait", running(), waiting(with_method("pm_card_timeout")), 409, "idempotency_request_in_progress", None, "Preference-Applied", NOTHING),
        case("retry after completion, and time to wait", first(visa()), waiting(visa()), 201, "", Some(true), "Preference-Applied", NOTHING),
        case("other body while it's running", running(), first(visa()), 422, "idempotency_key_reused", None, "Link", NOTHING),
        case("key older than its lifetime", aged(first(visa()), 1), first(visa()), 422, "idempotency_key_expired", None, "Link", NOTHING),
        case("key older than its lifetime, other body", aged(first(visa()), 1), first(with_method("pm_card_slow")), 422, "idempotency_key_reused", None, "Link", NOTHING),
        case("key older than its tombstone", aged(first(visa()), 31), first(visa()), 201, "", Some(false), "Location", REUSED),
        case("key older than its tombstone, other body", aged(first(visa()), 31), first(with_method("pm_card_slow")), 201, "", Some(false), "Location", REUSED),
        case("declined", nothing_before(), first(with_method("pm_card_declined")), 402, "card_declined", Some(false), "Idempotency-Expires", DECLINED),
        case("retry after a decline", first(with_method("pm_card_declined")), first(with_method("pm_card_declined")), 402, "card_declined", Some(true), "Original-Request-Id", NOTHING),
        case("no funds", nothing_before(), first(with_method("pm_card_insufficient_funds")), 402, "insufficient_funds", Some(false), "Idempotency-Expires", DECLINED),
        case("retry after no funds", first(with_method("pm_card_insufficient_funds")), first(with_method("pm_card_insufficient_funds")), 402, "insufficient_funds", Some(true), "Original-Request-Id", NOTHING),
        case("processor's answer lost", nothing_before(), first(with_method("pm_card_timeout")), 503, "processor_unavailable", None, "Retry-After", CLAIM_ONLY),
        case("retry after a lost answer resumes", first(with_method("pm_card_timeout")), first(with_method("pm_card_timeout")), 201, "", Some(false), "Location", RESUMED),
        case("processor failed", nothing_before(), first(with_method("pm_card_error_once")), 503, "processor_unavailable", None, "Retry-After", CLAIM_ONLY),
        case("retry after a failure resumes", first(with_method("pm_card_error_once")), first(with_method("pm_card_error_once")), 201, "", Some(false), "Location", RESUMED),
        case("other body after a lost answer", first(with_method("pm_card_timeout")), first(visa()), 422, "idempotency_key_reused", None, "Link", NOTHING),
        case("our own bug", nothing_before(), buggy(first(visa())), 500, "internal", None, "X-Request-Id", CLAIM_ONLY),
        case("retry after our own bug", buggy(first(visa())), first(visa()), 201, "", Some(false), "Location", RESUMED),
        case("collision", nothing_before(), colliding(first(visa())), 503, "transient_conflict", None, "Retry-After", CLAIM_ONLY),
        case("retry after a collision", colliding(first(visa())), first(visa()), 201, "", Some(false), "Location", RESUMED),
        case("field validation", nothing_before(), first(json!({})), 422, "validation_failed", None, "X-Request-Id", NOTHING),
        case("corrected after field validation", first(json!({})), first(visa()), 201, "", Some(false), "Location", CAPTURED),
        // An operation that changes only our own database.
        case("local: first run", nothing_before(), patch("k", new_text()), 200, "", Some(false), "Idempotency-Expires", UPDATED),
        case("local: retry", patch("k", new_text()), patch("k", new_text()), 200, "", Some(true), "Original-Request-Id", NOTHING),
        case("local: other body", patch("k", new_text()), patch("k", json!({"description": "x"})), 422, "idempotency_key_reused", None, "Link", NOTHING),
        case("local: unknown charge", nothing_before(), Box::new(move |scene| {
            scene.client.send("PATCH", unknown, "k", &new_text())
        }), 404, "charge_not_found", Some(false), "Idempotency-Expires", KEY_ONLY),
        case("local: retry on an unknown charge", Box::new(move |scene| {
            scene.client.send("PATCH", unknown, "k", &new_text())
        }), Box::new(move |scene| {
            scene.client.send("PATCH", unknown, "k", &new_text())
        }), 404, "charge_not_found", Some(true), "Original-Request-Id", NOTHING),
        case("local: malformed id", nothing_before(), Box::new(|scene| {
            scene.client.send("PATCH", "/v1/charges/no_id", "k", &json!({}))
        }), 404, "charge_not_found", Some(false), "Idempotency-Expires", KEY_ONLY),
        case("local: key older than its lifetime", aged(patch("k", new_text()), 1), patch("k", new_text()), 422, "idempotency_key_expired", None, "Link", NOTHING),
        case("local: key older than its tombstone", aged(patch("k", new_text()), 31), patch("k", new_text()), 200, "", Some(false), "Idempotency-Expires", Effects { keys: 0, ..UPDATED }),
        case("local: our own bug", nothing_before(), buggy(patch("k", new_text())), 500, "internal", None, "X-Request-Id", NOTHING),
        case("local: retry after our own bug", buggy(patch("k", new_text())), patch("k", new_text()), 200, "", Some(false), "Idempotency-Expires", UPDATED),
        case("local: collision", nothing_before(), colliding(patch("k", new_text())), 503, "transient_conflict", None, "Retry-After", NOTHING),
        case("local: validation that the settings decide", nothing_before(), endpoint("http://127.0.0.1/"), 422, "validation_failed", None, "X-Request-Id", NOTHING),
        case("local: corrected after that", endpoint("http://127.0.0.1/"), endpoint("https://shop.example/"), 201, "", Some(false), "Location", KEY_ONLY),
        case("local: retry of what shows a secret", endpoint("https://shop.example/"), endpoint("https://shop.example/"), 201, "", Some(true), "Original-Request-Id", NOTHING),
        case("local: key missing", nothing_before(), Box::new(|scene| {
            scene.client.request("PATCH", &scene.charge_path).json(&json!({})).send()
        }), 400, "idempotency_key_missing", None, "Link", NOTHING),
    ]
}

#[test]
fn each_situation_has_its_answer_and_its_effects() {
    let mut scene = Scene::new();
    for case in cases() {
        scene.begin_anew();
        let prior = (case.before)(&scene);
        let before = scene.effects();
        let response = (case.request)(&scene);
        let after = scene.effects();

        let name = case.situation;
        assert_eq!(
            (response.status, response.code().as_str()),
            (case.status, case.code),
            "{name}: {}",
            response.text()
        );
        assert!(
            response.header(case.header).is_some(),
            "{name}: no {} in {:?}",
            case.header,
            response.headers
        );
        let effects = Effects {
            keys: after.keys - before.keys,
            charges: after.charges - before.charges,
            entries: after.entries - before.entries,
            events: after.events - before.events,
            runs: after.runs - before.runs,
        };
        assert_eq!(effects, case.effects, "{name}");
        match case.kept {
            None => {
                assert_eq!(response.header("Idempotent-Replayed"), None, "{name}");
                assert_eq!(response.header("Idempotency-Expires"), None, "{name}");
            }
            Some(replayed) => {
                assert_eq!(response.is_replay(), replayed, "{name}");
                assert!(response.header("Idempotency-Key").is_some(), "{name}");
                assert!(response.header("Idempotency-Expires").is_some(), "{name}");
                assert_eq!(response.header("Original-Request-Id").is_some(), replayed, "{name}");
            }
        }
        if case.kept == Some(true) {
            assert_eq!(response.body, prior.body, "{name}: the bytes differ");
            assert_eq!(response.status, prior.status, "{name}");
            for header in ["Content-Type", "Location", "Idempotency-Expires"] {
                assert_eq!(response.header(header), prior.header(header), "{name}: {header}");
            }
            assert_eq!(response.header("Original-Request-Id"), prior.header("X-Request-Id"), "{name}");
            assert_ne!(response.header("X-Request-Id"), prior.header("X-Request-Id"), "{name}");
            assert_eq!(response.header("Set-Cookie"), None, "{name}");
        }
        if response.header("Link").is_some() {
            let page = format!("/problems/{}", case.code.replace('_', "-"));
            assert_eq!(
                response.header("Link"),
                Some(format!("<{page}>; rel=\"describedby\"").as_str()),
                "{name}"
            );
        }
    }
}

#[test]
fn a_resumed_charge_keeps_its_id_and_the_processor_sees_one_operation() {
    for method in ["pm_card_timeout", "pm_card_error_once"] {
        let scene = Scene::new();
        let before = scene.app.sandbox.calls().len();
        scene.client.charge("k", &with_method(method)).expect_problem(503, "processor_unavailable");
        let allocated = scene.database.count(
            "SELECT count(DISTINCT resource_id) FROM idempotency_keys WHERE key = 'k' AND resource_type = 'charge'",
        );
        assert_eq!(allocated, 1);
        let answer = scene.client.charge("k", &with_method(method)).expect(201);
        let replay = scene.client.charge("k", &with_method(method)).expect(201);
        assert_eq!(replay.header("Original-Request-Id"), answer.header("X-Request-Id"));
        let id = answer.field("id");
        let kept = format!(
            "SELECT count(*) FROM idempotency_keys WHERE key = 'k' AND attempts = 2 AND 'ch_' || replace(resource_id::text, '-', '') = '{id}'"
        );
        assert_eq!(scene.database.count(&kept), 1);
        let calls = scene.app.sandbox.calls();
        let authorizations: Vec<_> = calls[before..].iter().filter(|call| call.call == "authorize").collect();
        assert_eq!(authorizations.len(), 2);
        assert_eq!(authorizations[0].key, authorizations[1].key);
    }
}

#[test]
fn an_answer_is_kept_for_a_day() {
    let scene = Scene::new();
    let response = scene.client.charge("k", &visa()).expect(201);
    let expires =
        chrono::DateTime::parse_from_rfc2822(response.header("Idempotency-Expires").unwrap()).unwrap();
    let in_a_day = chrono::Utc::now() + chrono::Duration::days(1);
    assert!((in_a_day - expires.to_utc()).num_seconds().abs() < 60, "{expires}");
    let stored = scene.database.count(
        "SELECT count(*) FROM idempotency_keys WHERE key = 'k' AND state = 'completed' AND operation = 'charges.create' \
         AND recovery_point = 'finished' AND attempts = 1 AND response_status = 201 \
         AND expires_at = completed_at + interval '1 day' AND claim_token IS NULL AND fingerprint_version = 1",
    );
    assert_eq!(stored, 1);
}

#[test]
fn a_collision_is_tried_again_a_bounded_number_of_times() {
    let scene = Scene::new();
    // Sequences don't roll back, so this one counts the tries.
    scene.database.everywhere("CREATE SEQUENCE tries");
    scene.database.everywhere("GRANT USAGE ON SEQUENCE tries TO oncepay_app");
    let tries = || {
        scene.database.count_everywhere("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM tries")
    };
    let collide_until = |last: u32| {
        scene.database.everywhere(&format!(
            "CREATE OR REPLACE FUNCTION collide() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN IF nextval('public.tries') <= {last} THEN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; \
             END IF; RETURN NEW; END $$"
        ));
    };
    collide_until(2);
    scene.owner("CREATE TRIGGER collide BEFORE INSERT ON charges FOR EACH ROW EXECUTE FUNCTION collide()");
    scene.client.charge("k", &visa()).expect(201);
    assert_eq!(tries(), 3);

    collide_until(1000);
    scene.client.charge("l", &visa()).expect_problem(503, "transient_conflict");
    // Once with whatever else is to be finished, then five times alone.
    let shared = if cluster::is_distributed() { 0 } else { 1 };
    assert_eq!(tries(), 3 + shared + 5);
    scene.owner("DROP TRIGGER collide ON charges");
    scene.client.charge("l", &visa()).expect(201);
}
