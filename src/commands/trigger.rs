//! `oncepay trigger`: creates the objects that an event needs, and has the processor send the event.
//!
//! With `oncepay dev --processor http`, the simulator next to the service sends the event, and its books change with
//! ours. The sandbox keeps no books and sends nothing, so the command signs and sends the event itself. It never does
//! that where the service has a processor: the processor's books would contradict ours for good.

use std::io::Write;

use clap::ValueEnum;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{self, ApiClient};
use crate::base::ids::MerchantId;
use crate::base::signature::{self, Secret};
use crate::base::time::{self, Timestamp};
use crate::web::auth::merchant_of_key;

use super::exit::Stop;
use super::shared::{write_item, write_line};

const SIMULATOR_CONTROL_URL: &str = "ONCEPAY_SIMULATOR_CONTROL_URL";
const PROCESSOR_URL: &str = "ONCEPAY_PROCESSOR_URL";

/// The events that the processor can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    #[value(name = "charge.succeeded")]
    ChargeSucceeded,
    #[value(name = "charge.failed")]
    ChargeFailed,
    #[value(name = "refund.failed")]
    RefundFailed,
    #[value(name = "payout.paid")]
    PayoutPaid,
    #[value(name = "payout.failed")]
    PayoutFailed,
    #[value(name = "settlement.paid")]
    SettlementPaid,
    #[value(name = "dispute.opened")]
    DisputeOpened,
    #[value(name = "dispute.won")]
    DisputeWon,
    #[value(name = "dispute.lost")]
    DisputeLost,
}

impl Kind {
    /// Name of the event.
    fn name(self) -> String {
        self.to_possible_value().expect("none is hidden").get_name().to_owned()
    }
}

/// Options of the `trigger` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Event to send
    #[arg(required_unless_present = "list")]
    kind: Option<Kind>,

    /// List the events instead
    #[arg(long, conflicts_with = "kind")]
    list: bool,

    /// List them as JSON: an object a line
    #[arg(long, requires = "list")]
    json: bool,

    #[command(flatten)]
    service: client::Options,

    /// Address of the simulator's control port, such as `http://127.0.0.1:9090/control`; default: the one in
    /// dev.env
    #[arg(long, env = SIMULATOR_CONTROL_URL)]
    simulator_control_url: Option<String>,

    /// Address of the service's processor; default: the one in dev.env. Unless it's a simulator, nothing is sent
    #[arg(long, env = PROCESSOR_URL)]
    processor_url: Option<String>,

    /// Secret that the service expects from the processor, used if the service has a sandbox; default: the one in
    /// dev.env
    #[arg(long, env = "ONCEPAY_WEBHOOK_SECRET", hide_env_values = true)]
    webhook_secret: Option<SecretString>,
}

/// Runs `oncepay trigger`: creates the objects of the event, and has it sent.
pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Stop> {
    let Some(kind) = options.kind else {
        for kind in Kind::value_variants() {
            match options.json {
                true => write_item(out, &json!({"type": kind.name()}))?,
                false => write_line(out, &kind.name()),
            }
        }
        return Ok(());
    };
    let api = ApiClient::new(&options.service)?;
    let merchant = merchant_of_key(api.api_key().expose_secret())
        .ok_or("The API key is malformed: it's sk_test_ and 64 hexadecimal digits.")?;
    let control =
        options.simulator_control_url.clone().or_else(|| options.service.setting(SIMULATOR_CONTROL_URL));
    let processor = options.processor_url.clone().or_else(|| options.service.setting(PROCESSOR_URL));
    let simulator = match (control, processor) {
        (Some(control), _) => {
            let control = control.trim_end_matches('/').to_owned();
            Simulator::Server { client: client::client()?, control }
        }
        (None, Some(url)) => {
            return Err(Stop::Failed(format!(
                "The service has a processor, {url}, so events must come from there: sent from here, they would \
                 contradict its books. If it's a simulator, set {SIMULATOR_CONTROL_URL} to its control port's address."
            )));
        }
        (None, None) => {
            let secrets = options.service.required(&options.webhook_secret, "ONCEPAY_WEBHOOK_SECRET")?;
            // The service accepts several secrets while one replaces another.
            let secret = secrets.expose_secret().split(',').next().unwrap_or_default().trim();
            Simulator::Sandbox { client: client::client()?, secret: Secret::parse(secret)? }
        }
    };
    let trigger = Trigger { api, merchant, simulator };
    Ok(actix_web::rt::System::new().block_on(trigger.pull(kind))?)
}

/// The sender of events.
enum Simulator {
    /// The simulator, through its control port.
    Server { client: reqwest::Client, control: String },
    /// This command itself.
    Sandbox { client: reqwest::Client, secret: Secret },
}

struct Trigger {
    api: ApiClient,
    merchant: MerchantId,
    simulator: Simulator,
}

