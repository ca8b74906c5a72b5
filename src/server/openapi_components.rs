//! Makes the OpenAPI document exact, and short.
//!
//! *Exact*: the derives describe types that are read and types that are written the same way, so they take an
//! `Option` for something that may be missing, and a text for any text. More is known of the types that we
//! send. [`tighten`] adds it.
//!
//! *Short*: most of an operation's answers are those of all operations. [`share`] keeps each repeated part
//! once, in the document's `components`, and makes the operations refer to it.
//!
//! A response is named after its problems (`ChargeNotFound`), or after its HTTP status where the problems are
//! the usual ones (`Unauthorized`). A response named `…Kept` is kept under the idempotency key, and its
//! headers say so.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use actix_web::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::response::Response;
use utoipa::openapi::schema::{Object, Schema, SchemaType, Type};
use utoipa::openapi::{OpenApi, Ref, RefOr};

use super::openapi::{codes_of, operations_of_mut};
use crate::error::Code;
use crate::idempotency::status::RECOVERY_POINTS;
use crate::idempotency_api::key_list::KeyFilter;
use crate::idempotency_api::{keys, resolve};
use crate::inbound;
use crate::ledger::AccountKind;
use crate::payments::{charges, disputes, failure, payouts, refunds};
use crate::web::problems::{is_anybodys, is_common};
use crate::webhooks::{client, endpoints, outbox};

/// The properties whose value is one of a few words: schema, name, words.
fn word_properties() -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let account_kinds = || AccountKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>();
    let deliveries = outbox::State::ALL.iter().map(|state| state.as_str()).collect();
    let declines = [Code::CardDeclined, Code::InsufficientFunds].map(Code::as_str);
    let failures = declines.into_iter().chain([charges::AUTHORIZATION_EXPIRED]).collect();
    // Only an operator dismisses an event, so the acquirer never gets that answer.
    let outcomes = inbound::api::STATES.into_iter().filter(|state| *state != "dismissed").collect();
    vec![
        ("Account", "kind", account_kinds()),
        ("AcquirerEvent", "state", inbound::api::STATES.to_vec()),
        ("Attempt", "error", client::REASONS.to_vec()),
        ("ChargeFailure", "code", failures),
        ("Delivery", "status", deliveries),
        ("Dispute", "status", disputes::STATUSES.to_vec()),
        ("KeyStatus", "recovery_point", RECOVERY_POINTS.to_vec()),
        ("KeyStatus", "status", keys::STATUSES.to_vec()),
        ("NewPosting", "account_kind", account_kinds()),
        ("ObjectFailure", "code", failure::CODES.to_vec()),
        ("Payout", "status", payouts::STATUSES.to_vec()),
        ("Posting", "account_kind", account_kinds()),
        ("Receipt", "state", outcomes),
        ("Refund", "status", refunds::STATUSES.to_vec()),
        ("ResolveIdempotencyKey", "as", vec![resolve::FAILED]),
        ("TrialBalanceLine", "kind", account_kinds()),
        ("WebhookEndpoint", "status", endpoints::STATUSES.to_vec()),
    ]
}

/// The query parameters whose value is one of a few words: operation, name, words.
fn word_parameters() -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let filters = KeyFilter::ALL.iter().map(|filter| filter.as_str()).collect();
    vec![
        ("operator.acquirer_events.list", "state", inbound::api::STATES.to_vec()),
        ("operator.idempotency_keys.list", "status", filters),
    ]
}

