use oncepay_client::{CreateCharge, Error, Oncepay}; // ONCEPAY_URL=… ONCEPAY_API_KEY=… cargo run --example charge order-1001

fn main() {
    let setting = |name| std::env::var(name).expect("ONCEPAY_URL and ONCEPAY_API_KEY are set");
    let oncepay = Oncepay::new(&setting("ONCEPAY_URL"), &setting("ONCEPAY_API_KEY"), Some("payments".into()));
    let order = std::env::args().nth(1).unwrap_or("order-1001".to_owned());
    let [amount, currency, payment_method] = ["12.50", "USD", "pm_card_visa"].map(String::from);
    let body = CreateCharge { amount, currency, payment_method, ..Default::default() };
    match oncepay.charges_create(&order, &body) {
        Ok(charge) => println!("{order} is paid: {} is {}", charge.id, charge.status),
        Err(Error::Refused { problem: Some(problem), .. }) => {
            eprintln!("{order} isn't paid: {}", problem.detail)
        }
        Err(error) => eprintln!("{order} may be paid: {error}"),
    }
}
