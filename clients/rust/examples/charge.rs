use oncepay_client::{CreateCharge, Error, Oncepay};

fn main() {
    let setting = |name| std::env::var(name).expect("ONCEPAY_URL and ONCEPAY_API_KEY are set");
    let folder = Some("payments".into());
    let oncepay = Oncepay::new(&setting("ONCEPAY_URL"), &setting("ONCEPAY_API_KEY"), folder);
    let order = std::env::args().nth(1).unwrap_or("order-1001".into());
    let [amount, currency, payment_method] = ["12.50", "USD", "pm_card_visa"].map(Into::into);
    let reference = Some(order.clone());
    let body = CreateCharge { amount, currency, payment_method, reference, ..Default::default() };
    match oncepay.charges_create(&order, &body) {
        Ok(charge) => println!("{order} is paid: {} is {}", charge.id, charge.status),
        Err(Error::Refused { problem, .. }) => eprintln!("{order} isn't paid: {problem:?}"),
        Err(error) => eprintln!("{order} may be paid: {error}"),
    }
}
