//! The balances of a merchant's accounts, and how one of them came about.

use actix_web::{HttpRequest, HttpResponse, get, web};
use chrono::{DateTime, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Numeric, Timestamptz, Uuid as SqlUuid};
use maud::{Markup, html};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use serde::Deserialize;

use crate::base::ids::{AccountId, MerchantId};
use crate::base::time;
use crate::error::Error;
use crate::ledger::api::{AccountLine, Side, account_lines};
use crate::storage::sql::statement;

use super::chart;
use super::page::{self, Page};
use super::view;

/// Number of postings over which the chart goes back.
const POSTINGS_MAX: u16 = 20_000;
/// Number of points that the chart draws.
const POINTS_MAX: usize = 360;

/// Which account's chart is shown.
#[derive(Deserialize)]
pub struct Asked {
    #[serde(default)]
    account: String,
}

/// A balance at the time of a posting.
type Point = (DateTime<Utc>, Decimal);

/// Shows the balances now, and one over time.
#[get("/console/{merchant}/balances")]
pub async fn show(request: HttpRequest, asked: web::Query<Asked>) -> HttpResponse {
    view::show(&request, async |view| {
        let merchant = view.merchant();
        let asked = asked.into_inner().account.parse::<AccountId>().ok();
        let (lines, shown) = view
            .db
            .run_retrying(move |conn| {
                let lines = account_lines(conn, merchant, None)?;
                let place = match asked {
                    Some(id) => lines.iter().position(|line| line.id == id),
                    None => lines.iter().position(|line| line.kind == "merchant_payable"),
                };
                let points = match place {
                    Some(place) => Some((place, points(conn, merchant, &lines[place])?)),
                    None => None,
                };
                Ok::<_, Error>((lines, points))
            })
            .await?;
        let content = html! {
            @if lines.is_empty() { (page::nothing("Nothing has been posted yet.")) }
            @else {
                @if let Some((place, points)) = &shown { (over_time(&lines[*place], points)) }
                h2 { "Accounts" }
                (accounts(merchant, &lines))
            }
        };
        Ok(Page::new("Balances", content).of("Balances"))
    })
    .await
}

/// The balances before and after the newest postings, oldest first: from the current balance backward, so that it reads no more
/// than it shows.
fn points(conn: &mut PgConnection, merchant: MerchantId, line: &AccountLine) -> Result<Vec<Point>, Error> {
    let postings = statement::<(Timestamptz, Numeric)>(
        "SELECT created_at, amount FROM postings WHERE merchant_id = {} AND account_id = {} \
         ORDER BY created_at DESC LIMIT {}",
    )
    .bind::<SqlUuid, _>(merchant)
    .bind::<SqlUuid, _>(line.id)
    .bind::<BigInt, _>(i64::from(POSTINGS_MAX))
    .load::<(DateTime<Utc>, Decimal)>(conn)?;
    let sign = if line.normal_side() == Side::Debit { Decimal::ONE } else { Decimal::NEGATIVE_ONE };
    let mut balance = line.balance * sign;
    let mut points = vec![(time::now(), balance)];
    for (at, amount) in postings {
        points.push((at, balance));
        balance -= amount * sign;
    }
    points.reverse();
    Ok(points)
}

fn over_time(line: &AccountLine, points: &[Point]) -> Markup {
    let every = points.len().div_ceil(POINTS_MAX).max(1);
    let drawn: Vec<_> = points
        .iter()
        .enumerate()
        .filter(|(number, _)| number % every == 0 || number + 1 == points.len())
        .filter_map(|(_, (at, balance))| Some((at.timestamp_millis() as f64, balance.to_f64()?)))
        .collect();
    let (Some((from, first)), Some((_, last))) = (points.first(), points.last()) else { return html! {} };
    let highest = points.iter().map(|(_, balance)| *balance).max().unwrap_or_default();
    let lowest = points.iter().map(|(_, balance)| *balance).min().unwrap_or_default();
    let shown = |amount: Decimal| page::amount_only(amount, &line.currency);
    let name = line.kind.replace('_', " ");
    let label = format!(
        "Balance of {name} in {}: from {} to {}, between {} and {}",
        line.currency,
        shown(*first),
        shown(*last),
        shown(lowest),
        shown(highest),
    );
    html! {
        h2 { (name) ", " (line.currency) }
        p.figure { (page::money(*last, &line.currency)) }
        @if points.len() > 1 {
            (chart::steps(&label, &drawn, &shown(highest), &shown(lowest)))
            p.soft {
                "Since " (page::time(*from)) " UTC, "
                @if points.len() > usize::from(POSTINGS_MAX) { "the newest " } @else { "all " }
                (points.len() - 1) " postings."
            }
        }
    }
}

fn accounts(merchant: MerchantId, lines: &[AccountLine]) -> Markup {
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            let debit = if line.balance.is_sign_positive() { line.balance } else { Decimal::ZERO };
            let credit = if line.balance.is_sign_negative() { -line.balance } else { Decimal::ZERO };
            let shown = |amount: Decimal| {
                if amount.is_zero() { String::new() } else { page::amount_only(amount, &line.currency) }
            };
            html! {
                th scope="row" {
                    a href={ "/console/" (merchant) "/balances?account=" (line.id) } { (line.kind.replace('_', " ")) }
                }
                td.right { (shown(debit)) }
                td.right { (shown(credit)) }
                td { (line.currency) }
            }
        })
        .collect();
    page::table("Accounts", &["Account", "=Debit", "=Credit", "Currency"], &rows)
}
