//! The description of an operation and of a resource, as data.
//!
//! It is written once, in the operation's own file. The engine, the recovery worker, the key status, the
//! audit, the OpenAPI document and the tests read it.

use std::borrow::Cow;

use uuid::Uuid;

use crate::base::paths;

use super::policy::{Policy, PolicySetting};

/// An operation. `C` is the host's [`Caller`](super::Host::Caller).
#[derive(Clone, Copy, Debug)]
pub struct Descriptor<C> {
    /// Name, such as `charges.create`, in stored rows, metrics and logs.
    pub name: &'static str,
    /// HTTP method.
    pub method: &'static str,
    /// Path pattern with named parameters, such as `/v1/charges/{id}/capture`.
    pub path: &'static str,
    /// The kind of caller that may request it.
    pub caller: C,
    /// Names of its query parameters.
    pub query_parameters: &'static [&'static str],
    /// Whether an empty body stands for `{}`.
    pub body_optional: bool,
    /// The resource that the operation creates or changes.
    pub target: Target,
    /// Default policy, without the operation's own settings.
    pub default_policy: fn() -> Policy,
    /// Settings of its policy that only this operation has.
    pub policy_settings: &'static [PolicySetting],
    /// SQL for batches, if its requests can share statements.
    pub batching: Option<Batching>,
    /// Whether its requests may share transactions with others.
    pub shares_transactions: bool,
}

impl<C: Copy> Descriptor<C> {
    /// Describes an operation that needs a body, takes no query, has no resource, and has the default policy.
    pub const fn new(name: &'static str, method: &'static str, path: &'static str, caller: C) -> Self {
        Self {
            name,
            method,
            path,
            caller,
            query_parameters: &[],
            body_optional: false,
            target: Target::None,
            default_policy: Policy::default,
            policy_settings: &[],
            batching: None,
            shares_transactions: false,
        }
    }

    /// Sets the resource to `target`.
    pub const fn about(self, target: Target) -> Self {
        Self { target, ..self }
    }

    /// Sets the default policy.
    pub const fn with_default_policy(self, default_policy: fn() -> Policy) -> Self {
        Self { default_policy, ..self }
    }

    /// Sets the policy settings that only this operation has.
    pub const fn with_policy_settings(self, policy_settings: &'static [PolicySetting]) -> Self {
        Self { policy_settings, ..self }
    }

    /// Sets the SQL for batches.
    pub const fn with_batching(self, batching: Batching) -> Self {
        Self { batching: Some(batching), ..self }
    }

    /// Lets its requests share transactions with others of this and of other operations. For operations that are requested
    /// often and whose work is short: the locks of all last as long as the work of all.
    pub const fn sharing_transactions(self) -> Self {
        Self { shares_transactions: true, ..self }
    }

    /// Sets the names of the query parameters.
    pub const fn with_query_parameters(self, query_parameters: &'static [&'static str]) -> Self {
        Self { query_parameters, ..self }
    }

    /// Lets an empty body stand for `{}`.
    pub const fn with_optional_body(self) -> Self {
        Self { body_optional: true, ..self }
    }

    /// The default policy, with the operation's own settings.
    pub fn policy(&self) -> Policy {
        let mut policy = (self.default_policy)();
        policy.own.extend(self.policy_settings.iter().map(|setting| (setting.name, setting.default)));
        policy
    }

    /// Returns the parameter `name` of a concrete path, percent-decoded. Empty if the pattern has no such
    /// parameter.
    pub fn parameter<'a>(&self, path: &'a str, name: &str) -> Cow<'a, str> {
        parameter(self.path, path, name)
    }

    /// The resource of a request for `path`. [`Resource::None`] if the path's parameter isn't an id of that
    /// kind.
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

/// Returns the parameter `name` of `path` according to `pattern`. It's decoded after splitting, so that an
/// encoded slash belongs to it.
pub fn parameter<'a>(pattern: &str, path: &'a str, name: &str) -> Cow<'a, str> {
    let is_it = |piece: &str| piece.strip_prefix('{').and_then(|piece| piece.strip_suffix('}')) == Some(name);
    match pattern.split('/').skip(1).position(is_it) {
        Some(number) => paths::segment(path, number),
        None => Cow::Borrowed(""),
    }
}

/// SQL that claims and completes requests of one operation in batches, if they need nothing else of the
/// database.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Input of the reservation: an expression of type `jsonb` over the claim's new row (`idempotency_keys`).
    pub select_sql: &'static str,
    /// Whether a request may be completed in a batch: an expression of type `boolean` over `asked.merchant_id` and
    /// `asked.effects`. For locks, which it must not wait for.
    pub admit_sql: &'static str,
    /// The writing of the effects: further parts of a `WITH` (see `store::complete_all`).
    pub write_sql: &'static str,
    /// What the request is told besides its answer (see [`BatchedOperation::note`](super::BatchedOperation::note)): an
    /// expression of type `jsonb` over a row of `owner` and the parts of `write_sql`.
    pub note_sql: &'static str,
    /// The same as `write_sql` and `note_sql`, of one request in a database that is distributed: an expression of type `jsonb`
    /// over `owner.merchant_id` and `owner.effects` that reads no tables, but calls a function that writes.
    pub write_alone_sql: &'static str,
}

