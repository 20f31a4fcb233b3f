-- Finds and locks a KeyPackage for each device of each user. The search starts at the nonce and wraps around, as in the
-- statement for a single request. CASE hides the conditions on ciphersuite and lifetime from the planner, which overrates
-- their selectivity and would sort the whole pool. Repeated keys are found by a join: with EXISTS, the planner would read
-- all keys.
WITH pick AS MATERIALIZED (
    SELECT r.*, d.id AS owner, d.device_name AS owned,
        CASE WHEN (r.token IS NULL OR (
                SELECT c.token_hash = r.token
                    AND (r.spare IS NULL OR pg_try_advisory_xact_lock({holds}, hashtext(c.user_name)))
                FROM devices c WHERE c.id = r.actor AND c.removed_at IS NULL))
            AND (r.spare IS NULL OR r.spare >= (
                SELECT count(*)
                FROM devices c
                JOIN devices o ON o.user_name = c.user_name
                JOIN key_packages k ON k.reserved_by = o.id
                WHERE c.id = r.actor AND k.held AND k.reserved_until > {now}))
            AND (r.key IS NULL OR ( -- kept
                SELECT i.expires_at FROM idempotency_keys i WHERE i.device_id = r.actor AND i.key = r.key) IS NULL) -- kept
        THEN coalesce(
            (SELECT k.ctid FROM key_packages k
             WHERE k.device_id = d.id AND k.fresh
                AND CASE WHEN k.ciphersuite BETWEEN r.first_suite AND r.last_suite AND k.not_after >= r.usable_until
                    THEN true ELSE false END
                AND k.keypackage_ref >= r.nonce
             ORDER BY k.keypackage_ref LIMIT 1 FOR UPDATE SKIP LOCKED),
            (SELECT k.ctid FROM key_packages k
             WHERE k.device_id = d.id AND k.fresh
                AND CASE WHEN k.ciphersuite BETWEEN r.first_suite AND r.last_suite AND k.not_after >= r.usable_until
                    THEN true ELSE false END
                AND k.keypackage_ref < r.nonce
             ORDER BY k.keypackage_ref LIMIT 1 FOR UPDATE SKIP LOCKED))
        END AS place
    FROM (SELECT {request} AS request, {user} AS user_name, {device} AS device_name, {first_suite} AS first_suite, -- one
                 {last_suite} AS last_suite, {nonce} AS nonce, {actor} AS actor, {until} AS until, -- one
                 {usable_until} AS usable_until, {group_id} AS group_id, {bind} AS bind, {token} AS token, {spare} AS spare) r -- one plain
                 {usable_until} AS usable_until, {group_id} AS group_id, {bind} AS bind, {token} AS token, {spare} AS spare, -- one kept
                 {key} AS key, {digest} AS digest, {kept_until} AS kept_until, {missing} AS missing) r -- one kept
    FROM unnest({request}, {user}, {device}, {first_suite}, {last_suite}, {nonce}, {actor}, {until}, {usable_until}, -- many
                {group_id}, {bind}, {token}, {spare}) -- many plain
                {group_id}, {bind}, {token}, {spare}, {key}, {digest}, {kept_until}, {missing}) -- many kept
        AS r (request, user_name, device_name, first_suite, last_suite, nonce, actor, until, usable_until, -- many
              group_id, bind, token, spare) -- many plain
              group_id, bind, token, spare, key, digest, kept_until, missing) -- many kept
    LEFT JOIN devices d ON d.user_name = r.user_name AND d.removed_at IS NULL
        AND (r.device_name IS NULL OR d.device_name = r.device_name)),
-- Takes the KeyPackages that were found and locked for complete requests. The update addresses each row by its physical
-- position instead of through the index. A KeyPackage that another transaction has changed since the statement began is no
-- longer fresh: it is skipped, so no request is half served.
taken AS (
    UPDATE key_packages k
    SET state = 'reserved', reservation = p.nonce, reserved_by = p.actor, reserved_until = p.until, step = 1,
        opened = nextval('audit_events_id_seq')
    FROM pick p
    WHERE k.ctid = p.place AND (SELECT count(*) = count(place) AND count(*) <= {most} FROM pick) -- one
    WHERE k.ctid = p.place AND p.request NOT IN ( -- many
        SELECT request -- many
        FROM (SELECT request, place, -- many
                     row_number() OVER (PARTITION BY place ORDER BY request) AS rank, -- many
                     count(*) OVER (PARTITION BY request) AS devices -- many
              FROM pick) met -- many
        WHERE place IS NULL OR rank > 1 OR devices > {most}) -- many
    RETURNING p.request, p.owner, p.user_name, p.owned, k.keypackage_ref, k.key_package, k.ciphersuite, k.not_after,
        k.package_id, k.opened, p.actor, p.nonce, p.group_id, p.bind, p.until), -- plain
        k.package_id, k.opened, p.actor, p.nonce, p.group_id, p.bind, p.until, p.key, p.digest, p.kept_until, p.missing), -- kept
noted AS (
    INSERT INTO audit_events (id, device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, at, until,
        package_id, step, bind)
    SELECT opened, owner, keypackage_ref, 'reserve', actor, nonce, group_id, false, {now}, until, package_id, 1, bind
    FROM taken),
-- One row for all of them: the sequencer puts them into the log.
logged AS (
    INSERT INTO log_outbox (events) SELECT array_agg(opened) FROM taken
    HAVING count(*) > 0 AND EXISTS (SELECT 1 FROM log_origins)) -- plain
    HAVING count(*) > 0 AND EXISTS (SELECT 1 FROM log_origins)), -- kept
-- Keeps the answers of repeatable requests, as the JSON of kept_answers.rs. Rows are inserted in the order of their keys, so
-- that two batches with the same keys cannot deadlock.
kept AS ( -- kept
    INSERT INTO idempotency_keys (device_id, key, request, answer, expires_at) -- kept
    SELECT actor, key, digest, -- kept
        convert_to(json_build_object( -- kept
            'missing', missing::json, -- kept
            'reservations', json_agg(json_build_object( -- kept
                'reservation_id', to_hex(owner) || '-' || encode(nonce, 'hex')::uuid, -- kept
                'user', user_name, 'device', owned, -- kept
                'keypackage_ref', encode(keypackage_ref, 'hex'), 'ciphersuite', ciphersuite, -- kept
                'not_after', to_timestamp(not_after), 'expires_at', to_timestamp(until), -- kept
                'last_resort', false, 'handout', 0)))::text, 'UTF8'), -- kept
        kept_until -- kept
    FROM taken WHERE key IS NOT NULL -- kept
    GROUP BY actor, key, digest, missing, kept_until ORDER BY actor, key) -- kept
SELECT request, owner, user_name, owned, keypackage_ref, key_package, ciphersuite, not_after FROM taken