/// Describes what holds of everything that we send: members that can be `null` are always present, `object`
/// is one word, and some others are one of a few. A member that is sometimes left out is never `null`, and
/// stays optional.
///
/// # Panics
///
/// If a property or parameter that is to be described isn't in the document.
pub fn tighten(document: &mut OpenApi) {
    let asked = request_schemas(document);
    let components = document.components.get_or_insert_default();
    for (name, schema) in &mut components.schemas {
        // Clients may leave out optional members.
        if asked.contains(name) {
            continue;
        }
        for object in objects(schema) {
            let nullable = object.properties.iter().filter(|(_, property)| is_nullable(property));
            let missing: Vec<_> = nullable
                .map(|(name, _)| name.clone())
                .filter(|name| !object.required.contains(name))
                .collect();
            object.required.extend(missing);
            object.required.sort();
            if let Some(RefOr::T(Schema::Object(property))) = object.properties.get_mut("object") {
                let word = property.example.clone().unwrap_or_else(|| panic!("{name}.object has no example"));
                // utoipa has no field for `const`, and writes extensions next to its own fields.
                property.extensions.get_or_insert_default().insert("const".to_owned(), word);
            }
        }
    }
    for (schema, name, words) in word_properties() {
        let found = components.schemas.get_mut(schema).and_then(|schema| {
            objects(schema).into_iter().find_map(|object| match object.properties.get_mut(name) {
                Some(RefOr::T(Schema::Object(property))) => Some(property),
                _ => None,
            })
        });
        set_words(found.unwrap_or_else(|| panic!("{schema}.{name} isn't in the document")), &words);
    }
    for (id, name, words) in word_parameters() {
        let found = operations(document).into_iter().find_map(|operation| {
            let parameters =
                operation.parameters.as_mut().filter(|_| operation.operation_id.as_deref() == Some(id))?;
            parameters.iter_mut().find_map(|parameter| match parameter {
                RefOr::T(Parameter {
                    name: known, schema: Some(RefOr::T(Schema::Object(schema))), ..
                }) if known == name => Some(schema),
                _ => None,
            })
        });
        set_words(found.unwrap_or_else(|| panic!("{name} of {id} isn't in the document")), &words);
    }
}

