-- name: look
-- The fast path: whether there is anything to do for a set of domains, and whether it may be tried now.
SELECT c.id,
       c.order_id IS NULL OR c.renewal_requested_at IS NOT NULL OR c.renew_at <= now() OR o.not_after <= now() AS due,
       coalesce(c.next_try_at > now(), false) AS waiting
FROM certificates c
LEFT JOIN certificate_orders o ON o.id = c.order_id
WHERE c.domains = %(domains)s::text[]

-- name: create
-- The row of a set of domains nobody has asked for before.
INSERT INTO certificates (domains, revision)
SELECT %(domains)s::text[], revision FROM cluster_state
ON CONFLICT (domains) DO NOTHING

-- name: pending
-- What can be worked on now: first issues for any node, renewals for the leader. Rows for wanted sets of
-- domains that are new come with the same statement. Every node runs this at the same moment: the update that
-- changes nothing lets those that lose the race see the row too (so that they look again, should the winner die),
-- and the order keeps them from waiting for each other crosswise.
WITH wanted AS (
    SELECT DISTINCT domains FROM proxies WHERE ssl AND enabled
), missing AS (
    INSERT INTO certificates (domains, revision)
    SELECT w.domains, s.revision
    FROM wanted w CROSS JOIN cluster_state s
    WHERE NOT EXISTS (SELECT FROM certificates c WHERE c.domains = w.domains)
    ORDER BY w.domains
    ON CONFLICT (domains) DO UPDATE SET domains = excluded.domains
    RETURNING id, domains
)
SELECT id, domains, false AS renewal, false AS requested, NULL::timestamptz AS since FROM missing
UNION ALL
SELECT c.id, c.domains, c.order_id IS NOT NULL, c.renewal_requested_at IS NOT NULL, coalesce(c.renew_at, c.created_at)
FROM certificates c
JOIN wanted w ON w.domains = c.domains
LEFT JOIN certificate_orders o ON o.id = c.order_id
WHERE (c.next_try_at IS NULL OR c.next_try_at <= now())
  AND (c.order_id IS NULL
       OR %(leader)s AND (c.renewal_requested_at IS NOT NULL OR c.renew_at <= now() OR o.not_after <= now()))
ORDER BY requested DESC, renewal, since NULLS FIRST, id

-- name: request_renewal
-- A person's wish. The first of several wishes counts, so that three nodes asked at once make one order; for
-- the same reason a wish finds itself fulfilled by a renewal of the last ten seconds. It ends our own
-- back-off, but not a limit the CA has set. Only what an enabled entry wants is renewed. The notification wakes the
-- leader. `recent`: the wish is such a fulfilled one.
UPDATE certificates c
SET renewal_requested_at = CASE
        WHEN c.order_id IS NULL THEN NULL
        WHEN EXISTS (SELECT FROM certificate_orders o
                     WHERE o.id = c.order_id AND o.updated_at > now() - interval '10 seconds'
                       AND EXISTS (SELECT FROM certificate_orders e
                                   WHERE e.certificate_id = c.id AND e.state = 'issued' AND e.id < o.id))
            THEN c.renewal_requested_at
        ELSE coalesce(c.renewal_requested_at, now()) END,
    next_try_at = CASE WHEN c.rate_limited THEN c.next_try_at END
WHERE c.id = %(id)s AND EXISTS (SELECT FROM proxies p WHERE p.ssl AND p.enabled AND p.domains = c.domains)
RETURNING c.order_id IS NOT NULL AND c.renewal_requested_at IS NULL AS recent, c.rate_limited, c.next_try_at,
          next_revision() AS revision

-- name: open_order
-- The order of a certificate that is neither issued nor failed; there is at most one (unique index).
SELECT id, certificate_id, state, directory_url, order_url, node_name, instance_id, key_id, private_key, csr_pem
FROM certificate_orders
WHERE certificate_id = %(certificate_id)s AND state NOT IN ('issued', 'failed', 'abandoned')

-- name: begin_order
-- Intent: key and CSR are stored before the CA hears of the order.
INSERT INTO certificate_orders
    (certificate_id, state, directory_url, node_name, instance_id, key_id, private_key, csr_pem)
