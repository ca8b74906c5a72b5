//! The processor of a scene: our simulator, or one that speaks another dialect, with an adapter of its own.
//!
//! `ONCEPAY_FAULTS_PROCESSOR=second` plays the whole suite with the second. A few of its faults run with it anyway.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;

use serde_json::{Value, json};

use crate::second_processor::fake::{Crossbank, Faults};
use crate::second_processor::{self, service};
use crate::support::acquirer::Acquirer;
use crate::support::{Process, TestDatabase, execute};

/// Which processor there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// That of the simulator.
    Ours,
    /// Crossbank's.
    Second,
}

impl Dialect {
    /// The one of this run.
    pub fn of_run() -> Self {
        match std::env::var("ONCEPAY_FAULTS_PROCESSOR").as_deref() {
            Ok("second") => Self::Second,
            Ok(other) => panic!("ONCEPAY_FAULTS_PROCESSOR can be `second`, not {other:?}"),
            Err(_) => Self::Ours,
        }
    }

    /// What clients pay with.
    pub fn cards(self) -> Cards {
        match self {
            Self::Ours => Cards {
                approving: "pm_card_visa",
                declining: "pm_card_declined",
                failing_once: "pm_card_error_once",
                losing_an_answer: "pm_card_timeout",
            },
            Self::Second => Cards {
                approving: "src_good",
                declining: "src_stolen",
                failing_once: "src_flaky",
                losing_an_answer: "src_silent",
            },
        }
    }
}

/// Payment methods of a processor.
#[derive(Clone, Copy, Debug)]
pub struct Cards {
    pub approving: &'static str,
    pub declining: &'static str,
    /// With it the processor fails with the first attempt.
    pub failing_once: &'static str,
    /// With it the first answer gets lost.
    pub losing_an_answer: &'static str,
}

/// The processor.
pub enum Provider {
    Ours(Box<Acquirer>),
    Second(Crossbank),
}

impl Provider {
    /// Starts one. Ours has its books beside `database`.
    pub fn start(dialect: Dialect, database: &TestDatabase) -> Self {
        match dialect {
            Dialect::Ours => Self::Ours(Box::new(Acquirer::start(database))),
            Dialect::Second => Self::Second(Crossbank::start()),
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Ours(acquirer) => acquirer.url.clone(),
            Self::Second(crossbank) => crossbank.url(),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        url::Url::parse(&self.url()).unwrap().socket_addrs(|| None).unwrap()[0]
    }

    /// Makes the command that starts a service with the adapter.
    pub fn service(&self) -> fn() -> Command {
        match self {
            Self::Ours(_) => Process::command,
            Self::Second(_) => service::command,
        }
    }

    /// What the service has to know to reach it, at `url` if it isn't reached directly.
    pub fn environment(&self, url: Option<String>) -> Vec<(&'static str, String)> {
        match self {
            Self::Ours(acquirer) => {
                let url = url.map(|url| ("ONCEPAY_PROCESSOR_URL", url));
                acquirer.environment().into_iter().chain(url).collect()
            }
            Self::Second(crossbank) => {
                vec![(service::URL_VARIABLE, url.unwrap_or_else(|| crossbank.url()))]
            }
        }
    }

    pub fn stop(&mut self) {
        match self {
            Self::Ours(acquirer) => acquirer.stop(),
            Self::Second(crossbank) => crossbank.stop(),
        }
    }

    /// Starts it again on the same port, with its books.
    pub fn start_again(&mut self) {
        match self {
            Self::Ours(acquirer) => acquirer.start_again(),
            Self::Second(crossbank) => crossbank.start_again(),
        }
    }

    /// Has it drop so many of a hundred answers, fail so often before the effect, and so often after it.
    pub fn misbehave(&self, percent: u8) {
        match self {
            Self::Ours(acquirer) => {
                let rules = ["drop_answer", "error_before", "error_after"]
                    .map(|it| json!({"fault": it, "percent": percent}));
                acquirer.control(json!({"rules": rules}));
            }
            Self::Second(crossbank) => crossbank.misbehave(Faults {
                drop_answer: percent,
                error_before: percent,
                error_after: percent,
                ..Faults::default()
            }),
        }
    }

    /// How often it has misbehaved so, in the same order.
    pub fn hits(&self) -> Vec<u64> {
        match self {
            Self::Ours(acquirer) => {
                let faults = acquirer.faults();
                faults["rules"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|rule| rule["hits"].as_u64().unwrap())
                    .collect()
            }
            Self::Second(crossbank) => crossbank.hits().map(u64::from).to_vec(),
        }
    }

    /// Ends that.
    pub fn behave(&self) {
        match self {
            Self::Ours(acquirer) => {
                acquirer.control(json!({"rules": []}));
            }
            Self::Second(crossbank) => crossbank.misbehave(Faults::default()),
        }
    }

    /// Has it forget one capture.
    pub fn forget_a_capture(&self) {
        match self {
            Self::Ours(acquirer) => {
                let forget = "DELETE FROM operations WHERE kind = 'capture' AND id IN \
                              (SELECT id FROM operations WHERE kind = 'capture' ORDER BY sequence LIMIT 1)";
                execute(&mut acquirer.as_owner(), forget);
            }
            Self::Second(crossbank) => crossbank.forget_last("collect"),
        }
    }

    /// How often each operation has taken effect by its books, by our key towards it. Such a key ends with the step that it
    /// names: `…:authorize`, `…:capture` and so on.
    pub fn effects(&self) -> BTreeMap<String, u32> {
        let acquirer = match self {
            Self::Ours(acquirer) => acquirer,
            Self::Second(crossbank) => return crossbank.effects(),
        };
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
    pub fn disagreements(&self, database: &TestDatabase) -> Option<String> {
        let compared = match self {
            Self::Ours(acquirer) => {
                acquirer.wait_for_its_list();
                database.reconcile(&oncepay::server::adapter::of_options(&acquirer.options()).unwrap())
            }
            Self::Second(crossbank) => second_processor::compare(crossbank, database),
        };
        match compared {
            Ok(report) if report.differences.is_empty() => None,
            Ok(report) => Some(format!("the processor doesn't agree:\n{report}")),
            Err(error) => Some(format!("the processor can't be asked: {error}")),
        }
    }
}
