"""The first schema.

Every later migration expands before it contracts: code one version older must run on the newer schema,
because a start-first update and a rollback run both at once.

Revision ID: 0001
"""

from alembic import op

revision = "0001"
down_revision = None

SCHEMA = """
-- One counter for everything a node renders: a node whose number is behind has something to fetch.
CREATE TABLE cluster_state (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    revision  bigint  NOT NULL DEFAULT 0,
    key_id    text                             -- master key of the cluster, set by its first node
);
INSERT INTO cluster_state DEFAULT VALUES;

-- Called by each statement that changes what nodes render. Transactional on purpose (a sequence would
-- show a number before the change it stands for is visible); the notification leaves at commit.
CREATE FUNCTION next_revision() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE r bigint;
BEGIN
    UPDATE cluster_state SET revision = revision + 1 RETURNING revision INTO r;
    PERFORM pg_notify('lyttle_state', r::text);
    RETURN r;
END $$;

CREATE TABLE leadership (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    term        bigint NOT NULL DEFAULT 0,
    instance_id uuid,
    node_name   text,
    acquired_at timestamptz,
    released_at timestamptz       -- set by a clean release only
);
INSERT INTO leadership DEFAULT VALUES;

CREATE TABLE nodes (
    name              text PRIMARY KEY,
    machine_id        text NOT NULL,
    first_seen_at     timestamptz NOT NULL DEFAULT now(),
    last_heartbeat_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE instances (
    id                uuid PRIMARY KEY,
    node_name         text NOT NULL REFERENCES nodes (name) ON DELETE CASCADE,
    hostname          text NOT NULL,
    version           text NOT NULL,
    started_at        timestamptz NOT NULL DEFAULT now(),
    last_heartbeat_at timestamptz NOT NULL DEFAULT now(),
    left_at           timestamptz,                        -- set by a clean leave only
    metadata          jsonb NOT NULL DEFAULT '{}',
    applied_revision  bigint NOT NULL DEFAULT 0,          -- cluster_state.revision this instance serves
    applied_release   text,                               -- hash of the NGINX release it serves
    applied_at        timestamptz,
    quarantined       jsonb NOT NULL DEFAULT '{}'         -- {"proxy id": "NGINX's own message"}
);
CREATE INDEX ON instances (node_name);

CREATE TABLE proxies (
    id                       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    type                     text NOT NULL CHECK (type IN ('PROXY', 'REDIRECT')),
    domains                  text[] NOT NULL CHECK (cardinality(domains) > 0),  -- A-labels, lower case, sorted
    proxy_pass_host          text NOT NULL,               -- normalised URL
    ssl                      boolean NOT NULL DEFAULT false,
    enabled                  boolean NOT NULL DEFAULT true,
    nginx_custom_code        text NOT NULL DEFAULT '',
    force_https              boolean NOT NULL DEFAULT true,
    hsts                     boolean NOT NULL DEFAULT false,
    websocket                boolean NOT NULL DEFAULT true,
    client_max_body_size     bigint NOT NULL DEFAULT 104857600,  -- bytes, 0 = unlimited
    connect_timeout          integer NOT NULL DEFAULT 10,        -- seconds
    read_timeout             integer NOT NULL DEFAULT 60,        -- seconds
    verify_upstream_tls      boolean NOT NULL DEFAULT true,
    redirect_code            integer NOT NULL DEFAULT 308,
    revision                 bigint NOT NULL,             -- cluster_state.revision of its last change
    created_at               timestamptz NOT NULL DEFAULT now(),
    updated_at               timestamptz NOT NULL DEFAULT now()
);

-- The primary key is what refuses two entries for one domain.
CREATE TABLE proxy_domains (
    domain   text PRIMARY KEY,
    proxy_id bigint NOT NULL REFERENCES proxies (id) ON DELETE CASCADE
);
CREATE INDEX ON proxy_domains (proxy_id);

CREATE TABLE certificates (
    id                   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    domains              text[] NOT NULL UNIQUE CHECK (cardinality(domains) > 0),  -- A-labels, sorted
    order_id             bigint,               -- certificate_orders row that is served; null: none yet
    revision             bigint NOT NULL,      -- cluster_state.revision of its last change of order_id
    renew_at             timestamptz,          -- planned renewal: lifetime or ARI, with jitter
    renewal_requested_at timestamptz,          -- a person asked; cleared by the next success
    attempts             integer NOT NULL DEFAULT 0,   -- failures since the last success
    next_try_at          timestamptz,          -- back-off, respected by all nodes and terms
    last_error           text,                 -- the CA's own words
    rate_limited         boolean NOT NULL DEFAULT false,  -- it was the CA's rate limit: no wish ends that
    last_error_at        timestamptz,
    created_at           timestamptz NOT NULL DEFAULT now()
);

-- The ledger: a row is written before each step with the CA, so that whoever comes next resumes it.
CREATE TABLE certificate_orders (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    certificate_id bigint NOT NULL REFERENCES certificates (id) ON DELETE CASCADE,
    state          text NOT NULL
        CHECK (state IN ('intent', 'created', 'ready', 'processing', 'issued', 'failed', 'abandoned')),
    directory_url  text NOT NULL,
    order_url      text,
    node_name      text NOT NULL,              -- who works on it
    instance_id    uuid NOT NULL,
    key_id         text NOT NULL,              -- master key that encrypts private_key
    private_key    bytea NOT NULL,             -- AES-256-GCM: nonce || ciphertext || tag
    csr_pem        text NOT NULL,
    chain_pem      text,
    serial         text,                       -- lower-case hex, no leading zeros
    not_before     timestamptz,
    not_after      timestamptz,
    error          text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now()
);
-- Two open orders for one certificate cannot exist, whatever the locks do.
CREATE UNIQUE INDEX certificate_orders_one_open ON certificate_orders (certificate_id)
    WHERE state NOT IN ('issued', 'failed', 'abandoned');
CREATE INDEX ON certificate_orders (certificate_id);
ALTER TABLE certificates ADD CONSTRAINT certificates_order_id_fkey
    FOREIGN KEY (order_id) REFERENCES certificate_orders (id);

-- What each instance's own TLS handshake showed.
CREATE TABLE certificate_installs (
    order_id    bigint NOT NULL REFERENCES certificate_orders (id) ON DELETE CASCADE,
    instance_id uuid NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
    serial      text NOT NULL,
    seen_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (order_id, instance_id)
);

CREATE TABLE acme_accounts (
    directory_url text PRIMARY KEY,
    key_id        text NOT NULL,
    private_key   bytea NOT NULL,              -- AES-256-GCM: nonce || ciphertext || tag
    account_url   text,                        -- null until registered
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE users (
    username      text PRIMARY KEY,
    password_hash text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_sessions (
    id         uuid PRIMARY KEY,
    username   text NOT NULL REFERENCES users (username) ON DELETE CASCADE,
    refresh_id uuid NOT NULL,                  -- jti of the one refresh token that is good now
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz
);

CREATE TABLE login_attempts (
    bucket text NOT NULL,                      -- 'user:NAME' or 'address:IP'
    at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON login_attempts (bucket, at);
"""


def upgrade() -> None:
    op.execute(SCHEMA)
