//! The OpenAPI document, for tests that hold what is answered against it.

use std::sync::OnceLock;

use serde_json::Value;

/// The document as it's published.
pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| serde_json::to_value(oncepay::server::document()).unwrap())
}

/// The document with its shared responses, headers, parameters and examples in their places. References to the schemas of
/// objects stay; `target` follows them.
pub fn resolved_document() -> &'static Value {
    static RESOLVED: OnceLock<Value> = OnceLock::new();
    RESOLVED.get_or_init(|| resolved(document()))
}

fn resolved(value: &Value) -> Value {
    match value {
        Value::Object(members) => match members.get("$ref").and_then(Value::as_str) {
            Some(reference) if !reference.starts_with("#/components/schemas/") => resolved(target(value)),
            // A member of a message has no name outside the document.
            Some(reference) if reference.contains("/Message") => resolved(target(value)),
            _ => members.iter().map(|(name, member)| (name.clone(), resolved(member))).collect(),
        },
        Value::Array(items) => items.iter().map(resolved).collect(),
        other => other.clone(),
    }
}

/// What `value` refers to, or itself.
pub fn target(value: &Value) -> &Value {
    match value["$ref"].as_str() {
        Some(reference) => {
            let found = document().pointer(reference.trim_start_matches('#'));
            found.unwrap_or_else(|| panic!("{reference} leads nowhere"))
        }
        None => value,
    }
}

/// Why `value`, which is at `path` of an answer, isn't what `schema` says; `None` if it is.
pub fn mismatch(path: &str, value: &Value, schema: &Value) -> Option<String> {
    let schema = target(schema);
    if let Some(parts) = schema["allOf"].as_array() {
        return parts.iter().find_map(|part| mismatch(path, value, part));
    }
    if let Some(choices) = schema["oneOf"].as_array().or_else(|| schema["anyOf"].as_array()) {
        let reasons: Vec<_> = choices.iter().map_while(|choice| mismatch(path, value, choice)).collect();
        return (reasons.len() == choices.len()).then(|| reasons.join("; "));
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let is_of_type = match &schema["type"] {
        Value::String(wanted) => wanted == kind,
        Value::Array(wanted) => wanted.iter().any(|wanted| wanted == kind),
        _ => true,
    };
    if !is_of_type {
        return Some(format!("{path} is {value}"));
    }
    let is_known = schema["enum"].as_array().is_none_or(|words| words.contains(value));
    if !is_known || schema.get("const").is_some_and(|only| only != value) {
        return Some(format!("{path} is {value}, which isn't among the documented words"));
    }
    let missing = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|name| value.is_object() && value.get(name.as_str().unwrap()).is_none());
    if let Some(name) = missing {
        return Some(format!("{path} has no {name}"));
    }
    let members = value.as_object().into_iter().flatten();
    let mut members = members.map(|(name, member)| {
        let schema = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
        mismatch(&format!("{path}/{name}"), member, schema)
    });
    let items = value.as_array().into_iter().flatten();
    let mut items = items.map(|item| mismatch(&format!("{path}/…"), item, &schema["items"]));
    members.find_map(|reason| reason).or_else(|| items.find_map(|reason| reason))
}
