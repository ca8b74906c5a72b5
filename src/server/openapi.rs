//! The OpenAPI document.
//!
//! Operations describe themselves next to their handlers. This module adds the parts that all share: error
//! answers, security, the idempotency headers.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::json;
use tokio::sync::Mutex;
use utoipa::OpenApi;
use utoipa::openapi::content::Content;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem, Paths};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::schema::{AnyOfBuilder, ArrayItems, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Components, Ref, RefOr, Required};

use super::{event_catalogue, openapi_bounds};
use crate::base::signature;
use crate::base::trace::TRACEPARENT;
use crate::error::{Code, Error, SUSPECTED_DUPLICATE_OF};
use crate::host::{Caller, Engine, RegisteredOperation};
use crate::idempotency::{KEY_LENGTH_MAX, Policy, PolicySetting, SettingKind};
use crate::web::files::File;
use crate::web::problems::{document_limits, header, string_header};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Oncepay",
        description = "A payments API that charges once, however often the client retries.\n\n\
            Every request that changes something carries an `Idempotency-Key`. Sending it again with the same \
            key never executes it again: the service returns the first answer, byte for byte. So after a timeout, a dropped \
            connection or a 5xx, simply send the same request again. The exception is an operation whose policy gives keys \
            no effect: whatever may have taken effect without their protection is answered with `outcome_unknown` and \
            `\"retryable\": false`.\n\n\
            Amounts are decimal strings at the currency's scale, times are RFC 3339 in UTC, errors are RFC 9457 \
            problems: each `code` has one cause, and `type` is the path of its explanation. What is stored is always shown: \
            an object whose currency was withdrawn as any other, and an amount in a currency that the service doesn't know any \
            more with the decimals that it has.\n\n\
            Every answer under `/v1` has `Cache-Control: no-store`, since it belongs to one merchant and may hold a secret.\n\n\
            An unknown query parameter is refused with 422, as an unknown field of a body is. Paths are compared decoded: \
            `/v1/%63harges` is `/v1/charges`, for routing and for idempotency keys. A path with another slash at its end, an \
            empty segment or dots is another path. `HEAD` is answered wherever `GET` is.\n\n\
            `If-Match` and `If-None-Match` are obeyed (RFC 9110). Where an answer to `GET` has no `ETag`, a list of tags never \
            matches in `If-Match`, and `*` matches whatever exists. A change whose condition doesn't hold is not performed: the \
            answer is 412 `precondition_failed`, kept under the idempotency key. Conditions are no part of what is compared \
            under a key: a retry gets the first answer, whatever conditions it has. There are no times of modification and no \
            ranges, so other conditions and `Range` are ignored.\n\n\
            The policy of an operation may limit how many requests a merchant sends per second, and how many it has under way \
            at the same time; `GET /v1/idempotency-policies` shows it. Each instance of the service counts for itself. A request \
            beyond a limit is refused with 429 `rate_limited` before anything is done. When more requests wait than can be \
            answered in time, those of merchants with more than their share are refused with 503 `overloaded`. Both may be sent \
            again with the same key after `Retry-After`.\n\n\
            A later version can have more operations, parameters, headers and members, and more values where the schema says \
            `x-may-grow`: codes of problems and types of events. Ignore members that you don't know, treat a problem whose code \
            you don't know by its status and `retryable`, and skip an event whose type you don't know.",
        contact(name = "The contributors"),
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    components(schemas(
        crate::error::Problem,
        crate::error::FieldError,
        crate::idempotency_api::keys::OlderThan,
        crate::payments::settlements::Settlement,
    )),
    tags(
        (name = "Charges", description = "Payments from a customer to the merchant."),
        (name = "Refunds", description = "Money returned to the customer."),
        (name = "Payouts", description = "Money sent to the merchant's bank."),
        (name = "Disputes", description = "Charges that a customer contests."),
        (name = "Balance", description = "The merchant's money, per currency."),
        (name = "Ledger", description = "The double-entry journal behind the balance."),
        (name = "Idempotency", description = "The status of a request by its key, and the policies for keys."),
        (name = "Webhooks", description = "The merchant's destinations for events. A message is sent to each endpoint that \
            receives its type, at least once, in no particular order, signed as defined by [Standard \
            Webhooks](https://www.standardwebhooks.com). `webhook-id` is the event's id, the same with each delivery: a \
            receiver that has seen it before acknowledges the message and does nothing else. The members are those of the \
            event at `/v1/events/{id}`, where `timestamp` is called `created_at`."),
        (name = "Events", description = "Changes of the merchant's objects, and their deliveries to its endpoints."),
        (name = "API keys", description = "Keys that authenticate the merchant."),
        (name = "Acquirer", description = "Events from the payment processor."),
        (name = "Operators", description = "For the people who run the service. These operations accept only operator keys."),
    ),
)]
struct Base;