/// Lists the values of a text, which can also be `null` if its type says so.
fn set_words(text: &mut Object, words: &[&'static str]) {
    let null = matches!(&text.schema_type, SchemaType::Array(kinds) if kinds.contains(&Type::Null));
    let words = words.iter().map(|word| json!(word));
    text.enum_values = Some(words.chain(null.then_some(Value::Null)).collect());
}

/// Returns the names of the schemas that are part of a request's body.
fn request_schemas(document: &mut OpenApi) -> BTreeSet<String> {
    let bodies: Vec<_> = document
        .paths
        .paths
        .values_mut()
        .flat_map(operations_of)
        .filter_map(|operation| operation.request_body.as_ref())
        .map(to_value)
        .collect();
    let schemas = &document.components.get_or_insert_default().schemas;
    let (mut found, mut pending) = (BTreeSet::new(), bodies);
    while let Some(value) = pending.pop() {
        match value {
            Value::Object(members) => pending.extend(members.into_values()),
            Value::Array(items) => pending.extend(items),
            Value::String(text) => {
                if let Some(name) = text.strip_prefix("#/components/schemas/")
                    && found.insert(name.to_owned())
                {
                    pending.extend(schemas.get(name).map(to_value));
                }
            }
            _ => {}
        }
    }
    found
}

/// Returns the objects that make up a schema, each with some of the properties.
fn objects(schema: &mut RefOr<Schema>) -> Vec<&mut Object> {
    match schema {
        RefOr::T(Schema::Object(object)) => vec![object],
        RefOr::T(Schema::AllOf(all)) => all.items.iter_mut().flat_map(objects).collect(),
        _ => Vec::new(),
    }
}

fn is_nullable(schema: &RefOr<Schema>) -> bool {
    let kind = match schema {
        RefOr::T(Schema::Object(object)) => &object.schema_type,
        RefOr::T(Schema::Array(array)) => &array.schema_type,
        RefOr::T(Schema::OneOf(one_of)) => return one_of.items.iter().any(is_nullable),
        _ => return false,
    };
    match kind {
        SchemaType::Type(kind) => *kind == Type::Null,
        SchemaType::Array(kinds) => kinds.contains(&Type::Null),
        SchemaType::AnyValue => false,
    }
}

/// Makes a component of each header, example, response, parameter and message member that occurs more than
/// once, and refers to it in each place.
///
/// # Panics
///
/// If two components would have the same name.
pub fn share(document: &mut OpenApi) {
    let shared = hoist(
        "responses",
        operations(document).into_iter().flat_map(|operation| {
            operation.responses.responses.iter_mut().map(|(status, response)| (status.clone(), response))
        }),
        |status, response| {
            let name = response_name(status, response);
            [name.clone(), format!("{name}{status}")]
        },
    );
    // Responses come before their parts, so a part that only one shared response has is written out there.
    document.components.get_or_insert_default().responses.extend(shared);
    let headers = hoist(
        "headers",
        responses(document)
            .flat_map(|response| response.headers.iter_mut().map(|(name, header)| (name.clone(), header))),
        |name, header| {
            let description = header.description.as_deref().unwrap_or_default();
            [pascal(name), pascal(&format!("{name} {description}"))]
        },
    );
    let examples = hoist(
        "examples",
        responses(document).flat_map(|response| {
            let contents = response.content.values_mut().filter_map(|content| match content {
                RefOr::T(content) => Some(content),
                RefOr::Ref(_) => None,
            });
            contents.flat_map(|content| {
                content.examples.iter_mut().map(|(name, example)| (name.clone(), example))
            })
        }),
        |name, example| [pascal(name), pascal(&format!("{name} {}", example.summary))],
    );
    let parameters = hoist("parameters", parameters(document), |sent_in, parameter| {
        let name = parameter_name(parameter);
        [name.clone(), format!("{sent_in}{name}")]
    });
    let messages =
        document.webhooks.iter_mut().flat_map(|hooks| hooks.paths.values_mut()).flat_map(operations_of);
    let schemas = hoist(
        "schemas",
        messages.filter_map(|message| message.request_body.as_mut()).flat_map(message_members),
        |name, schema| {
            let about = first_reference(&to_value(schema)).unwrap_or_default();
            [pascal(&format!("message {name}")), pascal(&format!("message {name} {about}"))]
        },
    );
    let components = document.components.get_or_insert_default();
    components.schemas.extend(schemas);
    components.headers.extend(headers);
    components.examples.extend(examples);
    components.parameters.extend(parameters);
}

/// Puts a reference in place of each part that occurs more than once, and returns these parts by name.
/// `names` returns a brief name, and a long one for the case that several parts have the same brief name.
fn hoist<'a, T: Serialize + Clone + 'a>(
    section: &str,
    places: impl Iterator<Item = (String, &'a mut RefOr<T>)>,
    names: impl Fn(&str, &T) -> [String; 2],
) -> BTreeMap<String, RefOr<T>> {
    let mut parts: BTreeMap<(String, String), Vec<&'a mut RefOr<T>>> = BTreeMap::new();
    for (key, place) in places {
        if let RefOr::T(part) = place {
            let text = to_value(part).to_string();
            parts.entry((key, text)).or_default().push(place);
        }
    }
    let mut repeated = Vec::new();
    for ((key, _), places) in parts {
        if let [RefOr::T(part), _, ..] = &places[..] {
            repeated.push((names(&key, part), part.clone(), places));
        }
    }
    let mut of_brief_name: HashMap<String, usize> = HashMap::new();
    for ([brief, _], ..) in &repeated {
        *of_brief_name.entry(brief.clone()).or_default() += 1;
    }
    let mut components = BTreeMap::new();
    for ([brief, long], part, places) in repeated {
        let name = if of_brief_name[&brief] == 1 { brief } else { long };
        for place in places {
            *place = RefOr::Ref(Ref::new(format!("#/components/{section}/{name}")));
        }
        let other = components.insert(name.clone(), RefOr::T(part));
        assert!(
            other.is_none(),
            "two of the document's {section} would be called {name}: describe them differently"
        );
    }
    components
}

/// Approximate length of a reference to the schema of a message's member.
const REFERENCE_BYTES: usize = 60;

/// Returns the members of a message, except those whose schemas are no longer than a reference.
fn message_members(body: &mut RefOr<RequestBody>) -> Vec<(String, &mut RefOr<Schema>)> {
    let RefOr::T(body) = body else { return Vec::new() };
    let schemas = body.content.values_mut().filter_map(|content| match content {
        RefOr::T(content) => content.schema.as_mut(),
        RefOr::Ref(_) => None,
    });
    let members = schemas.flat_map(objects).flat_map(|object| object.properties.iter_mut());
    let long = members.filter(|(_, schema)| to_value(schema).to_string().len() > REFERENCE_BYTES);
    long.map(|(name, schema)| (name.clone(), schema)).collect()
}

/// Returns the name of the first schema that is referred to.
fn first_reference(value: &Value) -> Option<String> {
    match value {
        Value::Object(members) => members.values().find_map(first_reference),
        Value::Array(items) => items.iter().find_map(first_reference),
        Value::String(text) => text.strip_prefix("#/components/schemas/").map(str::to_owned),
        _ => None,
    }
}

fn joined(codes: &[Code]) -> String {
    codes.iter().map(|code| pascal(code.as_str())).collect::<Vec<_>>().join("Or")
}

/// Returns the name of a response among the components.
fn response_name(status: &str, response: &Response) -> String {
    let codes = codes_of(response);
    let own: Vec<_> = codes.iter().copied().filter(|code| !is_common(*code)).collect();
    let name = match (&own[..], &codes[..]) {
        ([], []) => {
            let schema = response.content.values().find_map(|content| match content {
                RefOr::T(content) => match content.schema.as_ref()? {
                    RefOr::Ref(reference) => reference.ref_location.rsplit('/').next().map(pascal),
                    RefOr::T(_) => None,
                },
                RefOr::Ref(_) => None,
            });
            let sentence = response.description.split('.').next().unwrap_or_default();
            schema.unwrap_or_else(|| pascal(sentence))
        }
        ([], [code]) => pascal(code.as_str()),
        ([], [_, _]) => joined(&codes),
        // A read's, beside that of a change, which has the name of the status.
        ([], [_, _, _]) if codes.iter().all(|code| is_anybodys(*code)) => joined(&codes),
        ([], _) => {
            let known = status.parse().ok().and_then(|status| StatusCode::from_u16(status).ok());
            pascal(known.and_then(|status| status.canonical_reason()).unwrap_or(status))
        }
        (own, _) => joined(own),
    };
    let is_kept = response.headers.contains_key("Idempotent-Replayed");
    if is_kept { name + "Kept" } else { name }
}

/// Returns the name of a parameter among the components. Those that are called `id` are told apart by what they identify.
fn parameter_name(parameter: &Parameter) -> String {
    let described = parameter.description.as_deref().and_then(|text| text.strip_prefix("Id of the "));
    match described {
        Some(object) if parameter.parameter_in == ParameterIn::Path => {
            pascal(&object.replace('\'', "")) + "Id"
        }
        _ => pascal(&parameter.name),
    }
}

/// Converts `some words` to `SomeWords`.
fn pascal(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words
        .map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            first.to_ascii_uppercase() + rest
        })
        .collect()
}

