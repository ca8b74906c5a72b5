//! Between the service and the acquirer, and at the acquirer.

use super::provider::Dialect;
use super::proxy::Weather;
use super::scene::{Proxied, Scene, Setup};
use super::{amount, for_ms, table};

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
    lose_answers_and_fail(setup);
}

fn lose_answers_and_fail(setup: Setup) {
    let scene = Scene::start(setup);
    scene.acquirer().misbehave(30);
    let scene = scene.strike_often(amount(3, 20), |scene| {
        scene.wait_for_everybody();
        scene.instances[0].kill();
    });
    let hits = scene.acquirer().hits();
    assert!(hits.len() == 3 && hits.iter().all(|hits| *hits > 0), "{hits:?}");
    scene.acquirer().behave();
    table::add(scene.finish());
}

#[test]
fn the_acquirer_is_stopped_and_started_again() {
    stop_and_start(Setup::of("acquirer: stopped and started again after a second"));
}

fn stop_and_start(setup: Setup) {
    let scene = Scene::start(setup);
    let scene = scene.strike_often(amount(1, 10), |scene| {
        scene.wait_for_everybody();
        let mut acquirer = scene.acquirer();
        acquirer.stop();
        for_ms(1_000);
        acquirer.start_again();
    });
    table::add(scene.finish());
}

/// The same with a processor that speaks another dialect: nothing but its adapter knows.
#[test]
fn a_second_processor_loses_answers_and_fails_while_the_service_is_killed() {
    let setup = Setup::of(
        "second processor: drops 30 % of its answers, fails 30 % before and 30 % after the effect; meanwhile `kill -9` of the service",
    );
    lose_answers_and_fail(setup.speaking(Dialect::Second));
}

#[test]
fn a_second_processor_is_stopped_and_started_again() {
    let setup = Setup::of("second processor: stopped and started again after a second");
    stop_and_start(setup.speaking(Dialect::Second));
}

#[test]
fn answers_of_a_second_processor_are_cut_off() {
    let setup = Setup::behind_proxy("network to the second processor: connections reset amid answers");
    // An answer has some 400 bytes.
    let weather = Weather::Resets { after_bytes: 2_000 };
    let scene = Scene::start(setup.speaking(Dialect::Second));
    table::add(scene.suffer(amount(1, 3), weather, amount(2_000, 15_000)).after_resets().finish());
}

/// And a reconciliation that wouldn't find anything would be worth nothing.
#[test]
fn an_operation_that_the_acquirer_forgets_is_noticed() {
    let scene = Scene::start(Setup::of("an acquirer that forgets"));
    let (_, problems, scene) = {
        scene.acquirer().forget_a_capture();
        scene.reckon()
    };
    assert!(problems.iter().any(|found| found.contains("missing_at_acquirer")), "{problems:?}");
    drop(scene);
}