/// The document without paths.
pub fn base() -> utoipa::openapi::OpenApi {
    Base::openapi()
}

/// Adds to `document`, whose paths are complete, the parts that all operations share.
pub fn finish(document: &mut utoipa::openapi::OpenApi, registered: &[RegisteredOperation]) {
    let components = document.components.get_or_insert_default();
    components.add_security_scheme(
        "api_key",
        SecurityScheme::Http(
            HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some("A merchant's secret key, `sk_test_…`."))
                .build(),
        ),
    );
    name_lists(&mut document.paths, components);
    components.add_security_scheme(
        "operator_key",
        SecurityScheme::Http(
            HttpBuilder::new()
                .scheme(HttpAuthScheme::Bearer)
                .description(Some("An operator's secret key, `ok_…`."))
                .build(),
        ),
    );
    components.add_security_scheme(
        "webhook_signature",
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
            signature::SIGNATURE,
            "Signatures with a secret that sender and receiver share, as defined by Standard Webhooks: `v1,` and the HMAC-SHA-256 \
             of `{webhook-id}.{webhook-timestamp}.{body}` in base64.",
        ))),
    );
    for operation in registered.iter().map(|registered| &registered.descriptor) {
        for setting in operation.policy_settings {
            for name in POLICY_SCHEMAS {
                if let Some(RefOr::T(schema)) = components.schemas.get_mut(*name) {
                    add_setting(schema, operation.name, setting);
                }
            }
        }
    }
    for operation in registered.iter().map(|registered| &registered.descriptor) {
        let item = document.paths.paths.get(operation.path);
        let is_routed =
            item.is_some_and(|item| operations_of(item).any(|(method, _)| method == operation.method));
        assert!(
            is_routed,
            "{} has no route: add its handler to routes() in src/server/routes.rs",
            operation.name
        );
    }
    openapi_bounds::bound(components, registered);
    event_catalogue::describe_events(components);
    document.webhooks = Some(event_catalogue::webhooks(components));
    document.servers = Some(vec![utoipa::openapi::Server::new("/")]);
    for (path, item) in &mut document.paths.paths {
        let scheme = match path.as_str() {
            "/v1/webhooks/acquirer" => "webhook_signature",
            path if path.starts_with("/v1/operator") => "operator_key",
            _ => "api_key",
        };
        for (method, operation) in operations_of_mut(item) {
            if method == "GET" {
                let unchanged = ResponseBuilder::new()
                    .description("Not modified. `If-None-Match` names the `ETag` of the answer, or is `*`.");
                operation.responses.responses.insert("304".to_owned(), unchanged.build().into());
            }
            finish_operation(operation, scheme, components);
            if method == "GET" {
                continue;
            }
            let id = operation.operation_id.clone().unwrap_or_default();
            let name = id.strip_prefix("operator.").unwrap_or(&id);
            let registered = registered
                .iter()
                .find(|registered| registered.descriptor.name == name)
                .unwrap_or_else(|| {
                    panic!("{id} of {path} is no operation: add it to operations() in src/server/routes.rs")
                });
            let described: Vec<_> = query_parameters(operation).collect();
            let known = registered.descriptor.query_parameters;
            assert_eq!(
                described, known,
                "the descriptor of {name} and its documentation must name the same query parameters"
            );
            let described = (registered.descriptor.method, registered.descriptor.path);
            assert_eq!(
                described,
                (method, path.as_str()),
                "the descriptor of {name} and its route must agree"
            );
            finish_change(operation, registered);
        }
    }
}

