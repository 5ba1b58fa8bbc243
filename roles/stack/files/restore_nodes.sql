-- Who leads, and which nodes serve this revision or a newer one. For psql, which is given revision.
SELECT json_build_object(
    'leader', (SELECT node_name FROM leadership),
    'nodes', (SELECT coalesce(json_agg(DISTINCT node_name), '[]') FROM instances WHERE applied_revision >= :revision AND left_at IS NULL));