/// Returns all operations, ours and the merchants'.
fn operations(document: &mut OpenApi) -> Vec<&mut Operation> {
    let hooks = document.webhooks.iter_mut().flat_map(|hooks| hooks.paths.values_mut());
    document.paths.paths.values_mut().chain(hooks).flat_map(operations_of).collect()
}

fn operations_of(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    operations_of_mut(item).map(|(_, operation)| operation)
}

/// Returns the parameters, ours and those of messages to merchants, each with what it's sent in.
fn parameters(document: &mut OpenApi) -> impl Iterator<Item = (String, &mut RefOr<Parameter>)> {
    let hooks = document.webhooks.iter_mut().flat_map(|hooks| hooks.paths.values_mut());
    let items = document.paths.paths.values_mut().map(|item| ("Request", item));
    items.chain(hooks.map(|item| ("Message", item))).flat_map(|(sent_in, item)| {
        let parameters = operations_of(item).flat_map(|operation| operation.parameters.iter_mut().flatten());
        parameters.map(|parameter| (sent_in.to_owned(), parameter))
    })
}

/// Returns the answers that are written out, in their places or as components.
fn responses(document: &mut OpenApi) -> impl Iterator<Item = &mut Response> {
    let hooks = document.webhooks.iter_mut().flat_map(|hooks| hooks.paths.values_mut());
    let operations = document.paths.paths.values_mut().chain(hooks).flat_map(operations_of);
    let shared = document.components.iter_mut().flat_map(|components| components.responses.values_mut());
    let all = operations.flat_map(|operation| operation.responses.responses.values_mut()).chain(shared);
    all.filter_map(|response| match response {
        RefOr::T(response) => Some(response),
        RefOr::Ref(_) => None,
    })
}