/// Gives each list the name of its items: utoipa calls it `List_Charge` and writes its items out in place.
fn name_lists(paths: &mut Paths, components: &mut Components) {
    let list_of = |name: &str| name.strip_prefix("List_").map(|item| format!("{item}List"));
    for (name, mut schema) in std::mem::take(&mut components.schemas) {
        if let (Some(item), RefOr::T(Schema::Object(list))) = (name.strip_prefix("List_"), &mut schema)
            && let Some(RefOr::T(Schema::Array(data))) = list.properties.get_mut("data")
        {
            data.items = ArrayItems::RefOrSchema(Box::new(Ref::from_schema_name(item).into()));
        }
        components.schemas.insert(list_of(&name).unwrap_or(name), schema);
    }
    let operations = paths.paths.values_mut().flat_map(operations_of_mut);
    for response in operations.flat_map(|(_, operation)| operation.responses.responses.values_mut()) {
        let RefOr::T(response) = response else { continue };
        for content in response.content.values_mut() {
            if let RefOr::T(Content { schema: Some(RefOr::Ref(reference)), .. }) = content
                && let Some(name) = reference.ref_location.rsplit('/').next().and_then(list_of)
            {
                *reference = Ref::from_schema_name(name);
            }
        }
    }
}

/// Names of the query parameters of an operation.
fn query_parameters(operation: &Operation) -> impl Iterator<Item = &str> {
    operation.parameters.iter().flatten().filter_map(|parameter| match parameter {
        RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => Some(parameter.name.as_str()),
        _ => None,
    })
}

/// Methods that the API uses, in the order in which an `Allow` header lists them.
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

/// The operations of a path, by their methods.
pub(super) fn operations_of(item: &PathItem) -> impl Iterator<Item = (&'static str, &Operation)> {
    let operations = [&item.get, &item.post, &item.put, &item.patch, &item.delete];
    METHODS.into_iter().zip(operations).filter_map(|(method, operation)| Some((method, operation.as_ref()?)))
}

/// The same, to be changed.
pub(super) fn operations_of_mut(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
    METHODS.into_iter().zip(operations).filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// The schemas that show a policy, or a change of one.
const POLICY_SCHEMAS: &[&str] = &["Policy", "ReplacePolicy"];

/// Adds to the schema of a policy a setting that only one operation has.
fn add_setting(schema: &mut Schema, operation: &str, setting: &PolicySetting) {
    let Schema::Object(object) = schema else { return };
    let property = match setting.kind {
        SettingKind::Choice(words) => {
            ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words.iter().copied()))
        }
        SettingKind::Number(least, most) => {
            ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(least)).maximum(Some(most))
        }
    };
    let example = serde_json::to_value(setting.default).unwrap_or_default();
    let property = property.examples([example]);
    let property = property.description(Some(format!("Only for `{operation}`. {}", setting.meaning)));
    object.properties.insert(setting.name.to_owned(), property.into());
}

/// Adds the parts that all operations share.
fn finish_operation(operation: &mut Operation, scheme: &str, components: &Components) {
    let cursors = openapi_bounds::cursors(operation, components);
    let id = operation.operation_id.clone().unwrap_or_default();
    operation.security = Some(vec![SecurityRequirement::new(scheme, Vec::<String>::new())]);
    let parameters = operation.parameters.get_or_insert_default();
    parameters.push(
        header_parameter("X-Request-Id", "Id of the request in the answer and in the service's log: 1 to 128 letters, digits, `.`, `_` or `-`. By default the service generates one.")
            .build().into(),
    );
    parameters.push(
        header_parameter(TRACEPARENT, "Span of the caller, as defined by W3C Trace Context. The request continues its trace, and so do calls of the processor and messages to webhook endpoints. An invalid one is ignored, and the service begins a trace.")
            .example(Some(json!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")))
            .build().into(),
    );
    if id.ends_with(".list") {
        parameters.extend(openapi_bounds::page_parameters(cursors).map(Into::into));
    }
    for parameter in &mut *parameters {
        if let RefOr::T(parameter) = parameter
            && let (ParameterIn::Query, Some(schema)) = (&parameter.parameter_in, &mut parameter.schema)
        {
            openapi_bounds::bound_text(schema);
            if parameter.name == "currency" {
                *schema = Ref::from_schema_name("Currency").into();
            }
        }
    }
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            let id = header("Id of the request in the service's log.", request_id());
            response.headers.insert("X-Request-Id".to_owned(), id.into());
        }
    }
}

