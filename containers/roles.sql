-- Runs when the database is created. Makes two roles: the owner, which migrates, and the role of the service, which owns
-- nothing and can do only what the migrations grant.
\set owner_password `cat /run/secrets/owner_password`
\set app_password `cat /run/secrets/app_password`
CREATE ROLE oncepay_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE oncepay_app LOGIN PASSWORD :'app_password';
ALTER DATABASE oncepay OWNER TO oncepay_owner;
