//! Between the service and the acquirer, and at the acquirer.

use std::collections::BTreeMap;

use oncepay::inbound::reconcile::{self, VoidAfter};
use serde_json::{Value, json};

use crate::support::TestDatabase;
use crate::support::acquirer::Acquirer;

use super::proxy::Weather;
use super::scene::{Proxied, Scene, Setup};
use super::{amount, for_ms, table};

/// How often each operation has taken effect by the acquirer's books, by our key towards it. Such a key ends with the
/// step that it names: `…:authorize`, `…:capture` and so on.
pub fn effects(acquirer: &Acquirer) -> BTreeMap<String, u32> {
    // The others were declined or refused.
    let is_effect = |operation: &&Value| {
        ["pending", "succeeded", "paid", "failed"].iter().any(|status| operation["status"] == *status)
    };
    let mut effects = BTreeMap::new();
    for operation in acquirer.operations().iter().filter(is_effect) {
        *effects.entry(operation["idempotency_key"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    effects
}

/// What the reconciliation finds.
pub fn disagreements(acquirer: &Acquirer, database: &TestDatabase) -> Option<String> {
    acquirer.wait_for_its_list();
    let options = reconcile::Options { reconcile_grace_s: 0, void_orphans_after_s: VoidAfter(None) };
    let adapter = oncepay::server::adapter::of_options(&acquirer.options()).unwrap();
    match reconcile::run_once(&database.app_url, &adapter, options) {
        Ok(report) if report.differences.is_empty() => None,
        Ok(report) => Some(format!("the acquirer doesn't agree:\n{report}")),
        Err(error) => Some(format!("the acquirer can't be asked: {error}")),
    }
}

impl Setup {
    fn behind_proxy(fault: &'static str) -> Self {
        Self { proxied: Proxied::Acquirer, ..Self::of(fault) }
    }
}

#[test]
fn the_acquirer_is_far_away() {
    let scene = Scene::start(Setup::behind_proxy("network to the acquirer: 50 ± 50 ms more per answer"));
    let weather = Weather::Slow { base_ms: 50, jitter_ms: 50 };
    table::add(scene.suffer(amount(1, 3), weather, amount(2_000, 15_000)).finish());
}

#[test]
fn answers_of_the_acquirer_are_cut_off() {
    let scene = Scene::start(Setup::behind_proxy("network to the acquirer: connections reset amid answers"));
    // An answer has some 600 bytes.
    let weather = Weather::Resets { after_bytes: 3_000 };
    table::add(scene.suffer(amount(1, 3), weather, amount(2_000, 15_000)).after_resets().finish());
}

#[test]
fn the_acquirer_falls_silent() {
    let scene = Scene::start(Setup::behind_proxy("network to the acquirer: silence for 15 s"));
    table::add(scene.suffer(amount(1, 3), Weather::BlackHole, amount(3_000, 15_000)).finish());
}

#[test]
fn the_acquirer_refuses_connections() {
    let scene = Scene::start(Setup::behind_proxy("network to the acquirer: connections refused for 10 s"));
    let scene = scene.suffer(amount(1, 3), Weather::Refused, amount(2_000, 10_000));
    table::add(scene.after_resets().finish());
}

/// What the service is for: it dies while it doesn't know what the acquirer has done.
#[test]
fn the_acquirer_loses_answers_and_fails_while_the_service_is_killed() {
    let setup = Setup::of(
        "acquirer: drops 30 % of its answers, fails 30 % before and 30 % after the effect; meanwhile `kill -9` of the service",
    );
    let scene = Scene::start(setup);
    scene.acquirer().control(json!({"rules": [
        {"fault": "drop_answer", "percent": 30},
        {"fault": "error_before", "percent": 30},
        {"fault": "error_after", "percent": 30},
    ]}));
    let scene = scene.strike_often(amount(3, 20), |scene| {
        scene.wait_for_everybody();
        scene.instances[0].kill();
    });
    let faults = scene.acquirer().faults();
    let rules = faults["rules"].as_array().unwrap();
    assert!(rules.iter().all(|rule| rule["hits"].as_u64() > Some(0)), "{faults}");
    scene.acquirer().control(json!({"rules": []}));
    table::add(scene.finish());
}

#[test]
fn the_acquirer_is_stopped_and_started_again() {
    let scene = Scene::start(Setup::of("acquirer: stopped and started again after a second"));
    let scene = scene.strike_often(amount(1, 10), |scene| {
        scene.wait_for_everybody();
        let mut acquirer = scene.acquirer();
        acquirer.stop();
        for_ms(1_000);
        acquirer.start_again();
    });
    table::add(scene.finish());
}

/// And a reconciliation that wouldn't find anything would be worth nothing.
#[test]
fn an_operation_that_the_acquirer_forgets_is_noticed() {
    let scene = Scene::start(Setup::of("an acquirer that forgets"));
    let (_, problems, scene) = {
        let forget = "DELETE FROM operations WHERE kind = 'capture' AND id IN \
                      (SELECT id FROM operations WHERE kind = 'capture' ORDER BY sequence LIMIT 1)";
        crate::support::execute(&mut scene.acquirer().as_owner(), forget);
        scene.reckon()
    };
    assert!(problems.iter().any(|found| found.contains("missing_at_acquirer")), "{problems:?}");
    drop(scene);
}