/// Adds the parts that all changing operations share.
fn finish_change(operation: &mut Operation, registered: &RegisteredOperation) {
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        body.required =
            Some(if registered.descriptor.body_optional { Required::False } else { Required::True });
    }
    let parameters = operation.parameters.get_or_insert_default();
    if registered.descriptor.caller == Caller::Acquirer {
        for (name, description, schema, example) in [
            (
                signature::ID,
                "Id of the event, which is its idempotency key.",
                text(),
                json!("evt_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"),
            ),
            (
                signature::TIMESTAMP,
                "Time of sending, in seconds since 1970.",
                ObjectBuilder::new().schema_type(Type::Integer),
                json!(1_769_851_800),
            ),
        ] {
            let parameter = header_parameter(name, description).required(Required::True);
            parameters.push(parameter.schema(Some(schema)).example(Some(example)).build().into());
        }
    } else {
        parameters.push(idempotency_key_parameter());
    }
    parameters.push(
        header_parameter(
            "Prefer",
            "`wait=N`: if the first request with this key is still running, waits for its answer up to N seconds, at \
             most as long as the policy allows (RFC 7240).",
        )
        .example(Some(json!("wait=10")))
        .build()
        .into(),
    );
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        let codes = codes_of(response);
        let is_kept = status.starts_with('2') || codes.iter().any(|code| code.entry().is_final);
        if is_kept {
            for (name, description, schema) in [
                ("Idempotency-Key", "The key, without quotes.", text().pattern(Some(BARE_KEY))),
                (
                    "Idempotent-Replayed",
                    "`true` if this is the stored answer of an earlier request.",
                    ObjectBuilder::new().schema_type(Type::Boolean),
                ),
                (
                    "Idempotency-Expires",
                    "HTTP date until which the answer is kept.",
                    text().format(Some(SchemaFormat::Custom("http-date".to_owned()))),
                ),
                ("Original-Request-Id", "On a replay: id of the request that was executed.", request_id()),
            ] {
                response.headers.insert(name.to_owned(), header(description, schema).into());
            }
        }
        if status.starts_with('2') {
            document_limits(response);
        }
        if is_kept || status == "409" {
            let description = "If the client asked to wait: the granted wait, `wait=N`.";
            let applied = header(description, text().pattern(Some("^wait=[0-9]+$")));
            response.headers.insert("Preference-Applied".to_owned(), applied.into());
        }
        if status == "400" || status == "422" {
            let description = "With a problem of the idempotency key: the problem's page, as `describedby`.";
            response.headers.insert("Link".to_owned(), string_header(description).into());
        }
        if codes.contains(&Code::OutcomeUnknown) {
            let description = "With `outcome_unknown`: path of the resource that the request makes or changes, if its id is known.";
            response.headers.insert("Location".to_owned(), string_header(description).into());
        }
        if codes.contains(&Code::DuplicateSuspected) {
            let description = "With `duplicate_suspected`: id of the other charge. Not sent on replays.";
            response.headers.insert(SUSPECTED_DUPLICATE_OF.to_owned(), string_header(description).into());
        }
    }
    let extension = x_idempotency(registered, &registered.descriptor.policy());
    operation.extensions.get_or_insert_default().insert(X_IDEMPOTENCY.to_owned(), extension);
}

/// A key as it's sent back: without quotes.
const BARE_KEY: &str = "^[!-~]{1,255}$";
/// A key as a client sends it without quotes: no semicolon in it begins a parameter.
const UNQUOTED_KEY: &str = "^(([!#-:<-~]|;+[!-)+-:<-`{-~])([!-:<-~]|;+[!-)+-:<-`{-~])*;*|;+)$";
/// A key in quotes, with quotes and backslashes escaped.
const QUOTED_KEY: &str = r#"^"([!#-\[\]-~]|\\["\\]){1,255}"$"#;

fn idempotency_key_parameter() -> RefOr<Parameter> {
    header_parameter(
            "Idempotency-Key",
            "Key of the intended operation: 1 to 255 visible ASCII characters, bare or as a quoted \
             structured-field string. Use a new random UUID per operation, and the same one for all of its retries.",
        )
        .required(Required::True)
        // No example: tools send it as it is, and so everybody would send the same key.
        .schema(Some(
            AnyOfBuilder::new()
                .item(text().max_length(Some(KEY_LENGTH_MAX)).pattern(Some(UNQUOTED_KEY)))
                .item(text().pattern(Some(QUOTED_KEY))),
        ))
        .build()
        .into()
}

