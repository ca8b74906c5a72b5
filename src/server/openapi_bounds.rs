//! Bounds in the OpenAPI document that many schemas share, from the constants by which the service decides.
//!
//! Not expressed: rules between members, such as the decimals that an amount may have in a currency, and rules about what the
//! service knows, such as what is left of a charge. Descriptions state them.

use serde_json::json;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, ArrayItems, Object, ObjectBuilder, Schema, SchemaType, Type,
};
use utoipa::openapi::{Components, Ref, RefOr, Required};

use crate::base::money::Currency;
use crate::error::Code;
use crate::events;
use crate::host::{self, RegisteredOperation};
use crate::web::fields::{METADATA_ENTRIES_MAX, METADATA_NAME_MAX, TEXT_MAX, TEXT_PATTERN};
use crate::web::lists::{LIMIT_DEFAULT, LIMIT_MAX};
use crate::web::texts::{LINES_PATTERN, NAME_PATTERN};
use crate::webhooks::endpoints::URL_PATTERN;

/// Bounds the schemas of `components`: the texts, amounts and currencies of requests, all `metadata`, the types of resources,
/// and the codes of problems.
pub fn bound(components: &mut Components, registered: &[RegisteredOperation]) {
    for (name, schema) in &mut components.schemas {
        let RefOr::T(Schema::Object(object)) = schema else { continue };
        for (member, property) in &mut object.properties {
            if let Some((.., pattern)) = TEXTS.iter().find(|(of, text, _)| of == name && text == member) {
                set_pattern(property, pattern);
            }
            bound_text(property);
        }
        // Only requests refuse what they don't know.
        if let Some(AdditionalProperties::FreeForm(false)) = object.additional_properties.as_deref() {
            bound_values(object);
        }
    }
    components.schemas.insert("Currency".to_owned(), currency().into());
    list_codes(components);
    for schema in components.schemas.values_mut() {
        if let RefOr::T(Schema::Object(object)) = schema
            && let Some(RefOr::T(Schema::Object(metadata))) = object.properties.get_mut("metadata")
        {
            metadata.max_properties = Some(METADATA_ENTRIES_MAX);
            let name = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
            let name = name.max_length(Some(METADATA_NAME_MAX)).pattern(Some(TEXT_PATTERN)).build();
            metadata.property_names = Some(Box::new(Schema::Object(name)));
            if let Some(AdditionalProperties::RefOr(RefOr::T(Schema::Object(value)))) =
                metadata.additional_properties.as_deref_mut()
            {
                value.max_length = Some(TEXT_MAX);
                value.pattern = Some(TEXT_PATTERN.to_owned());
            }
        }
    }
    if let Some(RefOr::T(Schema::Object(resource))) = components.schemas.get_mut("KeyResource")
        && let Some(RefOr::T(Schema::Object(kind))) = resource.properties.get_mut("type")
    {
        let kinds = host::resource_kinds(registered).into_iter().map(|kind| kind.name.into());
        kind.enum_values = Some(kinds.collect());
    }
}

/// The texts of requests that keep further rules.
const TEXTS: [(&str, &str, &str); 7] = [
    ("CreateCharge", "description", LINES_PATTERN),
    ("CreateCharge", "reference", NAME_PATTERN),
    ("CreatePayout", "destination", NAME_PATTERN),
    ("CreateRefund", "reason", LINES_PATTERN),
    ("CreateWebhookEndpoint", "url", URL_PATTERN),
    ("UpdateCharge", "description", LINES_PATTERN),
    ("UpdateWebhookEndpoint", "url", URL_PATTERN),
];

fn set_pattern(schema: &mut RefOr<Schema>, pattern: &str) {
    if let RefOr::T(Schema::Object(object)) = schema {
        object.pattern = Some(pattern.to_owned());
    }
}

/// Says of a text of limited length that it can't have the character that Postgres doesn't store.
pub fn bound_text(schema: &mut RefOr<Schema>) {
    if let RefOr::T(Schema::Object(object)) = schema
        && object.max_length.is_some()
        && object.pattern.is_none()
        && object.format.is_none()
    {
        object.pattern = Some(TEXT_PATTERN.to_owned());
    }
}

/// Says of the amount in a request that it isn't zero, lists the currencies, and says of the types of events that they don't
/// repeat.
fn bound_values(request: &mut Object) {
    if let Some(RefOr::T(Schema::Array(types))) = request.properties.get_mut("event_types") {
        types.unique_items = true;
    }
    if let Some(RefOr::T(Schema::Object(amount))) = request.properties.get_mut("amount") {
        // utoipa has no field for `not`, and writes extensions next to its own fields.
        let zero = json!({"type": "string", "pattern": "^[0.]*$"});
        amount.extensions.get_or_insert_default().insert("not".to_owned(), zero);
    }
    if let Some(currency) = request.properties.get_mut("currency") {
        let RefOr::T(Schema::Object(object)) = &currency else { return };
        let mut reference = Ref::from_schema_name("Currency");
        reference.description = object.description.clone().unwrap_or_default();
        *currency = reference.into();
    }
}