VALUES (%(certificate_id)s, 'intent', %(directory_url)s, %(node_name)s, %(instance_id)s, %(key_id)s,
        %(private_key)s, %(csr_pem)s)
RETURNING id, certificate_id, state, directory_url, order_url, node_name, instance_id, key_id, private_key, csr_pem

-- name: take_over_order
-- The one who holds the lock continues an order another instance began.
UPDATE certificate_orders
SET instance_id = %(instance_id)s, node_name = %(node_name)s, updated_at = now()
WHERE id = %(id)s AND state = %(state)s AND instance_id = %(from_instance_id)s
RETURNING id, certificate_id, state, directory_url, order_url, node_name, instance_id, key_id, private_key, csr_pem

-- name: advance_order
-- One step forward, by the instance that owns the order and from the state it believes in.
UPDATE certificate_orders
SET state = %(to)s, order_url = coalesce(%(order_url)s, order_url), updated_at = now()
WHERE id = %(id)s AND state = %(from)s AND instance_id = %(instance_id)s
RETURNING id, certificate_id, state, directory_url, order_url, node_name, instance_id, key_id, private_key, csr_pem

-- name: complete_order
-- Issued: the chain is stored and becomes what every node serves, in one statement and so in one transaction.
-- A wish to renew that came after this order was begun stays.
WITH issued AS (
    UPDATE certificate_orders
    SET state = 'issued', chain_pem = %(chain_pem)s, serial = %(serial)s, not_before = %(not_before)s,
        not_after = %(not_after)s, updated_at = now()
    WHERE id = %(id)s AND state = 'processing' AND instance_id = %(instance_id)s
    RETURNING id, certificate_id, created_at
)
UPDATE certificates c
SET order_id = issued.id, revision = next_revision(), renew_at = %(renew_at)s, attempts = 0, next_try_at = NULL,
    last_error = NULL, last_error_at = NULL, rate_limited = false,
    renewal_requested_at = CASE WHEN c.renewal_requested_at > issued.created_at THEN c.renewal_requested_at END
FROM issued
WHERE c.id = issued.certificate_id
RETURNING c.revision

-- name: fail_order
-- The end of an order that will not give a certificate: failed or abandoned.
UPDATE certificate_orders
SET state = %(end)s, error = %(error)s, updated_at = now()
WHERE id = %(id)s AND state = %(state)s AND instance_id = %(instance_id)s
RETURNING id

-- name: failures
-- Failures since the last success: all of them, and those where the CA said no (the ledger counts these).
SELECT c.attempts,
       (SELECT count(*) FROM certificate_orders o
        WHERE o.certificate_id = c.id AND o.state = 'failed' AND o.id > coalesce(c.order_id, 0)) AS refused
FROM certificates c
WHERE c.id = %(id)s

-- name: record_failure
-- What went wrong and when the next try may be; respected by all nodes and terms.
UPDATE certificates
SET attempts = attempts + 1, last_error = %(error)s, last_error_at = now(), next_try_at = now() + %(delay)s,
    rate_limited = %(rate_limited)s
WHERE id = %(id)s
RETURNING next_try_at

-- name: served_chain
-- The certificate a renewal replaces (RFC 9773 5), when this CA issued it.
SELECT o.chain_pem
FROM certificates c
JOIN certificate_orders o ON o.id = c.order_id
WHERE c.id = %(id)s AND o.directory_url = %(directory_url)s AND o.not_after > now()

-- name: renewable
-- What the leader asks the CA's renewal information for (RFC 9773): wanted, served, not yet expired.
SELECT c.id, c.order_id, c.domains, c.renew_at, o.chain_pem, o.not_before, o.not_after
FROM certificates c
JOIN certificate_orders o ON o.id = c.order_id
WHERE o.directory_url = %(directory_url)s AND o.not_after > now()
  AND EXISTS (SELECT FROM proxies p WHERE p.ssl AND p.enabled AND p.domains = c.domains)
ORDER BY c.id

-- name: plan_renewal
-- A new date for the certificate it was computed from, and no other.
UPDATE certificates SET renew_at = %(renew_at)s WHERE id = %(id)s AND order_id = %(order_id)s

