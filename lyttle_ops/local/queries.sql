-- name: installed
-- A row an instance: of how many wanted certificates its own handshake showed the right serial.
SELECT i.instance_id::text AS instance_id, count(*) AS installed
FROM certificates c
JOIN certificate_orders o ON o.id = c.order_id
JOIN certificate_installs i ON i.order_id = o.id AND i.serial = o.serial
WHERE EXISTS (SELECT FROM proxies p WHERE p.ssl AND p.enabled AND p.domains = c.domains)
GROUP BY i.instance_id;

-- name: wanted_certificates
-- How many certificates every node has to serve: those of enabled entries with ssl, issued or not yet. The ones
-- of deleted entries stay in the table and do not count.
SELECT count(*) AS total FROM certificates c
WHERE EXISTS (SELECT FROM proxies p WHERE p.ssl AND p.enabled AND p.domains = c.domains);
