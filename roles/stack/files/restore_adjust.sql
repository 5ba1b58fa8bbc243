-- A restored database must be newer than all that nodes have seen: revisions they serve, terms of leaders. Who was there
-- then is nobody now: nodes register anew and tell what they serve. For psql, which is given revision and term.
UPDATE cluster_state SET revision = greatest(revision, :revision) + 1;
UPDATE leadership SET term = greatest(term, :term), instance_id = NULL, node_name = NULL, acquired_at = NULL, released_at = NULL;
DELETE FROM nodes;
SELECT json_build_object('revision', (SELECT revision FROM cluster_state), 'key_id', (SELECT key_id FROM cluster_state));
