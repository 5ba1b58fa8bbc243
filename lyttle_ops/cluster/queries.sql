-- name: heartbeat
-- One statement: the node, this instance, and in return what a node would otherwise have to poll for.
-- No row comes back when the name belongs to another machine that is alive.
WITH node AS (
    INSERT INTO nodes (name, machine_id) VALUES (%(node_name)s, %(machine_id)s)
    ON CONFLICT (name) DO UPDATE SET last_heartbeat_at = now(), machine_id = excluded.machine_id
    WHERE nodes.machine_id = excluded.machine_id
       OR NOT EXISTS (
           SELECT FROM instances i
           WHERE i.node_name = nodes.name AND i.left_at IS NULL AND i.last_heartbeat_at > now() - interval '2 minutes'
       )
    RETURNING name
), instance AS (
    INSERT INTO instances (id, node_name, hostname, version, metadata)
    SELECT %(instance_id)s, name, %(hostname)s, %(version)s, %(metadata)s FROM node
    ON CONFLICT (id) DO UPDATE SET last_heartbeat_at = now(), metadata = excluded.metadata, left_at = NULL
    RETURNING id, xmax = 0 AS inserted
)
SELECT
    bool_or(instance.inserted) AS registered,
    (SELECT revision FROM cluster_state) AS revision,
    EXISTS (
        SELECT FROM certificates c
        WHERE (next_try_at IS NULL OR next_try_at <= now())
          AND (order_id IS NULL OR renew_at <= now() OR renewal_requested_at IS NOT NULL)
          AND EXISTS (SELECT FROM proxies p WHERE p.enabled AND p.ssl AND p.domains = c.domains)
    ) AS certificates_due,
    (SELECT count(DISTINCT node_name) FROM instances WHERE left_at IS NULL AND last_heartbeat_at > now() - interval '2 minutes')
        AS active,
    (SELECT count(*) FROM nodes) AS nodes,
    bool_or(objid::bigint = %(leader_objid)s AND classid::bigint = %(leader_classid)s) IS TRUE AS has_leader,
    bool_or(objid::bigint = %(standby_objid)s AND classid::bigint = %(standby_classid)s) IS TRUE AS has_standby
FROM instance
LEFT JOIN pg_locks ON locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
GROUP BY instance.id;

-- name: leave
-- A clean leave: the instance is inactive at once instead of stale after two minutes.
UPDATE instances SET left_at = now() WHERE id = %(instance_id)s;

-- name: bury
-- Instances of this node that their successor found dead: gone now, not stale in two minutes.
UPDATE instances SET left_at = now() WHERE id = ANY(%(dead)s) AND node_name = %(node_name)s AND left_at IS NULL;

-- name: report_applied
-- What this instance serves now.
UPDATE instances
SET applied_revision = %(revision)s, applied_release = %(release)s, applied_at = now(), quarantined = %(quarantined)s
WHERE id = %(instance_id)s;

-- name: list_nodes
-- A row a node, seen through its newest instance that is alive, else its newest.
SELECT DISTINCT ON (n.name)
    n.name, i.id AS instance_id, i.hostname, i.version, i.started_at, i.last_heartbeat_at,
    CASE
        WHEN i.left_at IS NOT NULL THEN 'inactive'
        WHEN i.last_heartbeat_at > now() - interval '2 minutes' THEN 'active'
        ELSE 'stale'
    END AS status,
    extract(epoch FROM now() - i.last_heartbeat_at)::float AS heartbeat_age,
    i.metadata, i.applied_revision, i.applied_release, i.applied_at, i.quarantined,
    (SELECT count(*) FROM instances o
     WHERE o.node_name = n.name AND o.left_at IS NULL AND o.last_heartbeat_at > now() - interval '2 minutes'
    ) AS instances
FROM nodes n
JOIN instances i ON i.node_name = n.name
ORDER BY n.name, i.left_at IS NULL DESC, i.last_heartbeat_at > now() - interval '2 minutes' DESC, i.started_at DESC;

-- name: nodes_without_key
-- Active nodes with an instance that does not have a master key; an older version does not say which it has.
SELECT DISTINCT node_name FROM instances
WHERE left_at IS NULL AND last_heartbeat_at > now() - interval '2 minutes'
  AND NOT coalesce(metadata -> 'master_keys', '[]') ? %(key_id)s
ORDER BY node_name;

-- name: leadership
-- The term row, and who holds the leader lock or waits inside it, from PostgreSQL's own book-keeping. The
-- sessions carry their instance in application_name: lyttle/<first 8 of the instance id>/lead/<node>.
WITH sessions AS (
    SELECT l.granted, split_part(a.application_name, '/', 2) AS instance,
        split_part(a.application_name, '/', 4) AS node_name
    FROM pg_locks l
    JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.classid::bigint = %(leader_classid)s AND l.objid::bigint = %(leader_objid)s
)
SELECT term, instance_id, node_name, acquired_at,
    released_at IS NULL
        AND EXISTS (SELECT FROM sessions s WHERE s.granted AND instance_id::text LIKE s.instance || '%%') AS led,
    (SELECT node_name FROM sessions WHERE NOT granted LIMIT 1) AS standby
FROM leadership;

-- name: stats
-- Counts for the overview. Certificates are those that enabled ssl entries want, whether or not a row is there yet
-- (no two entries share a domain, so each wants one of its own). A node counts by its newest live instance.
WITH live AS (
    SELECT DISTINCT ON (node_name) id
    FROM instances
    WHERE left_at IS NULL AND last_heartbeat_at > now() - interval '2 minutes'
    ORDER BY node_name, started_at DESC, id
)
SELECT
    count(*) AS proxies,
    count(*) FILTER (WHERE p.enabled) AS proxies_enabled,
    count(*) FILTER (WHERE p.enabled AND p.ssl) AS certificates,
    count(*) FILTER (WHERE o.not_after > now()) AS certificates_valid,
    count(*) FILTER (WHERE c.attempts > 0) AS certificates_failing,
    count(*) FILTER (
        WHERE o.not_after > now()
          AND EXISTS (SELECT FROM live)
          AND NOT EXISTS (SELECT FROM live
                          WHERE NOT EXISTS (SELECT FROM certificate_installs i
                                            WHERE i.order_id = o.id AND i.instance_id = live.id AND i.serial = o.serial))
    ) AS certificates_installed,
    (SELECT revision FROM cluster_state) AS revision
FROM proxies p
LEFT JOIN certificates c ON p.ssl AND p.enabled AND c.domains = p.domains
LEFT JOIN certificate_orders o ON o.id = c.order_id;

-- name: fence
-- Holds the term still until the transaction ends: a successor's increment waits for it, and after the
-- increment no row comes back (the WHERE is checked again on the new row version).
SELECT term FROM leadership
WHERE term = %(term)s AND instance_id = %(instance_id)s AND released_at IS NULL
FOR SHARE;

-- name: prune_instances
-- Instances that have been gone for a day.
DELETE FROM instances WHERE last_heartbeat_at < now() - interval '1 day';

-- name: prune_nodes
-- Nodes that have been gone for a week.
DELETE FROM nodes n
WHERE last_heartbeat_at < now() - interval '7 days' AND NOT EXISTS (SELECT FROM instances WHERE node_name = n.name);
