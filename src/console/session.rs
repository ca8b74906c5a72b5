//! Who looks at the pages: a merchant or an operator, by the key that they have entered.
//!
//! The key itself is in the cookie, encrypted for the service alone, and is looked up with every page. So a revoked key ends its
//! sessions at once, on all instances, and there is no table of sessions to keep. The cookie is
//! `HttpOnly` and `SameSite=Strict`: no script reads it, no other site's page sends it. What changes something is
//! also refused unless the browser says that it comes from a page of ours ([`is_own`]).

use std::time::Duration;

use actix_web::cookie::{Cookie, CookieJar, SameSite};
use actix_web::http::header::HeaderMap;
use actix_web::{HttpRequest, HttpResponse, web};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::base::ids::MerchantId;
use crate::base::time;
use crate::error::{Error, Failure};
use crate::web::auth::{API_KEY_PREFIX, AuthenticatedMerchant, AuthenticatedOperator};
use crate::web::this_machine;

use super::state::Console;

/// Name of the cookie.
const COOKIE: &str = "oncepay_console";
/// Where it's sent.
const PATH: &str = "/console";
/// Time after which a person enters the key again: a working day.
const LIFETIME: Duration = Duration::from_secs(LIFETIME_S as u64);
const LIFETIME_S: i64 = 10 * 60 * 60;

/// Whose session it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visitor {
    /// A merchant, who sees what is its own.
    Merchant(MerchantId),
    /// An operator, who sees everything.
    Operator,
}

/// A session with a valid key.
pub struct Session {
    pub visitor: Visitor,
    pub key: SecretString,
}

impl Session {
    /// The session of a request; `None` without one, or when it's over.
    ///
    /// Errors: those of the look-up of a key, but for those of a key that isn't valid any more.
    pub async fn of(request: &HttpRequest) -> Result<Option<Self>, Error> {
        let Some(key) = stored_key(request) else { return Ok(None) };
        match Self::with(request, key).await {
            Ok(session) => Ok(Some(session)),
            Err(error) if is_refusal(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn with(request: &HttpRequest, key: SecretString) -> Result<Self, Error> {
        let text = key.expose_secret();
        let visitor = if text.starts_with(API_KEY_PREFIX) {
            Visitor::Merchant(AuthenticatedMerchant::of_key(request, text).await?.0)
        } else {
            AuthenticatedOperator::of_key(request, text).await?;
            Visitor::Operator
        };
        Ok(Self { visitor, key })
    }

    /// Where the session begins.
    pub fn home(&self) -> String {
        match self.visitor {
            Visitor::Merchant(merchant) => format!("/console/{merchant}/charges"),
            Visitor::Operator => "/console/attention".to_owned(),
        }
    }

    /// The merchant, if it's a merchant's.
    pub fn merchant(&self) -> Option<MerchantId> {
        match self.visitor {
            Visitor::Merchant(merchant) => Some(merchant),
            Visitor::Operator => None,
        }
    }

    pub fn is_operator(&self) -> bool {
        self.visitor == Visitor::Operator
    }
}

/// Whether an error says that a key isn't valid.
pub fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Failure(Failure::ApiKeyInvalid | Failure::ApiKeyRevoked))
}

/// What the cookie holds.
#[derive(Serialize, Deserialize)]
struct Stored {
    key: String,
    /// In seconds since 1970. A browser may keep a cookie for longer than it was told.
    expires: i64,
}

pub fn console(request: &HttpRequest) -> &Console {
    request.app_data::<web::Data<Console>>().expect("the server provides it")
}

fn stored_key(request: &HttpRequest) -> Option<SecretString> {
    let mut jar = CookieJar::new();
    jar.add_original(request.cookie(COOKIE)?);
    let cookie = jar.private(&console(request).cookie_key).get(COOKIE)?;
    let stored: Stored = serde_json::from_str(cookie.value()).ok()?;
    (stored.expires > time::now().timestamp()).then(|| stored.key.into())
}

/// A cookie for this request's browser.
fn cookie(request: &HttpRequest, value: String, lifetime: Duration) -> Cookie<'static> {
    Cookie::build(COOKIE, value)
        .path(PATH)
        .http_only(true)
        .same_site(SameSite::Strict)
        // Browsers take no secure cookie over plain HTTP, which nobody else hears on one machine.
        .secure(!this_machine::is_named_by(request))
        .max_age(lifetime.try_into().expect("hours fit"))
        .finish()
}

/// Makes the browser keep the session.
pub fn begin(request: &HttpRequest, session: &Session, answer: &mut HttpResponse) {
    let expires = time::now().timestamp() + LIFETIME_S;
    let stored = Stored { key: session.key.expose_secret().to_owned(), expires };
    let value = serde_json::to_string(&stored).expect("two members have a text");
    let mut jar = CookieJar::new();
    jar.private_mut(&console(request).cookie_key).add(cookie(request, value, LIFETIME));
    for cookie in jar.delta() {
        answer.add_cookie(cookie).expect("an encrypted value is visible ASCII");
    }
}

/// Makes the browser forget the session.
pub fn end(request: &HttpRequest, answer: &mut HttpResponse) {
    let gone = cookie(request, String::new(), Duration::ZERO);
    answer.add_cookie(&gone).expect("nothing is visible ASCII");
}

/// Whether a request that changes something comes from a page of ours: browsers say so themselves, and another site's page can't
/// make them say otherwise.
pub fn is_own(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text("sec-fetch-site") {
        return site == "same-origin";
    }
    // For browsers that don't say it that way, and for those that do it only over TLS.
    let origin = text("origin").and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(_, host)| text("host") == Some(host))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn only_own_pages_may_change_something() {
        for own in [
            &[("sec-fetch-site", "same-origin")][..],
            &[("origin", "https://pay.example"), ("host", "pay.example")],
            &[("origin", "http://127.0.0.1:8080"), ("host", "127.0.0.1:8080")],
        ] {
            assert!(is_own(&headers(own)), "{own:?}");
        }
        for foreign in [
            &[][..],
            &[("sec-fetch-site", "same-site"), ("origin", "https://pay.example"), ("host", "pay.example")],
            &[("sec-fetch-site", "none")],
            &[("origin", "null"), ("host", "null")],
            &[("origin", "https://evil.example"), ("host", "pay.example")],
            &[("host", "pay.example")],
        ] {
            assert!(!is_own(&headers(foreign)), "{foreign:?}");
        }
    }
}
