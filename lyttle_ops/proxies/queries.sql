-- name: list_proxies
-- A page of entries, oldest first, each with its certificate; `total` counts all that match the filter.
-- The outer join keeps one row when the page is empty, so that the total still comes.
WITH matching AS (
    SELECT * FROM proxies
    WHERE %(domain)s::text IS NULL OR id = (SELECT proxy_id FROM proxy_domains WHERE domain = %(domain)s)
), page AS (
    SELECT * FROM matching ORDER BY id LIMIT %(limit)s OFFSET %(offset)s
)
SELECT counted.total, page.*, certificate.id AS certificate_id, certificate.attempts, certificate.last_error,
       certificate.next_try_at, served.not_after,
       coalesce(served.not_after <= now(), false) AS certificate_expired,
       coalesce(certificate.next_try_at > now(), false) AS certificate_waits,
       EXISTS (SELECT FROM certificate_orders o WHERE o.certificate_id = certificate.id
               AND o.state NOT IN ('issued', 'failed', 'abandoned')) AS certificate_ordered
FROM (SELECT count(*) AS total FROM matching) counted
LEFT JOIN page ON true
LEFT JOIN certificates certificate ON certificate.domains = page.domains
LEFT JOIN certificate_orders served ON served.id = certificate.order_id
ORDER BY page.id;

-- name: get_proxy_view
-- One entry with its certificate, columns as in list_proxies.
SELECT 1::bigint AS total, page.*, certificate.id AS certificate_id, certificate.attempts, certificate.last_error,
       certificate.next_try_at, served.not_after,
       coalesce(served.not_after <= now(), false) AS certificate_expired,
       coalesce(certificate.next_try_at > now(), false) AS certificate_waits,
       EXISTS (SELECT FROM certificate_orders o WHERE o.certificate_id = certificate.id
               AND o.state NOT IN ('issued', 'failed', 'abandoned')) AS certificate_ordered
FROM proxies page
LEFT JOIN certificates certificate ON certificate.domains = page.domains
LEFT JOIN certificate_orders served ON served.id = certificate.order_id
WHERE page.id = %(id)s;

-- name: enabled_proxies
-- Every entry that nodes render.
SELECT * FROM proxies WHERE enabled ORDER BY id;

-- name: all_proxies
-- Every entry, disabled ones too.
SELECT * FROM proxies ORDER BY id;

-- name: get_proxy
-- One entry.
SELECT * FROM proxies WHERE id = %(id)s;

-- name: lock_proxy
-- One entry, locked until the transaction ends: two changes at once are made one after the other.
SELECT * FROM proxies WHERE id = %(id)s FOR UPDATE;

-- name: insert_proxy
-- A new entry. next_revision() locks cluster_state, so that writers queue there, always before proxy_domains.
INSERT INTO proxies (type, domains, proxy_pass_host, ssl, enabled, nginx_custom_code, force_https, hsts, websocket,
                     client_max_body_size, connect_timeout, read_timeout, verify_upstream_tls, redirect_code, revision)
VALUES (%(type)s, %(domains)s, %(proxy_pass_host)s, %(ssl)s, %(enabled)s, %(nginx_custom_code)s, %(force_https)s,
        %(hsts)s, %(websocket)s, %(client_max_body_size)s, %(connect_timeout)s, %(read_timeout)s,
        %(verify_upstream_tls)s, %(redirect_code)s, next_revision())
RETURNING *;

-- name: update_proxy
-- The whole entry anew.
UPDATE proxies
SET type = %(type)s, domains = %(domains)s, proxy_pass_host = %(proxy_pass_host)s, ssl = %(ssl)s,
    enabled = %(enabled)s, nginx_custom_code = %(nginx_custom_code)s, force_https = %(force_https)s, hsts = %(hsts)s,
    websocket = %(websocket)s, client_max_body_size = %(client_max_body_size)s, connect_timeout = %(connect_timeout)s,
    read_timeout = %(read_timeout)s, verify_upstream_tls = %(verify_upstream_tls)s, redirect_code = %(redirect_code)s,
    revision = next_revision(), updated_at = now()
WHERE id = %(id)s
RETURNING *;

-- name: delete_proxy
-- The entry and, by cascade, its claims on domains.
DELETE FROM proxies WHERE id = %(id)s RETURNING next_revision() AS revision;

-- name: release_domains
-- Give up the claims on domains the entry no longer names.
DELETE FROM proxy_domains WHERE proxy_id = %(id)s AND NOT domain = ANY (%(domains)s);

-- name: claim_domains
-- Claim domains for an entry. Waits for a transaction that is claiming one of them now; what is taken is left out.
INSERT INTO proxy_domains (domain, proxy_id)
SELECT domain, %(id)s FROM unnest(%(domains)s::text[]) AS domain
ON CONFLICT (domain) DO NOTHING;

-- name: find_conflict
-- The first of the domains that another entry holds.
SELECT domain, proxy_id FROM proxy_domains
WHERE domain = ANY (%(domains)s) AND proxy_id IS DISTINCT FROM %(id)s
ORDER BY domain LIMIT 1;

-- name: node_progress
-- What each instance of each active node serves; a node that is being updated has two.
SELECT n.name AS node, i.applied_revision, i.quarantined
FROM nodes n
JOIN instances i ON i.node_name = n.name
WHERE i.left_at IS NULL AND i.last_heartbeat_at > now() - interval '2 minutes'
ORDER BY n.name, i.started_at;