-- name: usable
-- Every served certificate that an enabled ssl proxy has a domain of, with its encrypted key.
SELECT c.id, c.order_id, c.domains, o.serial, o.chain_pem, o.key_id, o.private_key, o.not_after
FROM certificates c
JOIN certificate_orders o ON o.id = c.order_id
WHERE c.domains && (SELECT coalesce(array_agg(d.domain), '{}')
                    FROM proxy_domains d JOIN proxies p ON p.id = d.proxy_id
                    WHERE p.ssl AND p.enabled)
ORDER BY c.id

-- name: report_installed
-- What an instance's own handshakes showed. Orders pruned meanwhile are left out.
INSERT INTO certificate_installs (order_id, instance_id, serial)
SELECT o.id, %(instance_id)s, seen.serial
FROM unnest(%(order_ids)s::bigint[], %(serials)s::text[]) AS seen (order_id, serial)
JOIN certificate_orders o ON o.id = seen.order_id
ON CONFLICT (order_id, instance_id) DO UPDATE SET serial = EXCLUDED.serial, seen_at = now()
WHERE certificate_installs.serial IS DISTINCT FROM EXCLUDED.serial

-- name: report_missing
-- What an instance expected to show and did not.
DELETE FROM certificate_installs WHERE instance_id = %(instance_id)s AND order_id = ANY(%(order_ids)s::bigint[])

-- name: list_certificates
-- Certificates for people, all of them or one. A node counts by its newest live instance. An entry wants at most one
-- certificate and each is wanted by at most one entry, since no two entries share a domain.
WITH live AS (
    SELECT DISTINCT ON (node_name) node_name, id, applied_revision, quarantined
    FROM instances
    WHERE left_at IS NULL AND last_heartbeat_at > now() - interval '2 minutes'
    ORDER BY node_name, started_at DESC, id
)
SELECT c.id, c.domains, c.renew_at, c.renewal_requested_at, c.attempts, c.last_error, c.last_error_at, c.next_try_at,
       c.created_at, o.serial, o.not_before, o.not_after, o.chain_pem,
       coalesce(o.not_after <= now(), false) AS expired,
       coalesce(c.next_try_at > now(), false) AS waiting,
       open.state AS open_state, open.node_name AS open_node,
       p.id AS entry,
       ARRAY(SELECT live.node_name FROM live
             WHERE live.applied_revision >= p.revision AND live.quarantined ? p.id::text
             ORDER BY live.node_name) AS quarantined,
       (SELECT count(*) FROM live) AS nodes,
       ARRAY(SELECT live.node_name FROM live
             WHERE NOT EXISTS (SELECT FROM certificate_installs i
                               WHERE i.order_id = c.order_id AND i.instance_id = live.id AND i.serial = o.serial)
             ORDER BY live.node_name) AS missing
FROM certificates c
LEFT JOIN certificate_orders o ON o.id = c.order_id
LEFT JOIN proxies p ON p.ssl AND p.enabled AND p.domains = c.domains
LEFT JOIN certificate_orders open ON open.certificate_id = c.id AND open.state NOT IN ('issued', 'failed', 'abandoned')
WHERE %(id)s::bigint IS NULL OR c.id = %(id)s
ORDER BY c.domains

-- name: list_orders
-- The history of one certificate, newest first.
SELECT id, state, directory_url, node_name, serial, not_before, not_after, error, created_at, updated_at
FROM certificate_orders
WHERE certificate_id = %(id)s
ORDER BY id DESC
LIMIT 20

-- name: prune_certificates
-- Certificates no proxy has, enabled or not: a week after they expired, or a month after the last try when there
-- never was one (sooner would forget the back-off of a proxy that is deleted and made again).
DELETE FROM certificates c
WHERE NOT EXISTS (SELECT FROM proxies p WHERE p.ssl AND p.domains = c.domains)
  AND NOT EXISTS (SELECT FROM certificate_orders o WHERE o.certificate_id = c.id
                  AND o.state NOT IN ('issued', 'failed', 'abandoned') AND o.updated_at > now() - interval '1 day')
  AND CASE WHEN c.order_id IS NULL
           THEN greatest(c.created_at, c.last_error_at, c.next_try_at) < now() - interval '30 days'
           ELSE (SELECT o.not_after FROM certificate_orders o WHERE o.id = c.order_id) < now() - interval '7 days' END

