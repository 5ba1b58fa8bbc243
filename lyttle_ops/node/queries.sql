-- name: revision
-- The newest change of what nodes render.
SELECT revision FROM cluster_state;
