//! What there is to know of an operation and of a resource, as data.
//!
//! Said once, in the operation's own file. The engine, the recovery worker, the key status, the audit, the OpenAPI
//! document and the tests read it.

use std::borrow::Cow;

use uuid::Uuid;

use crate::base::paths;

use super::policy::{Policy, PolicySetting};

/// An operation. `C` is the host's [`Caller`](super::Host::Caller).
#[derive(Clone, Copy, Debug)]
pub struct Descriptor<C> {
    /// Its name, such as `charges.create`: in stored rows, metrics and logs.
    pub name: &'static str,
    /// HTTP method.
    pub method: &'static str,
    /// Path pattern with named parameters, such as `/v1/charges/{id}/capture`.
    pub path: &'static str,
    /// Who may ask for it.
    pub caller: C,
    /// Whether an empty body stands for `{}`.
    pub body_optional: bool,
    /// The resource that it makes or changes.
    pub target: Target,
    /// How it treats its keys until an operator says otherwise, without its own settings.
    pub default_policy: fn() -> Policy,
    /// Settings of its policy that only this operation has.
    pub policy_settings: &'static [PolicySetting],
    /// SQL that lets its requests share statements, if they can.
    pub batching: Option<Batching>,
}

impl<C: Copy> Descriptor<C> {
    /// An operation that needs a body, is about no resource, and treats its keys as by default.
    pub const fn new(name: &'static str, method: &'static str, path: &'static str, caller: C) -> Self {
        Self {
            name,
            method,
            path,
            caller,
            body_optional: false,
            target: Target::None,
            default_policy: Policy::default_policy,
            policy_settings: &[],
            batching: None,
        }
    }

    /// The same for the resource `target`.
    pub const fn about(self, target: Target) -> Self {
        Self { target, ..self }
    }

    /// The same with another default policy.
    pub const fn with_default_policy(self, default_policy: fn() -> Policy) -> Self {
        Self { default_policy, ..self }
    }

    /// The same with settings that only this operation has.
    pub const fn with_policy_settings(self, policy_settings: &'static [PolicySetting]) -> Self {
        Self { policy_settings, ..self }
    }

    /// The same where requests can share statements.
    pub const fn with_batching(self, batching: Batching) -> Self {
        Self { batching: Some(batching), ..self }
    }

    /// The same where an empty body stands for `{}`.
    pub const fn with_optional_body(self) -> Self {
        Self { body_optional: true, ..self }
    }

    /// How it treats its keys until an operator says otherwise.
    pub fn policy(&self) -> Policy {
        let mut policy = (self.default_policy)();
        policy.own.extend(self.policy_settings.iter().map(|setting| (setting.name, setting.default)));
        policy
    }

    /// The parameter `name` of a concrete path, percent-decoded; empty if the pattern has no such parameter.
    pub fn parameter<'a>(&self, path: &'a str, name: &str) -> Cow<'a, str> {
        parameter(self.path, path, name)
    }

    /// The resource that a request for `path` is about. [`Resource::None`] if what the path holds is no id of that kind.
    pub(super) fn resource(&self, path: &str) -> Resource {
        match self.target {
            Target::None => Resource::None,
            Target::New(kind) => Resource::New(kind.name),
            Target::Named(kind, parameter) => match kind.parse(&self.parameter(path, parameter)) {
                Some(id) => Resource::Existing(kind.name, id),
                None => Resource::None,
            },
        }
    }
}

/// The parameter `name` that `path` has by `pattern`, percent-decoded after splitting, so that a slash that was encoded
/// belongs to it.
pub fn parameter<'a>(pattern: &str, path: &'a str, name: &str) -> Cow<'a, str> {
    let is_it = |piece: &str| piece.strip_prefix('{').and_then(|piece| piece.strip_suffix('}')) == Some(name);
    match pattern.split('/').skip(1).position(is_it) {
        Some(number) => paths::segment(path, number),
        None => Cow::Borrowed(""),
    }
}

/// SQL that lets requests of one operation be claimed and completed many at a time, where they need nothing else of the
/// database.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// What the reservation is made from: an expression of type `jsonb` over the claim's new row (`idempotency_keys`).
    pub select_sql: &'static str,
    /// What writes the effects: further parts of a `WITH` (see `store::complete_all`).
    pub write_sql: &'static str,
}

/// The resource that an operation makes or changes.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Nothing that has an id.
    None,
    /// A new resource of this kind; the claim allocates its id.
    New(&'static ResourceKind),
    /// The resource of this kind whose id is this parameter of the path.
    Named(&'static ResourceKind, &'static str),
}

