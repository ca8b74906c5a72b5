//! What every page does first: whose session it is, and whether the page is theirs to see.

use actix_web::{HttpRequest, HttpResponse, web};

use crate::base::ids::MerchantId;
use crate::error::Error;
use crate::storage::db::Db;

use super::entry;
use super::page::{self, Page, Place};
use super::session::{self, Session, Visitor};
use super::state::Console;

/// What a handler of a page gets.
pub struct View {
    pub session: Session,
    pub db: web::Data<Db>,
    pub console: web::Data<Console>,
    /// The merchant that the page is about.
    merchant: Option<MerchantId>,
}

impl View {
    /// The merchant of a page that has one.
    pub fn merchant(&self) -> MerchantId {
        self.merchant.expect("the page is about a merchant")
    }
}

/// Answers with the page that `make` returns. A form must come from a page of ours. Without a session, asks for a key. A merchant that isn't the session's isn't
/// there.
pub async fn show(
    request: &HttpRequest,
    make: impl AsyncFnOnce(&View) -> Result<Page, Error>,
) -> HttpResponse {
    if !request.method().is_safe() && !session::is_own(request.headers()) {
        return page::foreign(request);
    }
    let view = match view(request).await {
        Ok(Some(view)) => view,
        Ok(None) => return entry::form(request, None),
        Err(error) => return page::failure(request, &error),
    };
    match make(&view).await {
        Ok(page) => {
            let has_storm = view.merchant.is_some() && view.merchant == view.console.development_merchant();
            let is_operator = view.session.is_operator();
            page.within(Place { merchant: view.merchant, is_operator, has_storm }).answer(request, 200)
        }
        Err(error) => page::failure(request, &error),
    }
}

async fn view(request: &HttpRequest) -> Result<Option<View>, Error> {
    let Some(session) = Session::of(request).await? else { return Ok(None) };
    let merchant = match request.match_info().get("merchant") {
        Some(text) => Some(text.parse::<MerchantId>().map_err(|_| Error::RouteNotFound)?),
        None => None,
    };
    match (&session.visitor, merchant) {
        (Visitor::Operator, _) => {}
        (Visitor::Merchant(own), Some(merchant)) if *own == merchant => {}
        // Pages about no merchant know themselves for whom they are.
        (Visitor::Merchant(_), None) => {}
        (Visitor::Merchant(_), Some(_)) => return Err(Error::RouteNotFound),
    }
    let db = request.app_data::<web::Data<Db>>().expect("the server provides it").clone();
    let console = request.app_data::<web::Data<Console>>().expect("the server provides it").clone();
    Ok(Some(View { session, db, console, merchant }))
}
