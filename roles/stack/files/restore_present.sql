-- What the database holds, as one JSON object; {} without our tables. For psql.
SELECT to_regclass('public.cluster_state') IS NOT NULL AS ours \gset
\if :ours
SELECT json_build_object(
    'revision', (SELECT revision FROM cluster_state),
    'key_id', (SELECT key_id FROM cluster_state),
    'term', (SELECT term FROM leadership),
    'entries', (SELECT count(*) FROM proxies),
    'certificates', (SELECT count(*) FROM certificates),
    'changed_at', (SELECT to_char(max(updated_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"') FROM proxies));
\else
SELECT '{}';
\endif
