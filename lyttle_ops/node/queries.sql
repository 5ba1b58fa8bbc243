-- name: agree_on_key
-- The first node's master key is the cluster's; every later one learns whether it has the same.
UPDATE cluster_state SET key_id = coalesce(key_id, %(key_id)s) RETURNING key_id;

-- name: revision
-- The newest change of what nodes render.
SELECT revision FROM cluster_state;
