//! Where a person enters the key, and leaves again.

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use maud::html;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::web::this_machine;

use super::page::{self, Page};
use super::session::{self, Session};

/// The entry: leads on if there is a session, and asks for a key if not.
#[get("/console")]
pub async fn enter(request: HttpRequest) -> HttpResponse {
    match Session::of(&request).await {
        Ok(Some(session)) => page::redirect(&session.home()),
        Ok(None) => form(&request, None),
        Err(error) => page::failure(&request, &error),
    }
}

/// The page that asks for a key, with what was wrong with the last one.
pub fn form(request: &HttpRequest, wrong: Option<&str>) -> HttpResponse {
    let keys =
        session::console(request).development_keys.as_ref().filter(|_| this_machine::is_named_by(request));
    let content = html! {
        p.lead { "What happened to a payment: who asked for it, how often, and what came of it." }
        form.stack method="post" action="/console/session" {
            label for="key" { "API key or operator key" }
            input #key name="key" type="password" autocomplete="current-password" required autofocus
                aria-describedby=[wrong.map(|_| "wrong")] aria-invalid=[wrong.map(|_| "true")];
            @if let Some(wrong) = wrong { p #wrong.wrong role="alert" { (wrong) } }
            button { "Enter" }
        }
        p.soft { "A merchant's key shows what is the merchant's. An operator's key shows everything." }
        @if let Some(keys) = keys {
            section.card {
                h2 { "Development environment" }
                p { "It has a key of each kind. Outside of it, nobody is offered any." }
                div.actions {
                    (key_button("Enter as the merchant", &keys.api_key))
                    (key_button("Enter as an operator", &keys.operator_key))
                }
            }
        }
    };
    let status = if wrong.is_some() { 422 } else { 200 };
    Page::new("Enter the console", content).answer(request, status)
}

fn key_button(text: &str, key: &SecretString) -> maud::Markup {
    html! {
        form method="post" action="/console/session" {
            input type="hidden" name="key" value=(key.expose_secret());
            button.quiet { (text) }
        }
    }
}

/// The form of the entry.
#[derive(Deserialize)]
pub struct Entered {
    key: String,
}

/// Begins a session. Needs no limit on tries: a key has 128 random bits.
#[post("/console/session")]
pub async fn sign_in(request: HttpRequest, entered: web::Form<Entered>) -> HttpResponse {
    if !session::is_own(request.headers()) {
        return page::foreign(&request);
    }
    let key = SecretString::from(entered.into_inner().key.trim());
    match Session::with(&request, key).await {
        Ok(session) => {
            let mut answer = page::redirect(&session.home());
            session::begin(&request, &session, &mut answer);
            answer
        }
        Err(error) if session::is_refusal(&error) => {
            form(&request, Some("There is no such key, or it was revoked."))
        }
        Err(error) => page::failure(&request, &error),
    }
}

/// Ends the session.
#[post("/console/session/end")]
pub async fn sign_out(request: HttpRequest) -> HttpResponse {
    if !session::is_own(request.headers()) {
        return page::foreign(&request);
    }
    let mut answer = page::redirect("/console");
    session::end(&request, &mut answer);
    answer
}
