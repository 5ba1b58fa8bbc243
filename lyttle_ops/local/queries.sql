-- name: installed
-- A row an instance: of how many current certificates its own handshake showed the right serial.
SELECT i.instance_id::text AS instance_id, count(*) AS installed
FROM certificates c
JOIN certificate_orders o ON o.id = c.order_id
JOIN certificate_installs i ON i.order_id = o.id AND i.serial = o.serial
GROUP BY i.instance_id;

-- name: current_certificates
-- How many certificates every node has to serve.
SELECT count(*) AS total FROM certificates WHERE order_id IS NOT NULL;
