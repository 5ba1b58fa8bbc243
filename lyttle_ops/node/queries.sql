-- name: agree_on_key
-- The first node's master key is the cluster's; every later one learns whether it has it.
UPDATE cluster_state SET key_id = coalesce(key_id, %(key_id)s) RETURNING key_id;

-- name: revision
-- The newest change of what nodes render, and the cluster's master key.
SELECT revision, key_id FROM cluster_state;