/// The schema of a currency in a request. It lists the withdrawn ones, too: they are refused from some day on, and what is left
/// in them can still be paid out.
fn currency() -> Schema {
    let codes = Currency::known().map(|currency| currency.code().to_owned());
    let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(codes));
    schema.description(Some("ISO 4217 code of a currency, in upper case.")).examples([json!("USD")]).into()
}

/// Returns the pattern of the cursors of a list: the ids of its items.
pub fn cursors(operation: &Operation, components: &Components) -> Option<String> {
    let RefOr::T(response) = operation.responses.responses.get("200")? else { return None };
    let RefOr::T(content) = response.content.get("application/json")? else { return None };
    let list = schema_of(content.schema.as_ref()?, components)?;
    let Schema::Object(list) = list else { return None };
    let RefOr::T(Schema::Array(data)) = list.properties.get("data")? else { return None };
    let ArrayItems::RefOrSchema(item) = &data.items else { return None };
    let id = example_id(item, components)?;
    let (prefix, _) = id.split_once('_')?;
    let rest = match id {
        // A merchant's key.
        _ if id.contains('/') => "/[!-~]{1,255}",
        // A line of an entry.
        _ if id.contains('.') => r"\.[0-9]{1,4}",
        _ => "",
    };
    Some(format!("^{prefix}_[0-9a-f]{{32}}{rest}$"))
}

fn schema_of<'a>(schema: &'a RefOr<Schema>, components: &'a Components) -> Option<&'a Schema> {
    match schema {
        RefOr::T(schema) => Some(schema),
        RefOr::Ref(reference) => {
            schema_of(components.schemas.get(reference.ref_location.rsplit('/').next()?)?, components)
        }
    }
}

/// Returns the example of an object's id.
fn example_id<'a>(schema: &'a RefOr<Schema>, components: &'a Components) -> Option<&'a str> {
    match schema_of(schema, components)? {
        Schema::Object(object) => match object.properties.get("id")? {
            RefOr::T(Schema::Object(id)) => id.example.as_ref()?.as_str(),
            _ => None,
        },
        Schema::AllOf(all) => all.items.iter().find_map(|part| example_id(part, components)),
        Schema::OneOf(one) => one.items.iter().find_map(|part| example_id(part, components)),
        _ => None,
    }
}

/// Lists the codes of problems, as a schema of their own. What a client reads is one of them or any other text, so that clients
/// with generated types read the codes of later versions, too.
fn list_codes(components: &mut Components) {
    let Some(RefOr::T(Schema::Object(problem))) = components.schemas.get_mut("Problem") else { return };
    let Some(code) = problem.properties.get_mut("code") else { return };
    let RefOr::T(Schema::Object(text)) = &*code else { return };
    let open = AnyOfBuilder::new()
        .item(Ref::from_schema_name("ProblemCode"))
        .item(ObjectBuilder::new().schema_type(Type::String))
        .description(text.description.clone())
        .examples(text.example.clone());
    *code = open.into();
    let codes = events::one_of(
        Code::ALL.iter().map(|code| code.as_str()),
        "Causes of error answers that this version knows. Codes never change meaning, and a later version can have more.",
    );
    components.schemas.insert("ProblemCode".to_owned(), codes);
}

/// The query parameters of every list. `cursors` is the pattern of its cursors.
pub fn page_parameters(cursors: Option<String>) -> [Parameter; 3] {
    let query = |name: &str, description: &str, schema: ObjectBuilder| {
        let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Query);
        let parameter = parameter.required(Required::False).description(Some(description));
        parameter.schema(Some(schema)).build()
    };
    let id = || ObjectBuilder::new().schema_type(Type::String).pattern(cursors.clone());
    let limit = ObjectBuilder::new()
        .schema_type(SchemaType::new(Type::Integer))
        .minimum(Some(1))
        .maximum(isize::try_from(LIMIT_MAX).ok())
        .default(Some(LIMIT_DEFAULT.into()));
    let limits = format!("Maximum number of entries, 1 to {LIMIT_MAX}. Default: {LIMIT_DEFAULT}");
    [
        query("limit", &limits, limit),
        query("starting_after", "Id of an entry. The page starts after it, with older entries", id()),
        query(
            "ending_before",
            "Id of an entry. The page ends before it, with newer entries. Not made for polling: an entry can become \
             visible after a newer one, and is then missed. `GET /v1/events?after=` misses nothing",
            id(),
        ),
    ]
}
