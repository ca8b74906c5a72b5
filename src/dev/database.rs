//! Creates a database with its two roles: the owner, who migrates, and the role of the service, which may
//! only do what the migrations grant.

use diesel::sql_types::{Bool, Text};
use diesel::{PgConnection, RunQueryDsl};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::storage::{db, migrations};

/// Owner of the database and of everything in it.
pub const OWNER: &str = "oncepay_owner";
/// Role that the service connects as.
pub const APP: &str = "oncepay_app";

/// Creates the two roles, or gives them new passwords, and allows them to log in. `conn` must be a
/// superuser.
pub fn ensure_roles(
    conn: &mut PgConnection,
    owner_password: &SecretString,
    app_password: &SecretString,
) -> Result<(), String> {
    ensure_role(conn, OWNER, owner_password)?;
    ensure_role(conn, APP, app_password)
}

/// Creates a role that can do nothing but log in, or gives it a new password.
pub fn ensure_role(conn: &mut PgConnection, role: &str, password: &SecretString) -> Result<(), String> {
    let exists = exists(conn, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role)?;
    let verb = if exists { "ALTER" } else { "CREATE" };
    // Both come from this program: names are constants, passwords hexadecimal.
    execute(
        conn,
        &format!(
            "{verb} ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD '{}'",
            password.expose_secret()
        ),
    )
}

/// Creates a role, unless it exists, and lets the current one change to it.
pub fn ensure_role_to_change_to(conn: &mut PgConnection, role: &str) -> Result<(), String> {
    if !exists(conn, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role)? {
        execute(conn, &format!("CREATE ROLE {role}"))?;
    }
    if !exists(
        conn,
        "SELECT rolsuper AS exists FROM pg_roles WHERE rolname = current_user AND $1 <> ''",
        role,
    )? {
        execute(conn, &format!("GRANT {role} TO CURRENT_USER"))?;
    }
    Ok(())
}

/// Creates a database of the owner, unless it exists. `conn` must be a superuser.
pub fn ensure_database(conn: &mut PgConnection, name: &str) -> Result<(), String> {
    if !exists(conn, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name)? {
        execute(conn, &format!("CREATE DATABASE {name} OWNER {OWNER}"))?;
    }
    execute(conn, &format!("REVOKE CREATE ON DATABASE {name} FROM PUBLIC"))
}

/// Creates a schema, unless it exists. `conn` must be the owner of the database.
pub fn ensure_schema(conn: &mut PgConnection, name: &str) -> Result<(), String> {
    if !exists(conn, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", name)? {
        execute(conn, &format!("CREATE SCHEMA {name}"))?;
    }
    Ok(())
}

/// Revokes from everybody but the owner the right to create objects in a database's schema public, which they
/// have by default before Postgres 15. `conn` must be a superuser in that database.
pub fn close_public_schema(conn: &mut PgConnection) -> Result<(), String> {
    execute(conn, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")?;
    execute(conn, &format!("GRANT CREATE ON SCHEMA public TO {OWNER}"))
}

/// Migrates the database of `owner_url`. Returns the migrations that it ran.
pub fn migrate(owner_url: &SecretString) -> Result<Vec<String>, String> {
    migrations::migrate(&mut db::connect(owner_url)?)
}

/// Returns `url` with another role, password and database.
pub fn url_as(
    url: &str,
    role: &str,
    password: &SecretString,
    database: Option<&str>,
) -> Result<SecretString, String> {
    changed(url, |url| {
        let set = url.set_username(role).and_then(|()| url.set_password(Some(password.expose_secret())));
        set.map_err(|()| "The database URL has no host.".to_owned())?;
        if let Some(database) = database {
            url.set_path(database);
        }
        Ok(())
    })
}

/// Returns `url` with sessions that change to another role as soon as they are connected.
pub fn url_changing_to(url: &SecretString, role: &str) -> Result<SecretString, String> {
    url_setting(url, "role", role)
}

/// Returns `url` with sessions that find and create tables in one schema only.
pub fn url_in_schema(url: &SecretString, schema: &str) -> Result<SecretString, String> {
    url_setting(url, "search_path", schema)
}

fn url_setting(url: &SecretString, name: &str, value: &str) -> Result<SecretString, String> {
    changed(url.expose_secret(), |url| {
        // Not through `query_pairs_mut`: libpq doesn't take a plus for a space.
        let options = format!("options=-c%20{name}%3D{value}");
        let query = url.query().map_or(options.clone(), |query| format!("{query}&{options}"));
        url.set_query(Some(&query));
        Ok(())
    })
}

/// Stands for several hosts, which libpq's URLs can have and others can't.
const HOSTS: &str = "hosts.invalid";

fn changed(url: &str, change: impl FnOnce(&mut Url) -> Result<(), String>) -> Result<SecretString, String> {
    let hosts = several_hosts(url);
    let one = hosts.map_or_else(|| url.to_owned(), |hosts| url.replacen(hosts, HOSTS, 1));
    let mut parsed = Url::parse(&one).map_err(|error| format!("The database URL can't be read: {error}."))?;
    change(&mut parsed)?;
    let text = String::from(parsed);
    Ok(hosts.map_or_else(|| text.clone(), |hosts| text.replacen(HOSTS, hosts, 1)).into())
}

/// Returns `h1:1,h2:2` of `postgres://user:password@h1:1,h2:2/database`.
fn several_hosts(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let hosts = authority.rsplit('@').next()?;
    hosts.contains(',').then_some(hosts)
}

fn exists(conn: &mut PgConnection, query: &str, name: &str) -> Result<bool, String> {
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = Bool)]
        exists: bool,
    }
    diesel::sql_query(query)
        .bind::<Text, _>(name)
        .get_result::<Row>(conn)
        .map(|row| row.exists)
        .map_err(|error| format!("Can't read the database's catalog: {error}."))
}

fn execute(conn: &mut PgConnection, statement: &str) -> Result<(), String> {
    diesel::sql_query(statement)
        .execute(conn)
        .map(|_| ())
        .map_err(|error| format!("Can't prepare the database: {error}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_may_name_several_hosts() {
        let url = "postgres://u:p@h1:1,[::1]:2/a?target_session_attrs=read-write";
        let password = SecretString::from("q,@");
        let changed = url_as(url, "r", &password, Some("b")).unwrap();
        let expected = "postgres://r:q,%40@h1:1,[::1]:2/b?target_session_attrs=read-write";
        assert_eq!(changed.expose_secret(), expected);
        let changed = url_in_schema(&changed, "s").unwrap();
        assert_eq!(changed.expose_secret(), format!("{expected}&options=-c%20search_path%3Ds"));
        let one = url_as("postgres://u@h/a", "r", &"q".into(), None).unwrap();
        assert_eq!(one.expose_secret(), "postgres://r:q@h/a");
    }
}
