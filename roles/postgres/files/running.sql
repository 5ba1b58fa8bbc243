-- What keeps the running server from being what its files say.
SELECT 'error' AS kind, 'pg_hba.conf, line ' || line_number || ': ' || error AS what
FROM pg_hba_file_rules WHERE error IS NOT NULL
UNION ALL
-- postgresql.auto.conf is read last and would win.
SELECT 'altered', a.name
FROM pg_file_settings a
WHERE a.sourcefile LIKE '%%/postgresql.auto.conf'
  AND a.name IN (SELECT name FROM pg_file_settings WHERE sourcefile = %(folder)s || '/conf.d/lyttle-ops.conf')
UNION ALL
SELECT 'restart', 'waits for a restart: ' || string_agg(name, ', ')
FROM pg_file_settings WHERE NOT applied AND sourcefile = %(folder)s || '/conf.d/lyttle-ops.conf'
HAVING count(*) > 0
UNION ALL
SELECT 'reload', 'not read yet: ' || string_agg(file, ', ')
FROM unnest(ARRAY['conf.d/lyttle-ops.conf', 'pg_hba.conf', 'pg_ident.conf', 'lyttle-server.pem', 'lyttle-server.key']) AS file
WHERE (pg_stat_file(%(folder)s || '/' || file)).modification > pg_conf_load_time()
HAVING count(*) > 0
