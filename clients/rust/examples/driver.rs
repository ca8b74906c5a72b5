//! Charges orders, several at a time, and writes a line for each: the charge, or the error. .ci/clients.py runs and kills it.
//! `ONCEPAY_URL=… ONCEPAY_API_KEY=… driver FOLDER WORKERS SECONDS AMOUNT ORDER…`

use std::env::{args, var};
use std::sync::Mutex;
use std::time::Duration;

use oncepay_client::{CreateCharge, Oncepay};
use serde_json::json;

fn main() {
    let mut arguments = args().skip(1);
    let [folder, workers, seconds, amount] =
        std::array::from_fn(|_| arguments.next().expect("four arguments"));
    let [url, key] = ["ONCEPAY_URL", "ONCEPAY_API_KEY"].map(|name| var(name).expect("both settings"));
    let mut oncepay = Oncepay::new(&url, &key, Some(folder.into()));
    oncepay.attempt_timeout = Duration::from_secs(3);
    oncepay.give_up_after = Duration::from_secs_f64(seconds.parse().expect("seconds"));
    let waiting = Mutex::new(arguments.collect::<Vec<_>>().into_iter());
    let next = || waiting.lock().expect("no thread panics").next();
    std::thread::scope(|scope| {
        for _ in 0..workers.parse().expect("a number") {
            scope.spawn(|| {
                while let Some(order) = next() {
                    let body = CreateCharge {
                        amount: amount.clone(),
                        currency: "USD".into(),
                        payment_method: "pm_card_visa".into(),
                        reference: Some(order.clone()),
                        ..Default::default()
                    };
                    let line = match oncepay.charges_create(&order, &body) {
                        Ok(charge) => json!({"order": order, "charge": charge}),
                        Err(error) => {
                            let kind = format!("{error:?}");
                            let kind = kind.split(['(', ' ']).next();
                            json!({"order": order, "error": kind, "message": error.to_string()})
                        }
                    };
                    println!("{line}");
                }
            });
        }
    });
}