fn to_value(part: &impl Serialize) -> Value {
    serde_json::to_value(part).expect("a part of the document is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::routes::{assembled_document, document};

    /// Returns `value` with its references resolved, except those to schemas if `keeps_schemas`.
    fn resolved(value: &Value, document: &Value, keeps_schemas: bool) -> Value {
        match value {
            Value::Object(members) => {
                let reference = members.get("$ref").and_then(Value::as_str);
                if let Some(reference) = reference.filter(|reference| {
                    let is_schema = reference.starts_with("#/components/schemas/");
                    !keeps_schemas || !is_schema || reference.contains("/Message")
                }) {
                    let target = document.pointer(reference.trim_start_matches('#'));
                    let target = target.unwrap_or_else(|| panic!("{reference} leads nowhere"));
                    let mut target = resolved(target, document, keeps_schemas);
                    // A schema's reference can have a description of its own.
                    let own = members.iter().filter(|(name, _)| *name != "$ref");
                    let own = own.map(|(name, member)| (name.clone(), member.clone()));
                    target.as_object_mut().expect("a part is an object").extend(own);
                    return target;
                }
                let entries = members.iter();
                entries
                    .map(|(name, member)| (name.clone(), resolved(member, document, keeps_schemas)))
                    .collect()
            }
            Value::Array(items) => items.iter().map(|item| resolved(item, document, keeps_schemas)).collect(),
            other => other.clone(),
        }
    }

    /// Returns the document with its references resolved, without the components that [`share`] has made.
    fn meaning(document: &OpenApi, keeps_schemas: bool) -> Value {
        let document = to_value(document);
        let mut meaning = resolved(&document, &document, keeps_schemas);
        let components = meaning["components"].as_object_mut().unwrap();
        for shared in ["headers", "examples", "responses", "parameters"] {
            components.remove(shared);
        }
        components["schemas"].as_object_mut().unwrap().retain(|name, _| !name.starts_with("Message"));
        meaning
    }

    /// Lists the differences between two documents at `path` and below, one line each.
    fn differences(path: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
        match (before, after) {
            (Value::Object(old), Value::Object(new)) => {
                for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
                    let at = |members: &serde_json::Map<_, _>| members.get(name).cloned().unwrap_or_default();
                    differences(&format!("{path}/{name}"), &at(old), &at(new), found);
                }
            }
            (Value::Array(old), Value::Array(new)) if path.ends_with("/required") => {
                let added = new.iter().filter(|item| !old.contains(item));
                found.extend(added.map(|item| format!("{path}: {item} added")));
                let removed = old.iter().filter(|item| !new.contains(item));
                found.extend(removed.map(|item| format!("{path}: {item} removed")));
            }
            (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
                for (index, (old, new)) in old.iter().zip(new).enumerate() {
                    differences(&format!("{path}/{index}"), old, new, found);
                }
            }
            (old, new) if old == new => {}
            (Value::Null, new) => found.push(format!("{path}: {new} added")),
            (old, new) => found.push(format!("{path}: {old} became {new}")),
        }
    }

    #[test]
    fn sharing_changes_nothing_for_who_resolves_references() {
        let before = assembled_document();
        let mut after = before.clone();
        share(&mut after);
        let same = meaning(&before, false) == meaning(&after, false);
        assert!(same, "something else is meant now");
        let pretty = |document: &OpenApi| document.to_pretty_json().unwrap().len();
        let compact = |document: &OpenApi| document.to_json().unwrap().len();
        assert!(pretty(&after) * 100 <= pretty(&before) * 35, "{} of {}", pretty(&after), pretty(&before));
        assert!(
            compact(&after) * 100 <= compact(&before) * 35,
            "{} of {}",
            compact(&after),
            compact(&before)
        );
    }

    #[test]
    fn nothing_is_written_out_twice_that_could_be_shared() {
        let mut again = document().clone();
        share(&mut again);
        assert!(again == *document(), "once was enough");
        let document = to_value(document());
        let text = document.to_string();
        for section in ["headers", "examples", "responses", "parameters"] {
            for name in document["components"][section].as_object().unwrap().keys() {
                let reference = format!("\"#/components/{section}/{name}\"");
                assert!(text.matches(&reference).count() > 1, "{reference} is no shared one");
                assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
            }
        }
    }

    #[test]
    fn what_is_said_of_answers_is_this_and_nothing_else() {
        let before = assembled_document();
        let mut found = Vec::new();
        differences("", &meaning(&before, true), &meaning(document(), true), &mut found);
        let schemas = to_value(&before)["components"]["schemas"].clone();
        let words: Vec<_> =
            word_properties().iter().map(|(schema, name, _)| format!("{schema}.{name}")).collect();
        let (mut required, mut constants, mut enums) = (0, 0, Vec::new());
        for line in &found {
            let (path, change) = line.split_once(": ").unwrap();
            let parts: Vec<_> = path.split('/').skip(1).collect();
            match parts[..] {
                // The schema is an object, or the part of one that another is combined with.
                ["components", "schemas", name, .., "required"] => {
                    let member = change.strip_suffix(" added").expect(line).trim_matches('"');
                    let schema = schemas[name].to_string();
                    assert!(schema.contains(&format!("\"{member}\":")), "{line}");
                    required += 1;
                }
                ["components", "schemas", name, "properties", "object", "const"] => {
                    let property = &schemas[name]["properties"]["object"];
                    let word = property["example"].as_str().unwrap();
                    assert_eq!(change, format!("\"{word}\" added"));
                    assert_eq!(property["description"], format!("Always `{word}`."), "{line}");
                    constants += 1;
                }
                ["components", "schemas", name, "properties", property, "enum"] => {
                    enums.push(format!("{name}.{property}"));
                }
                ["paths", .., "get", "parameters", _, "schema", "enum"] => {}
                _ => panic!("{line}"),
            }
        }
        assert_eq!(enums, words);
        assert!(required > 30 && constants > 10, "{required} {constants}");
        let parameters = found.iter().filter(|line| line.starts_with("/paths/")).count();
        assert_eq!(parameters, word_parameters().len());
    }

    #[test]
    fn a_text_that_is_described_as_one_of_some_words_is_an_enum() {
        let document = to_value(document());
        for (schema, definition) in document["components"]["schemas"].as_object().unwrap() {
            for (name, property) in definition["properties"].as_object().into_iter().flatten() {
                let description = property["description"].as_str().unwrap_or_default();
                let quoted: Vec<_> = description.split('`').skip(1).step_by(2).collect();
                let is_word = property["example"].as_str().is_some_and(|example| quoted.contains(&example));
                let is_known = property["enum"].is_array() || property["const"].is_string();
                assert!(!is_word || is_known, "{schema}.{name}: {description}");
                if let Some(words) = property["enum"].as_array().filter(|_| quoted.len() > 1 && is_word) {
                    let missing: Vec<_> =
                        words.iter().filter(|word| !quoted.contains(&word.as_str().unwrap())).collect();
                    assert!(missing.is_empty(), "{schema}.{name} doesn't explain {missing:?}");
                }
            }
        }
    }
}