impl Trigger {
    async fn pull(&self, kind: Kind) -> Result<(), String> {
        match kind {
            Kind::ChargeSucceeded | Kind::ChargeFailed => {
                let charge = self.charge("pm_card_async").await?;
                self.decide(kind, &charge).await
            }
            Kind::RefundFailed => {
                let charge = self.charge("pm_card_visa").await?;
                let refund =
                    self.make("/v1/refunds", &json!({"charge_id": charge, "amount": "5.00"})).await?;
                self.send(kind, self.about(&refund)).await
            }
            Kind::PayoutPaid | Kind::PayoutFailed => {
                self.charge("pm_card_visa").await?;
                // The simulator fails payouts to this account.
                let destination = if kind == Kind::PayoutFailed { "ba_fail" } else { "ba_main" };
                let body = json!({"amount": "5.00", "currency": "USD", "destination": destination});
                let payout = self.make("/v1/payouts", &body).await?;
                self.settle_payout(kind, &payout).await
            }
            Kind::SettlementPaid => {
                self.charge("pm_card_visa").await?;
                self.settle(kind).await
            }
            Kind::DisputeOpened | Kind::DisputeWon | Kind::DisputeLost => {
                let charge = self.charge("pm_card_visa").await?;
                let mut data = self.about(&charge);
                data["dispute"] = format!("dsp_{}", Uuid::new_v4().as_simple()).into();
                data["reason"] = "fraudulent".into();
                self.send(Kind::DisputeOpened, data.clone()).await?;
                if kind == Kind::DisputeOpened { Ok(()) } else { self.send(kind, data).await }
            }
        }
    }

    async fn charge(&self, payment_method: &str) -> Result<String, String> {
        let body = json!({"amount": "12.50", "currency": "USD", "payment_method": payment_method});
        self.make("/v1/charges", &body).await
    }

    /// Creates an object and returns its id.
    async fn make(&self, path: &str, body: &Value) -> Result<String, String> {
        let made = self.api.post(path, body).await?;
        let id = made["id"].as_str().ok_or("The service created an object without an id.")?;
        println!("Created {id}");
        Ok(id.to_owned())
    }

    fn about(&self, reference: &str) -> Value {
        json!({"merchant": self.merchant, "reference": reference})
    }

    async fn decide(&self, kind: Kind, charge: &str) -> Result<(), String> {
        match &self.simulator {
            Simulator::Server { .. } => {
                let decision = json!({"reference": charge, "approve": kind == Kind::ChargeSucceeded});
                self.control("decisions", &decision).await?;
                println!("The simulator has decided, and sends {}.", kind.name());
                Ok(())
            }
            Simulator::Sandbox { .. } => self.send(kind, self.about(charge)).await,
        }
    }

    async fn settle_payout(&self, kind: Kind, payout: &str) -> Result<(), String> {
        match &self.simulator {
            Simulator::Server { .. } => {
                println!("The simulator sends {} by itself, in a second or so.", kind.name());
                Ok(())
            }
            Simulator::Sandbox { .. } => self.send(kind, self.about(payout)).await,
        }
    }

    async fn settle(&self, kind: Kind) -> Result<(), String> {
        match &self.simulator {
            Simulator::Server { .. } => {
                let whose = json!({"merchant": self.merchant, "currency": "USD"});
                let settlement = self.control("settlements", &whose).await?;
                let amount = settlement["amount"].as_str().unwrap_or_default();
                println!("The simulator sends {} of {amount} USD.", kind.name());
                Ok(())
            }
            Simulator::Sandbox { .. } => {
                let id = format!("set_{}", Uuid::now_v7().as_simple());
                let data = json!({"id": id, "merchant": self.merchant, "amount": "12.50", "currency": "USD"});
                self.send(kind, data).await
            }
        }
    }

    /// Sends an event, or has the simulator send it.
    async fn send(&self, kind: Kind, data: Value) -> Result<(), String> {
        let kind = kind.name();
        match &self.simulator {
            Simulator::Server { .. } => {
                let event = self.control("events", &json!({"type": kind, "data": data})).await?;
                println!(
                    "The simulator sends {kind} as its event {}",
                    event["id"].as_str().unwrap_or_default()
                );
            }
            Simulator::Sandbox { client, secret } => {
                let now = time::now();
                let id = format!("evt_{}", Uuid::now_v7().as_simple());
                let body = json!({"type": kind, "timestamp": Timestamp(now), "data": data}).to_string();
                let signature = secret.sign(&id, now.timestamp(), body.as_bytes());
                let request = client
                    .post(self.api.at("/v1/webhooks/acquirer"))
                    .header("Content-Type", "application/json")
                    .header(signature::ID, &id)
                    .header(signature::TIMESTAMP, now.timestamp())
                    .header(signature::SIGNATURE, signature)
                    .body(body);
                let receipt = client::answer(request).await?;
                println!(
                    "Sent {kind} as the processor's event {id}: {}",
                    receipt["state"].as_str().unwrap_or_default()
                );
            }
        }
        Ok(())
    }

    async fn control(&self, path: &str, body: &Value) -> Result<Value, String> {
        let Simulator::Server { client, control } = &self.simulator else {
            return Err("The sandbox has no control.".to_owned());
        };
        Ok(client::answer(client.post(format!("{control}/{path}")).json(body)).await?)
    }
}
