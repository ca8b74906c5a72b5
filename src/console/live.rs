//! What this instance sees, as it happens: outcomes and latency of the last minute.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, get};
use chrono::{DateTime, TimeDelta, Utc};
use maud::{Markup, html};

use crate::base::logging::milliseconds;
use crate::base::time;
use crate::error::Error;
use crate::idempotency_api::key_list::{self, KeyFilter, KeyQuery};
use crate::web::lists::{Cursor, Page as Range};

use super::chart;
use super::page::{self, Page};
use super::seen::{KINDS, Seen};
use super::view;

/// Seconds that the charts show.
const WINDOW_S: u8 = 60;

/// Keys in progress that are counted at most.
const COUNTED_MAX: u16 = 100;

/// What an instance sees of all merchants, for operators.
#[get("/console/live")]
pub async fn of_all(request: HttpRequest) -> HttpResponse {
    show(&request, false).await
}

/// What an instance sees of a merchant.
#[get("/console/{merchant}/live")]
pub async fn of_merchant(request: HttpRequest) -> HttpResponse {
    show(&request, true).await
}

async fn show(request: &HttpRequest, has_merchant: bool) -> HttpResponse {
    view::show(request, async |view| {
        if !has_merchant && !view.session.is_operator() {
            return Err(Error::RouteNotFound);
        }
        let merchant = has_merchant.then(|| view.merchant());
        let now = time::now();
        let seen = view.console.live().since(now - TimeDelta::seconds(WINDOW_S.into()), merchant);
        let query = KeyQuery { filter: KeyFilter::InProgress, merchant, ..KeyQuery::default() };
        let first = || Range { limit: COUNTED_MAX.into(), cursor: Cursor::Newest };
        let under_way =
            view.db.run_retrying(move |conn| Ok::<_, Error>(key_list::list(conn, &query, first())?)).await?;
        let under_way = under_way.map_or(0, |list| list.data.len());
        let path = request.path().to_owned();
        let content = html! {
            div #live hx-get=(path) hx-trigger="every 2s" hx-swap="outerHTML" {
                (charts(now, &seen, under_way))
                p.soft { "As of " (page::time(now)) " UTC, by this instance's own requests. " a href=(path) { "Look again" } }
            }
        };
        Ok(Page::new("Live", content).of("Live"))
    })
    .await
}

fn charts(now: DateTime<Utc>, seen: &[Arc<Seen>], under_way: usize) -> Markup {
    let mut seconds = vec![vec![0_u32; KINDS.len()]; WINDOW_S.into()];
    let mut slowest = vec![0.0_f64; WINDOW_S.into()];
    let mut totals = [0_u32; KINDS.len()];
    for seen in seen {
        let ago = usize::try_from((now - seen.at).num_seconds()).unwrap_or_default();
        let second = seconds.len() - 1 - ago.min(seconds.len() - 1);
        seconds[second][seen.kind()] += 1;
        totals[seen.kind()] += 1;
        slowest[second] = slowest[second].max(milliseconds(seen.duration));
    }
    let mut durations: Vec<_> = seen.iter().map(|seen| milliseconds(seen.duration)).collect();
    durations.sort_by(f64::total_cmp);
    let quantile = |percent: usize| {
        let rank = (durations.len() * percent).div_ceil(100).max(1) - 1;
        durations.get(rank).map_or_else(|| "–".to_owned(), |ms| format!("{ms:.1} ms"))
    };
    let points: Vec<_> = slowest.iter().enumerate().map(|(at, ms)| (at as f64, *ms)).collect();
    let highest = slowest.iter().copied().fold(0.0, f64::max);
    let classes = KINDS.map(|(name, _)| name);
    let in_words =
        KINDS.iter().zip(totals).map(|((name, _), count)| format!("{count} {name}")).collect::<Vec<_>>();
    html! {
        (page::facts(&[
            ("In progress", html! { (under_way) @if under_way == usize::from(COUNTED_MAX) { " or more" } }),
            ("In this minute", html! { (seen.len()) " requests" }),
            ("Half within", html! { (quantile(50)) }),
            ("99 % within", html! { (quantile(99)) }),
        ]))
        h2 { "Outcomes per second" }
        (chart::bars(&format!("Outcomes in each of the last {WINDOW_S} seconds: {}", in_words.join(", ")), &classes, &seconds, 4))
        (chart::legend(KINDS.into_iter().zip(totals)))
        h2 { "Slowest answer per second" }
        (chart::steps(
            &format!("The slowest answer in each of the last {WINDOW_S} seconds, at most {highest:.0} ms"),
            &points, &format!("{highest:.0} ms"), "0 ms",
        ))
    }
}