/// The problem codes that a response lists.
pub(super) fn codes_of(response: &Response) -> Vec<Code> {
    response
        .content
        .values()
        .filter_map(|content| match content {
            RefOr::T(content) => Some(content.examples.keys()),
            RefOr::Ref(_) => None,
        })
        .flatten()
        .filter_map(|name| Code::ALL.iter().copied().find(|code| code.as_str() == name))
        .collect()
}

/// Name of the extension with the idempotency policy of an operation.
const X_IDEMPOTENCY: &str = "x-idempotency";

fn x_idempotency(registered: &RegisteredOperation, policy: &Policy) -> serde_json::Value {
    json!({
        "operation": registered.descriptor.name,
        "shape": if registered.is_external() { "external" } else { "local" },
        "policy": policy,
    })
}

/// The document, ready to serve.
pub struct ServedDocument {
    document: fn() -> &'static utoipa::openapi::OpenApi,
    /// The last answer: policies rarely change, and it takes a while to serialize and compress the document.
    latest: Mutex<Option<SerializedDocument>>,
}

/// The document with certain policies, serialized.
struct SerializedDocument {
    /// Policies of the operations, in document order. `None` is the default policy.
    policies: Vec<Option<Arc<Policy>>>,
    file: Arc<File>,
}

impl ServedDocument {
    /// Serves the document that `document` returns. It's asked when the document is, since an instance that starts has
    /// requests to answer first.
    pub fn new(document: fn() -> &'static utoipa::openapi::OpenApi) -> Self {
        Self { document, latest: Mutex::default() }
    }

    /// Names of the operations that have a policy.
    fn operations(&self) -> impl Iterator<Item = &'static str> + use<> {
        let items = (self.document)().paths.paths.values();
        items
            .flat_map(operations_of)
            .filter_map(|(_, operation)| operation.extensions.as_ref()?.get(X_IDEMPOTENCY))
            .map(|extension| extension["operation"].as_str().unwrap_or_default())
    }

    /// Returns the document with these policies, one per operation and in the same order.
    async fn with_policies(&self, policies: Vec<Option<Arc<Policy>>>) -> Result<Arc<File>, Error> {
        let mut latest = self.latest.lock().await;
        if let Some(written) = latest.as_ref().filter(|written| written.policies == policies) {
            return Ok(Arc::clone(&written.file));
        }
        let document = self.document;
        let written = web::block(move || write(document(), policies)).await.map_err(Error::internal)??;
        let file = Arc::clone(&written.file);
        *latest = Some(written);
        Ok(file)
    }
}

fn write(
    document: &utoipa::openapi::OpenApi,
    policies: Vec<Option<Arc<Policy>>>,
) -> Result<SerializedDocument, Error> {
    let mut document = document.clone();
    let items = document.paths.paths.values_mut();
    let extensions = items
        .flat_map(operations_of_mut)
        .filter_map(|(_, operation)| operation.extensions.as_mut()?.get_mut(X_IDEMPOTENCY));
    for (extension, policy) in extensions.zip(&policies) {
        if let Some(policy) = policy {
            extension["policy"] = serde_json::to_value(policy.as_ref()).map_err(Error::internal)?;
        }
    }
    let text = serde_json::to_vec(&document).map_err(Error::internal)?;
    Ok(SerializedDocument { policies, file: Arc::new(File::new("application/json", text)) })
}

/// Serves the document with the current policies, compressed for clients that accept it. Needs no key.
#[actix_web::get("/openapi.json")]
pub async fn show(
    request: HttpRequest,
    served: web::Data<ServedDocument>,
    engine: web::Data<Engine>,
) -> Result<HttpResponse, Error> {
    let mut policies = Vec::new();
    for name in served.operations() {
        // The document is available even if the database isn't; it then shows the default policies.
        policies.push(engine.policy(name).await.ok());
    }
    served.with_policies(policies).await?.answer(&request).await
}

fn header_parameter(name: &str, description: &str) -> ParameterBuilder {
    Parameter::builder()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(text()))
}

/// The schema of a request's id: the service replaces any other text by an id of its own.
fn request_id() -> ObjectBuilder {
    text().pattern(Some("^[A-Za-z0-9._-]{1,128}$"))
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}
