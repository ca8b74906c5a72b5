//! All routes and operations, each listed once.

use std::sync::LazyLock;

use actix_web::dev::HttpServiceFactory;
use actix_web::{App, web};
use utoipa::openapi::OpenApi;
use utoipa_actix_web::{AppExt, OpenApiFactory, service_config};

use crate::host::{self, RegisteredOperation};
use crate::idempotency::ResourceKind;
use crate::idempotency_api::{keys, policies, resolve};
use crate::ledger::{api as ledger, operator_entries};
use crate::payments::{balance, charges, disputes, payouts, refunds};
use crate::tenants::{api_keys, issued_keys, merchants};
use crate::webhooks::{endpoints, events_api};
use crate::{audit, inbound};

use super::{openapi, openapi_components};

/// What routes are registered with: a server, or the OpenAPI document. A server that described its routes too, as
/// [`utoipa_actix_web`] has it, would make the document again in each of its workers, for nobody.
pub(super) trait Routes {
    /// Registers a route.
    fn service(&mut self, route: impl HttpServiceFactory + OpenApiFactory + 'static) -> &mut Self;
}

impl Routes for web::ServiceConfig {
    fn service(&mut self, route: impl HttpServiceFactory + OpenApiFactory + 'static) -> &mut Self {
        self.service(route)
    }
}

impl Routes for service_config::ServiceConfig<'_> {
    fn service(&mut self, route: impl HttpServiceFactory + OpenApiFactory + 'static) -> &mut Self {
        self.service(route)
    }
}

/// Registers the API's operations, each described next to its handler.
pub(super) fn routes(config: &mut impl Routes) {
    config
        .service(charges::create::create)
        .service(charges::read::list)
        .service(charges::read::get)
        .service(charges::update::update)
        .service(charges::capture::capture)
        .service(charges::cancel::cancel)
        .service(refunds::create)
        .service(refunds::list)
        .service(refunds::get)
        .service(payouts::create)
        .service(payouts::list)
        .service(payouts::get)
        .service(disputes::list)
        .service(disputes::get)
        .service(inbound::receive)
        .service(api_keys::create)
        .service(api_keys::list)
        .service(api_keys::revoke)
        .service(endpoints::create)
        .service(endpoints::list)
        .service(endpoints::get)
        .service(endpoints::update)
        .service(endpoints::rotate_secret)
        .service(endpoints::remove)
        .service(events_api::list)
        .service(events_api::get)
        .service(events_api::list_deliveries)
        .service(events_api::redeliver)
        .service(merchants::create)
        .service(merchants::list)
        .service(merchants::get)
        .service(merchants::change_pricing)
        .service(issued_keys::issue)
        .service(audit::api::audit_books)
        .service(keys::get)
        .service(keys::list)
        .service(keys::get_any)
        .service(keys::retry)
        .service(keys::release)
        .service(resolve::resolve_key)
        .service(operator_entries::post)
        .service(inbound::api::list)
        .service(inbound::api::get)
        .service(inbound::api::replay)
        .service(inbound::api::dismiss)
        .service(policies::list)
        .service(policies::list_for_operators)
        .service(policies::get)
        .service(policies::replace)
        .service(policies::list_changes)
        .service(balance::get)
        .service(ledger::list_accounts)
        .service(ledger::get_account)
        .service(ledger::list_postings)
        .service(ledger::get_account_balance)
        .service(ledger::list_entries)
        .service(ledger::get_entry)
        .service(ledger::get_trial_balance);
}

/// Lists the operations that change something.
pub fn operations() -> Vec<RegisteredOperation> {
    vec![
        RegisteredOperation::batched::<charges::create::CreateCharge>(),
        RegisteredOperation::external::<charges::capture::CaptureCharge>(),
        RegisteredOperation::external::<charges::cancel::CancelCharge>(),
        RegisteredOperation::local::<charges::update::UpdateCharge>(),
        RegisteredOperation::external::<refunds::CreateRefund>(),
        RegisteredOperation::external::<payouts::CreatePayout>(),
        RegisteredOperation::local::<inbound::ReceiveEvent>(),
        RegisteredOperation::local::<inbound::api::ReplayEvent>(),
        RegisteredOperation::local::<inbound::api::DismissEvent>(),
        RegisteredOperation::local::<api_keys::CreateApiKey>(),
        RegisteredOperation::local::<api_keys::RevokeApiKey>(),
        RegisteredOperation::local::<endpoints::CreateWebhookEndpoint>(),
        RegisteredOperation::local::<endpoints::UpdateWebhookEndpoint>(),
        RegisteredOperation::local::<endpoints::RotateSecret>(),
        RegisteredOperation::local::<endpoints::DeleteWebhookEndpoint>(),
        RegisteredOperation::local::<events_api::RedeliverEvent>(),
        RegisteredOperation::local::<merchants::CreateMerchant>(),
        RegisteredOperation::local::<merchants::ChangePricing>(),
        RegisteredOperation::local::<issued_keys::IssueApiKey>(),
        RegisteredOperation::local::<keys::RetryKey>(),
        RegisteredOperation::local::<keys::ReleaseKey>(),
        RegisteredOperation::local::<resolve::ResolveKey>(),
        RegisteredOperation::local::<operator_entries::PostJournalEntry>(),
        RegisteredOperation::local::<policies::ReplacePolicy>(),
    ]
}

/// Lists the kinds of resources of the operations.
pub fn resource_kinds() -> Vec<&'static ResourceKind> {
    host::resource_kinds(&operations())
}

/// The OpenAPI document of the API. It takes a while to make, so all servers of a process share one.
pub fn document() -> &'static OpenApi {
    static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(|| {
        let mut document = assembled_document();
        openapi_components::tighten(&mut document);
        openapi_components::share(&mut document);
        document
    });
    &DOCUMENT
}

/// Makes the document with each part in its place, as the operations describe themselves.
pub(super) fn assembled_document() -> OpenApi {
    let (_, mut document) = App::new()
        .into_utoipa_app()
        .openapi(openapi::base())
        .configure(|config| routes(config))
        .split_for_parts();
    openapi::finish(&mut document, &operations());
    document
}
