-- name: any_user
-- Whether there is a user at all.
SELECT EXISTS (SELECT FROM users) AS any;

-- name: lock_users
-- One at a time makes the first administrator or removes a user; freed at the end of the transaction.
SELECT pg_advisory_xact_lock(%(key)s);

-- name: list_users
-- Every user, without the hash.
SELECT username, created_at, updated_at FROM users ORDER BY username;

-- name: get_hash
-- A user's password hash.
SELECT password_hash FROM users WHERE username = %(username)s;

-- name: insert_user
-- A new user; no row when the name is taken.
INSERT INTO users (username, password_hash) VALUES (%(username)s, %(password_hash)s)
ON CONFLICT (username) DO NOTHING RETURNING username;

-- name: update_password
-- A new password hash.
UPDATE users SET password_hash = %(password_hash)s, updated_at = now() WHERE username = %(username)s RETURNING username;

-- name: upgrade_hash
-- The same password under today's cost parameters, unless the password changed meanwhile.
UPDATE users SET password_hash = %(password_hash)s WHERE username = %(username)s AND password_hash = %(old_hash)s;

-- name: delete_user
-- A user and, by cascade, the sessions; not the last one. Under lock_users, or two could each see the other left.
DELETE FROM users
WHERE username = %(username)s AND EXISTS (SELECT FROM users o WHERE o.username <> %(username)s)
RETURNING username;

-- name: login_state
-- The user's hash (null: no such user), whether the user logged in from this address before, and for each limit
-- that is used up the seconds until it frees one attempt. The limit is used up when the window holds as many
-- failures as allowed, and frees when the oldest of these leaves the window.
SELECT (SELECT password_hash FROM users WHERE username = %(username)s) AS password_hash,
       EXISTS (SELECT FROM login_attempts WHERE bucket = %(known)s
               AND at > now() - make_interval(secs => %(known_seconds)s)) AS known,
       (SELECT jsonb_object_agg(limits.bucket, ceil(extract(epoch FROM blocked.at - now()) + %(window)s))
        FROM unnest(%(buckets)s::text[], %(allowed)s::int[]) AS limits (bucket, allowed)
        CROSS JOIN LATERAL (
            SELECT at FROM login_attempts WHERE bucket = limits.bucket AND at > now() - make_interval(secs => %(window)s)
            ORDER BY at DESC OFFSET limits.allowed - 1 LIMIT 1
        ) blocked) AS blocked;

-- name: record_failure
-- One failed attempt in each bucket.
INSERT INTO login_attempts (bucket) SELECT unnest(%(buckets)s::text[]);

-- name: record_success
-- The user's failures are forgotten, and the address is one the user is known from.
WITH forgotten AS (DELETE FROM login_attempts WHERE bucket = ANY (%(buckets)s::text[]))
INSERT INTO login_attempts (bucket) VALUES (%(known)s);

-- name: forget_failures
-- The failures counted for a user: from all addresses together, and from each by itself ('pair:ADDRESS USER', where
-- no address holds a space). The addresses the user is known from stay.
DELETE FROM login_attempts
WHERE bucket = %(bucket)s OR bucket LIKE 'pair:%%' AND substr(bucket, strpos(bucket, ' ') + 1) = %(username)s;

-- name: open_session
-- A session, if the hash that was just verified is still the user's. FOR SHARE waits for a password change.
INSERT INTO api_sessions (id, username, refresh_id, expires_at)
SELECT %(id)s, username, %(refresh_id)s, now() + make_interval(secs => %(lifetime)s)
FROM (SELECT username FROM users WHERE username = %(username)s AND password_hash = %(password_hash)s FOR SHARE) u
RETURNING id, username, refresh_id, expires_at;

-- name: rotate_session
-- The next refresh token of a session that is good and whose newest refresh token this is.
UPDATE api_sessions SET refresh_id = %(next_id)s
WHERE id = %(id)s AND refresh_id = %(refresh_id)s AND revoked_at IS NULL AND expires_at > now()
RETURNING id, username, refresh_id, expires_at;

-- name: valid_session
-- The session, when it is neither revoked nor over.
SELECT id, username, refresh_id, expires_at FROM api_sessions
WHERE id = %(id)s AND revoked_at IS NULL AND expires_at > now();

-- name: revoke_session
-- End one session; no row when it was over already.
UPDATE api_sessions SET revoked_at = now() WHERE id = %(id)s AND revoked_at IS NULL RETURNING username;

-- name: revoke_sessions_of
-- End every session of a user.
UPDATE api_sessions SET revoked_at = now() WHERE username = %(username)s AND revoked_at IS NULL;

-- name: prune_attempts
-- Attempts that no limit looks at any more.
DELETE FROM login_attempts
WHERE at <= now() - make_interval(secs => CASE WHEN bucket LIKE 'known:%%' THEN %(known_seconds)s ELSE %(window)s END);

-- name: prune_sessions
-- Sessions that ended over a week ago.
DELETE FROM api_sessions WHERE least(expires_at, revoked_at) < now() - interval '7 days';