impl Target {
    /// The kind, if there is one.
    pub fn kind(&self) -> Option<&'static ResourceKind> {
        match self {
            Self::None => None,
            Self::New(kind) | Self::Named(kind, _) => Some(kind),
        }
    }
}

/// A kind of resource.
#[derive(Debug)]
pub struct ResourceKind {
    /// Its name in stored rows and in the key status.
    pub name: &'static str,
    /// What its ids start with.
    pub prefix: &'static str,
    /// Its table, whose key is (`merchant_id`, `id`) unless `scope` says otherwise.
    pub table: &'static str,
    /// Its path, with `{id}`, and with `{column}` for each of `parents`.
    pub path: &'static str,
    /// The columns that hold the ids of the resources that it belongs to, and the kinds of those.
    pub parents: &'static [(&'static str, &'static ResourceKind)],
    /// By what its rows are found.
    pub scope: Scope,
    /// SQL: which of its rows still exist for the API.
    pub condition: &'static str,
    /// Whether its rows stay for good. What is deleted when it's old proves nothing by being absent.
    pub is_kept: bool,
}

/// By what the rows of a resource are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// By merchant and id.
    Merchant,
    /// By this column alone, which holds the id: the resource belongs to no merchant.
    Service(&'static str),
}

impl ResourceKind {
    /// A resource of a merchant that stays for good, directly under `path`.
    pub const fn new(
        name: &'static str,
        prefix: &'static str,
        table: &'static str,
        path: &'static str,
    ) -> Self {
        Self {
            name,
            prefix,
            table,
            path,
            parents: &[],
            scope: Scope::Merchant,
            condition: "true",
            is_kept: true,
        }
    }

    /// The id of a resource of this kind as the API shows it.
    pub fn format(&self, id: Uuid) -> String {
        format!("{}{}", self.prefix, id.as_simple())
    }

    /// The id that `text` is, if it's one of this kind.
    pub fn parse(&self, text: &str) -> Option<Uuid> {
        let digits = text.strip_prefix(self.prefix)?;
        let is_simple = digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        Uuid::parse_str(digits).ok().filter(|_| is_simple)
    }

    /// The path of a resource with this id, whose parents have `parent_ids`.
    pub fn url(&self, id: Uuid, parent_ids: &[Uuid]) -> String {
        let mut url = self.path.replace("{id}", &self.format(id));
        for ((column, kind), parent_id) in self.parents.iter().zip(parent_ids) {
            url = url.replace(&format!("{{{column}}}"), &kind.format(*parent_id));
        }
        url
    }

    /// SQL: whether the row of (`merchant`, `id`) exists, whatever the API shows of it.
    pub fn exists_sql(&self, merchant: &str, id: &str) -> String {
        let table = self.table;
        match self.scope {
            Scope::Merchant => {
                format!("EXISTS (SELECT FROM {table} r WHERE r.merchant_id = {merchant} AND r.id = {id})")
            }
            Scope::Service(column) => format!("EXISTS (SELECT FROM {table} r WHERE r.{column} = {id})"),
        }
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// Nothing that has an id.
    None,
    /// A resource of this kind that will be made.
    New(&'static str),
    /// The resource of this kind and id.
    Existing(&'static str, Uuid),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_name_and_decoded_after_splitting() {
        let pattern = "/v1/charges/{charge_id}/notes/{id}";
        assert_eq!(parameter(pattern, "/v1/charges/ch_1/notes/n%2F2", "id"), "n/2");
        assert_eq!(parameter(pattern, "/v1/charges/ch_1/notes/n_2", "charge_id"), "ch_1");
        assert_eq!(parameter(pattern, "/v1/charges/ch_1/notes", "id"), "");
        assert_eq!(parameter(pattern, "/v1/charges/ch_1/notes/n_2", "other"), "");
    }

    #[test]
    fn urls_of_nested_resources_name_their_parents() {
        static PARENT: ResourceKind = ResourceKind::new("charge", "ch_", "charges", "/v1/charges/{id}");
        static NOTE: ResourceKind = ResourceKind {
            parents: &[("charge_id", &PARENT)],
            ..ResourceKind::new("note", "no_", "notes", "/v1/charges/{charge_id}/notes/{id}")
        };
        let (id, parent) = (Uuid::from_u128(2), Uuid::from_u128(1));
        let url = NOTE.url(id, &[parent]);
        assert_eq!(url, format!("/v1/charges/ch_{}/notes/no_{}", parent.as_simple(), id.as_simple()));
        assert_eq!(NOTE.parse(&NOTE.format(id)), Some(id));
        for text in ["no_", "ch_00000000000000000000000000000002", &NOTE.format(id).to_uppercase()] {
            assert_eq!(NOTE.parse(text), None, "{text}");
        }
    }
}