/// The resource that an operation creates or changes.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// No resource with an id.
    None,
    /// A new resource of this kind. The claim allocates its id.
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
    /// Name in stored rows and in the key status.
    pub name: &'static str,
    /// Prefix of the ids.
    pub prefix: &'static str,
    /// Table, whose key is (`merchant_id`, `id`) unless `scope` says otherwise.
    pub table: &'static str,
    /// Path, with `{id}`, and with `{column}` for each of `parents`.
    pub path: &'static str,
    /// Columns with the ids of the parent resources, and the kinds of those.
    pub parents: &'static [(&'static str, &'static ResourceKind)],
    /// Columns that find its rows.
    pub scope: Scope,
    /// SQL condition for the rows that still exist for the API.
    pub condition: &'static str,
    /// Whether its rows stay for good. If old rows are deleted, a missing row proves nothing.
    pub is_kept: bool,
}

/// Columns that find the rows of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Merchant and id.
    Merchant,
    /// This column alone, which holds the id: the resource belongs to no merchant.
    Service(&'static str),
}

impl ResourceKind {
    /// Describes a merchant's resource that stays for good, directly under `path`.
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

    /// The id of a resource of this kind, as the API shows it.
    pub fn format(&self, id: Uuid) -> String {
        format!("{}{}", self.prefix, id.as_simple())
    }

    /// Parses an id of this kind.
    pub fn parse(&self, text: &str) -> Option<Uuid> {
        let digits = text.strip_prefix(self.prefix)?;
        let is_simple = digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        Uuid::parse_str(digits).ok().filter(|_| is_simple)
    }

    /// The path of the resource with this id and these `parent_ids`.
    pub fn url(&self, id: Uuid, parent_ids: &[Uuid]) -> String {
        let mut url = self.path.replace("{id}", &self.format(id));
        for ((column, kind), parent_id) in self.parents.iter().zip(parent_ids) {
            url = url.replace(&format!("{{{column}}}"), &kind.format(*parent_id));
        }
        url
    }

    /// The path of the resource with this id, which the request for `path` makes or changes: that names the
    /// parents of the resource in the same places.
    pub(super) fn url_below(&self, path: &str, id: Uuid) -> String {
        let segments = self.path.split('/').zip(path.split('/').map(Some).chain(std::iter::repeat(None)));
        let segments = segments.map(|(pattern, given)| match given {
            _ if pattern == "{id}" => Cow::Owned(self.format(id)),
            Some(given) if pattern.starts_with('{') => Cow::Borrowed(given),
            _ => Cow::Borrowed(pattern),
        });
        segments.collect::<Vec<_>>().join("/")
    }

    /// SQL: whether the row of (`merchant`, `id`) exists, even if the API hides it.
    pub fn exists_sql(&self, merchant: &str, id: &str) -> String {
        format!("EXISTS (SELECT FROM {} r WHERE {})", self.table, self.row_sql(merchant, id))
    }

    /// SQL: the condition for the row `r` of (`merchant`, `id`) in the table.
    pub fn row_sql(&self, merchant: &str, id: &str) -> String {
        match self.scope {
            Scope::Merchant => format!("r.merchant_id = {merchant} AND r.id = {id}"),
            Scope::Service(column) => format!("r.{column} = {id}"),
        }
    }
}

/// The resource of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// No resource with an id.
    None,
    /// A resource of this kind that will be created.
    New(&'static str),
    /// The resource of this kind and id.
    Existing(&'static str, Uuid),
}

impl Resource {
    /// The id, if the resource existed before.
    pub fn existing(self) -> Option<Uuid> {
        match self {
            Self::Existing(_, id) => Some(id),
            Self::None | Self::New(_) => None,
        }
    }
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
        let path = format!("/v1/charges/ch_{}/notes", parent.as_simple());
        assert_eq!(NOTE.url_below(&path, id), url);
        let path = format!("/v1/charges/ch_{}/capture", parent.as_simple());
        assert_eq!(PARENT.url_below(&path, parent), PARENT.url(parent, &[]));
        assert_eq!(NOTE.parse(&NOTE.format(id)), Some(id));
        for text in ["no_", "ch_00000000000000000000000000000002", &NOTE.format(id).to_uppercase()] {
            assert_eq!(NOTE.parse(text), None, "{text}");
        }
    }
}
