//! Bounds in the OpenAPI document that many schemas share, from the constants by which the service decides.

use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{Components, RefOr, Required};

use crate::host::{self, RegisteredOperation};
use crate::web::fields::{METADATA_ENTRIES_MAX, METADATA_NAME_MAX, TEXT_MAX};
use crate::web::lists::{LIMIT_DEFAULT, LIMIT_MAX};

/// Bounds the schemas of `components`: all `metadata`, and the types of resources.
pub fn bound(components: &mut Components, registered: &[RegisteredOperation]) {
    for schema in components.schemas.values_mut() {
        if let RefOr::T(Schema::Object(object)) = schema
            && let Some(RefOr::T(Schema::Object(metadata))) = object.properties.get_mut("metadata")
        {
            metadata.max_properties = Some(METADATA_ENTRIES_MAX);
            let name = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
            let name = name.max_length(Some(METADATA_NAME_MAX)).build();
            metadata.property_names = Some(Box::new(Schema::Object(name)));
            if let Some(AdditionalProperties::RefOr(RefOr::T(Schema::Object(value)))) =
                metadata.additional_properties.as_deref_mut()
            {
                value.max_length = Some(TEXT_MAX);
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

/// The query parameters of every list.
pub fn page_parameters() -> [Parameter; 3] {
    let query = |name: &str, description: &str, schema: ObjectBuilder| {
        let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Query);
        let parameter = parameter.required(Required::False).description(Some(description));
        parameter.schema(Some(schema)).build()
    };
    let id = || ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
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
