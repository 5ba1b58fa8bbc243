-- Who leads, which nodes serve this revision or a newer one, and how many have come here since the restore, which emptied the
-- table, whether they can apply it or not. For psql, which is given revision.
SELECT json_build_object(
    'leader', (SELECT node_name FROM leadership),
    'here', (SELECT count(*) FROM instances),
    'nodes', (SELECT coalesce(json_agg(DISTINCT node_name), '[]') FROM instances WHERE applied_revision >= :revision AND left_at IS NULL));
