-- The whole state of a control plane. Kept in step with migrations/postgres by hand: the same tables,
-- columns and meanings, so that every statement of the program runs on both. Only three types:
-- TEXT, BIGINT (times are Unix milliseconds, booleans 0 and 1), BLOB. No column is ever NULL.

-- Facts of the installation: `trust_domain`.
CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row. Taken first by every write that readers must see, so that revisions commit in order.
CREATE TABLE revision (
    id       INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL
) STRICT;
INSERT INTO revision (id, revision) VALUES (1, 1);

-- What operators apply.
CREATE TABLE resources (
    kind       TEXT NOT NULL,
    namespace  TEXT NOT NULL,
    name       TEXT NOT NULL,
    uid        TEXT NOT NULL,
    document   TEXT NOT NULL,           -- JSON, as it was applied
    revision   INTEGER NOT NULL,        -- of its last change
    generation INTEGER NOT NULL,        -- counts changes of the spec
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) STRICT, WITHOUT ROWID;

-- Virtual addresses, allocated or declared. A released one is kept for a day, so that it is not reused.
CREATE TABLE vips (
    address     TEXT NOT NULL,
    namespace   TEXT NOT NULL,
    hostname    TEXT NOT NULL,
    owner       TEXT NOT NULL,          -- KIND/NAMESPACE/NAME
    number      INTEGER NOT NULL,       -- position in the pool; -1 when declared by the operator
    released_ms INTEGER NOT NULL,       -- 0 while in use
    PRIMARY KEY (address, namespace, hostname)
) STRICT, WITHOUT ROWID;

CREATE TABLE hosts (
    name              TEXT NOT NULL PRIMARY KEY,
    state             TEXT NOT NULL,    -- pending, active, locked, revoked
    problem           TEXT NOT NULL,    -- why it is locked
    addresses         TEXT NOT NULL,    -- JSON list
    sequence          INTEGER NOT NULL, -- the join sequence handed out last
    previous_sequence INTEGER NOT NULL, -- the one it replaced, good until the new one is seen
    key_hash          BLOB NOT NULL,    -- SHA-256 of the public key it joined with
    token_id          TEXT NOT NULL,    -- the token it joined with
    joined_ms         INTEGER NOT NULL,
    version           TEXT NOT NULL     -- of the program that joined
) STRICT, WITHOUT ROWID;

CREATE TABLE host_groups (
    host      TEXT NOT NULL REFERENCES hosts (name) ON DELETE CASCADE,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    PRIMARY KEY (host, namespace, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX host_groups_by_group ON host_groups (namespace, name);

CREATE TABLE tokens (
    id           TEXT NOT NULL PRIMARY KEY,
    secret_hash  BLOB NOT NULL,         -- SHA-256
    groups       TEXT NOT NULL,         -- JSON list of NAMESPACE/NAME
    uses_left    INTEGER NOT NULL,
    name_pattern TEXT NOT NULL,
    cidrs        TEXT NOT NULL,         -- JSON list
    approval     INTEGER NOT NULL,
    created_ms   INTEGER NOT NULL,
    expires_ms   INTEGER NOT NULL,
    created_by   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Heartbeats. Written often, so never part of the configuration: only a flip of `alive` takes a revision.
-- No index on the times: each would cost every heartbeat a second write.
CREATE TABLE leases (
    host         TEXT NOT NULL PRIMARY KEY REFERENCES hosts (name) ON DELETE CASCADE,
    epoch        TEXT NOT NULL,         -- of the agent that reports
    retired      TEXT NOT NULL,         -- JSON list: epochs of agents before it
    fingerprint  TEXT NOT NULL,         -- hash of all that was reported but the revision
    alive        INTEGER NOT NULL,
    reported_ms  INTEGER NOT NULL,
    expires_ms   INTEGER NOT NULL,
    revision     INTEGER NOT NULL,      -- the one the agent obeys
    version      TEXT NOT NULL,
    intercepting INTEGER NOT NULL,
    problem      TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- What agents found of their workloads. A change of `healthy` takes a revision.
CREATE TABLE workload_health (
    uid     TEXT NOT NULL PRIMARY KEY,
    host    TEXT NOT NULL REFERENCES hosts (name) ON DELETE CASCADE,
    healthy INTEGER NOT NULL,
    reason  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX workload_health_by_host ON workload_health (host);

-- What the issuer signed, for audit: never keys.
CREATE TABLE certificates (
    serial       TEXT NOT NULL PRIMARY KEY,
    identity     TEXT NOT NULL,
    host         TEXT NOT NULL,
    issued_ms    INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX certificates_by_host ON certificates (host, not_after_ms);
CREATE INDEX certificates_by_end ON certificates (not_after_ms);

-- Who did what.
CREATE TABLE audit (
    id     INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at_ms  INTEGER NOT NULL,
    actor  TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_time ON audit (at_ms);