-- name: prune_orders
-- Orders a month after they were superseded or failed; of the failed ones the last twelve stay, because the
-- back-off counts them and people read them.
DELETE FROM certificate_orders o
USING certificates c
WHERE c.id = o.certificate_id AND o.updated_at < now() - interval '30 days'
  AND (o.state = 'issued' AND c.order_id <> o.id
       OR o.state IN ('failed', 'abandoned') AND (SELECT count(*) FROM certificate_orders n
                                  WHERE n.certificate_id = o.certificate_id AND n.state IN ('failed', 'abandoned') AND n.id > o.id) >= 12)

-- name: account
-- The cluster's account at a CA.
SELECT key_id, private_key, account_url FROM acme_accounts WHERE directory_url = %(directory_url)s

-- name: create_account
-- The account's key, made by whichever node comes first; nothing is sent to the CA.
INSERT INTO acme_accounts (directory_url, key_id, private_key)
VALUES (%(directory_url)s, %(key_id)s, %(private_key)s)
ON CONFLICT (directory_url) DO NOTHING

-- name: register_account
-- Where the CA keeps the account of this key.
UPDATE acme_accounts SET account_url = %(account_url)s
WHERE directory_url = %(directory_url)s AND private_key = %(private_key)s

-- name: replace_account
-- A new key for an account the CA has closed. Every node renders its thumbprint, hence the new revision.
UPDATE acme_accounts
SET key_id = %(key_id)s, private_key = %(private_key)s, account_url = NULL, created_at = now()
WHERE directory_url = %(directory_url)s AND private_key = %(old_private_key)s
RETURNING next_revision() AS revision

-- name: hold_key
-- The cluster's master key, held still until the transaction ends; changes of the revision do not wait for it.
SELECT key_id FROM cluster_state FOR KEY SHARE

-- name: hold_key_for_change
-- Waits for everybody who is writing a row with the cluster's master key, and lets nobody begin.
SELECT key_id FROM cluster_state FOR UPDATE

-- name: orders_of_other_keys
-- Orders whose private key another master key encrypts.
SELECT o.id, o.certificate_id, o.key_id, o.private_key, c.domains
FROM certificate_orders o JOIN certificates c ON c.id = o.certificate_id
WHERE o.key_id <> %(key_id)s ORDER BY o.id

-- name: accounts_of_other_keys
-- Accounts whose private key another master key encrypts.
SELECT directory_url, key_id, private_key FROM acme_accounts WHERE key_id <> %(key_id)s

-- name: seal_order
-- The same private key under another master key.
UPDATE certificate_orders SET key_id = %(key_id)s, private_key = %(private_key)s WHERE id = %(id)s

-- name: seal_account
-- The same account's key under another master key.
UPDATE acme_accounts SET key_id = %(key_id)s, private_key = %(private_key)s WHERE directory_url = %(directory_url)s

-- name: set_key
-- The cluster's master key from now on.
UPDATE cluster_state SET key_id = %(key_id)s WHERE key_id IS DISTINCT FROM %(key_id)s

-- name: announce
-- Every node reads the state again.
SELECT next_revision() AS revision

-- name: lock_certificate
-- The row of a set of domains, locked: whether they have a certificate is decided once.
SELECT id, order_id FROM certificates WHERE domains = %(domains)s::text[] FOR UPDATE

-- name: adopt_order
-- The ledger's row of a certificate that came with its key from elsewhere; nobody was asked for it.
INSERT INTO certificate_orders
    (certificate_id, state, directory_url, node_name, instance_id, key_id, private_key, csr_pem, chain_pem, serial,
     not_before, not_after)
VALUES (%(certificate_id)s, 'issued', %(origin)s, 'import', %(instance_id)s, %(key_id)s, %(private_key)s, '',
        %(chain_pem)s, %(serial)s, %(not_before)s, %(not_after)s)
RETURNING id

-- name: adopt
-- It is what every node serves from now on.
UPDATE certificates
SET order_id = %(order_id)s, revision = next_revision(), renew_at = %(renew_at)s, attempts = 0, next_try_at = NULL,
    last_error = NULL, last_error_at = NULL, rate_limited = false
WHERE id = %(id)s
