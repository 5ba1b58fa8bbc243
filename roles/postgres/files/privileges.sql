-- The statements that make privileges what they should be: none when they are.
--   owner: owns the database, its schema and all in it; migrates.
--   app:   reads and writes rows, uses sequences, calls functions. Defines nothing, grants nothing, truncates nothing.
--   PUBLIC: nothing at all.
WITH
relations AS (
    SELECT c.oid, c.relkind, c.relowner, c.relacl, format('%%I.%%I', n.nspname, c.relname) AS name,
        CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
        CASE c.relkind WHEN 'S' THEN 'SELECT, USAGE' ELSE 'DELETE, INSERT, SELECT, UPDATE' END AS wanted,
        -- An identity or serial column's sequence goes where its table goes.
        EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i'))
            AS dependent
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
),
functions AS (
    SELECT p.oid, p.proowner AS owner, p.proacl, p.oid::regprocedure::text AS name
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'public'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e')
),
roles AS (
    SELECT (SELECT oid FROM pg_roles WHERE rolname = %(owner)s) AS owner, (SELECT oid FROM pg_roles WHERE rolname = %(app)s) AS app
),
-- Grants as they are: (object, grantee, comma list of privileges).
relation_grants AS (
    SELECT r.oid, a.grantee, string_agg(a.privilege_type, ', ' ORDER BY a.privilege_type) AS has, bool_or(a.is_grantable) AS grantable
    FROM relations r, aclexplode(r.relacl) a GROUP BY 1, 2
),
function_grants AS (
    SELECT f.oid, a.grantee
    FROM functions f, aclexplode(coalesce(f.proacl, acldefault('f', f.owner))) a GROUP BY 1, 2
),
default_wanted (kind, type, wanted) AS (VALUES
    ('r', 'TABLES', 'DELETE, INSERT, SELECT, UPDATE'), ('S', 'SEQUENCES', 'SELECT, USAGE'), ('f', 'FUNCTIONS', 'EXECUTE')
),
default_grants AS (
    SELECT d.defaclobjtype::text AS kind, d.defaclnamespace AS namespace, a.grantee,
        string_agg(a.privilege_type, ', ' ORDER BY a.privilege_type) AS has
    FROM pg_default_acl d, roles, aclexplode(d.defaclacl) a WHERE d.defaclrole = roles.owner GROUP BY 1, 2, 3
),
statements (step, statement) AS (
    -- Who owns.
    SELECT 1, format('ALTER SCHEMA public OWNER TO %%I', %(owner)s)
    FROM pg_namespace, roles WHERE nspname = 'public' AND nspowner <> roles.owner
    UNION ALL
    SELECT 1, format('ALTER %%s %%s OWNER TO %%I', CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE kind END,
        name, %(owner)s)
    FROM relations, roles WHERE relowner <> roles.owner AND NOT (relkind = 'S' AND dependent)
    UNION ALL
    SELECT 1, format('ALTER ROUTINE %%s OWNER TO %%I', name, %(owner)s) FROM functions f, roles WHERE f.owner <> roles.owner
    UNION ALL
    SELECT 1, format('REVOKE %%I FROM %%I', g.rolname, %(app)s)
    FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid, roles WHERE m.member = roles.app

    -- The database and the schema.
    UNION ALL
    SELECT 2, format('REVOKE ALL ON DATABASE %%I FROM PUBLIC', datname)
    FROM pg_database WHERE datname = current_database()
      AND EXISTS (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE grantee = 0)
    UNION ALL
    SELECT 2, format('REVOKE ALL ON DATABASE %%1$I FROM %%2$I; GRANT CONNECT ON DATABASE %%1$I TO %%2$I', datname, %(app)s)
    FROM pg_database, roles WHERE datname = current_database()
      AND (SELECT string_agg(privilege_type, ', ') FROM aclexplode(datacl) WHERE grantee = roles.app) IS DISTINCT FROM 'CONNECT'
    UNION ALL
    SELECT 2, 'REVOKE ALL ON SCHEMA public FROM PUBLIC'
    FROM pg_namespace WHERE nspname = 'public' AND EXISTS (SELECT FROM aclexplode(nspacl) WHERE grantee = 0)
    UNION ALL
    SELECT 2, format('REVOKE ALL ON SCHEMA public FROM %%1$I; GRANT USAGE ON SCHEMA public TO %%1$I', %(app)s)
    FROM pg_namespace, roles WHERE nspname = 'public'
      AND (SELECT string_agg(privilege_type, ', ') FROM aclexplode(nspacl) WHERE grantee = roles.app) IS DISTINCT FROM 'USAGE'

    -- What migrations will make.
    UNION ALL
    SELECT 3, format('ALTER DEFAULT PRIVILEGES FOR ROLE %%1$I IN SCHEMA public REVOKE ALL ON %%2$s FROM %%3$I; '
        'ALTER DEFAULT PRIVILEGES FOR ROLE %%1$I IN SCHEMA public GRANT %%4$s ON %%2$s TO %%3$I', %(owner)s, type, %(app)s, wanted)
    FROM default_wanted w, roles
    WHERE (SELECT has FROM default_grants g WHERE g.kind = w.kind AND g.namespace = 'public'::regnamespace AND g.grantee = roles.app)
        IS DISTINCT FROM wanted
    UNION ALL
    -- Functions are PUBLIC's from birth, unless the role's defaults (for all schemas) say otherwise.
    SELECT 3, format('ALTER DEFAULT PRIVILEGES FOR ROLE %%I REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC', %(owner)s)
    FROM roles
    WHERE NOT EXISTS (SELECT FROM pg_default_acl d WHERE d.defaclrole = roles.owner AND d.defaclobjtype = 'f' AND d.defaclnamespace = 0)
       OR EXISTS (SELECT FROM default_grants g WHERE g.kind = 'f' AND g.namespace = 0 AND g.grantee = 0)

    -- What is there.
    UNION ALL
    SELECT 4, format('REVOKE ALL ON %%s FROM %%s', name, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
    FROM relations JOIN relation_grants USING (oid), roles WHERE grantee NOT IN (roles.owner, roles.app)
    UNION ALL
    SELECT 4, format('REVOKE ALL ON %%1$s %%2$s FROM %%3$I; GRANT %%4$s ON %%1$s %%2$s TO %%3$I', kind, name, %(app)s, wanted)
    FROM relations r, roles
    WHERE (SELECT has FROM relation_grants g WHERE g.oid = r.oid AND g.grantee = roles.app AND NOT grantable) IS DISTINCT FROM wanted
    UNION ALL
    SELECT 4, format('REVOKE ALL ON ROUTINE %%s FROM %%s', name, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
    FROM functions JOIN function_grants USING (oid), roles WHERE grantee NOT IN (roles.owner, roles.app)
    UNION ALL
    SELECT 4, format('GRANT EXECUTE ON ROUTINE %%s TO %%I', name, %(app)s)
    FROM functions f, roles WHERE NOT EXISTS (SELECT FROM function_grants g WHERE g.oid = f.oid AND g.grantee = roles.app)
)
SELECT statement FROM statements ORDER BY step, statement
