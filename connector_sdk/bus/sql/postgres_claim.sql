-- What members of groups take.

-- Note a sign of life of a member, which is made if need be; return its id.
CREATE OR REPLACE FUNCTION events_beat(p_grp text, p_consumer text, p_hold double precision) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    me bigint;
BEGIN
    UPDATE events_members m SET seen = clock_timestamp(), hold = make_interval(secs => p_hold)
    WHERE m.grp = p_grp AND m.consumer = p_consumer RETURNING m.id INTO me;
    IF NOT FOUND THEN
        INSERT INTO events_members AS m (grp, consumer, seen, hold)
        VALUES (p_grp, p_consumer, clock_timestamp(), make_interval(secs => p_hold))
        ON CONFLICT (grp, consumer) DO UPDATE SET seen = excluded.seen, hold = excluded.hold RETURNING m.id INTO me;
        PERFORM events_wake('g', p_grp); -- others must know when this one would die
    END IF;
    RETURN me;
END
$$;

-- Take part in the group of a topic. Topic and group are made if need be, the group after entry *p_start* (0: at what is
-- kept), or, when *p_at* is not NULL, at that time in Unix seconds. Returns whether the group was made.
CREATE OR REPLACE FUNCTION events_follow(
    p_grp text, p_consumer text, p_hold double precision, p_topic text, p_start bigint, p_at double precision
) RETURNS boolean LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    one events_topics;
    start bigint;
    made boolean;
BEGIN
    SELECT * INTO one FROM events_topics t WHERE t.topic = p_topic FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM events_make(ARRAY[p_topic]);
        SELECT * INTO STRICT one FROM events_topics t WHERE t.topic = p_topic FOR NO KEY UPDATE;
    END IF;
    IF p_at IS NULL THEN
        start := p_start;
    ELSE
        start := events_position_at(one.id, to_timestamp(p_at));
    END IF;
    INSERT INTO events_groups (topic_id, grp, delivered, lost)
    VALUES (one.id, p_grp, least(greatest(start, one.floor), one.last),
            CASE WHEN start BETWEEN one.born AND one.floor THEN one.floor - start ELSE 0 END)
    ON CONFLICT DO NOTHING;
    made := FOUND;
    INSERT INTO events_follows (member_id, topic_id) VALUES (events_beat(p_grp, p_consumer, p_hold), one.id)
    ON CONFLICT DO NOTHING;
    RETURN made;
END
$$;

-- Give *p_member* what is named, one more attempt each.
CREATE OR REPLACE FUNCTION events_give(p_grp text, p_member bigint, p_topic_ids bigint[], p_seqs bigint[])
RETURNS TABLE (kind text, topic text, seq bigint, attempts integer, notes bytea, body bytea, seconds double precision)
LANGUAGE sql ROWS 100 AS $$
    WITH taken AS (
        UPDATE events_deliveries d SET member = p_member, due = NULL, attempts = d.attempts + 1
        FROM unnest(p_topic_ids, p_seqs) AS a (topic_id, seq)
        WHERE d.grp = p_grp AND d.topic_id = a.topic_id AND d.seq = a.seq
        RETURNING d.*
    )
    SELECT 'd', t.topic, k.seq, k.attempts, k.notes, coalesce(k.body, e.body), NULL::double precision
    FROM taken k JOIN events_topics t ON t.id = k.topic_id
    LEFT JOIN events_entries e ON e.topic_id = k.topic_id AND e.seq = k.seq
    ORDER BY t.topic, k.seq
$$;

-- As many of these as are *p_bytes* bytes altogether, in their order, one at least.
CREATE OR REPLACE FUNCTION events_as_many(p_grp text, p_topic_ids bigint[], p_seqs bigint[], p_bytes bigint, OUT topic_ids bigint[], OUT seqs bigint[])
LANGUAGE sql AS $$
    SELECT array_agg(x.topic_id ORDER BY x.turn), array_agg(x.seq ORDER BY x.turn)
    FROM (
        SELECT a.topic_id, a.seq, a.turn, sum(b.size) OVER (ORDER BY a.turn) - b.size AS before
        FROM unnest(p_topic_ids, p_seqs) WITH ORDINALITY AS a (topic_id, seq, turn)
        CROSS JOIN LATERAL (
            SELECT coalesce(octet_length(coalesce(d.body, e.body)), 0) AS size
            FROM events_deliveries d LEFT JOIN events_entries e ON e.topic_id = d.topic_id AND e.seq = d.seq
            WHERE d.grp = p_grp AND d.topic_id = a.topic_id AND d.seq = a.seq
        ) b
    ) x WHERE x.before < p_bytes
$$;

-- Take what no member was given yet, of topics that have some.
CREATE OR REPLACE FUNCTION events_take_new(
    p_grp text, p_member bigint, p_topic_ids bigint[], p_limit integer, p_waiting bigint, p_bytes bigint
) RETURNS TABLE (kind text, topic text, seq bigint, attempts integer, notes bytea, body bytea, seconds double precision)
LANGUAGE plpgsql ROWS 100 AS $$
DECLARE
    -- Each topic has its share, and when there are too many, some have their turn: a busy one must not starve the others.
    share bigint := CASE WHEN p_waiting <= p_limit THEN p_limit
                         ELSE greatest(1, p_limit / cardinality(p_topic_ids)) END;
    one bigint;
    base bigint;
    newest bigint;
    until bigint;
    left_ bigint := p_limit;
    left_bytes bigint := p_bytes;
BEGIN
    kind := 'd'; attempts := 1; notes := '';
    IF cardinality(p_topic_ids) > p_limit THEN
        p_topic_ids := ARRAY(
            SELECT b.id FROM (SELECT a.id FROM unnest(p_topic_ids) AS a (id) ORDER BY random() LIMIT p_limit) b ORDER BY b.id);
    END IF;
    FOREACH one IN ARRAY p_topic_ids LOOP -- by number, as rows are locked
        SELECT g.delivered, t.topic, t.last INTO base, topic, newest
        FROM events_groups g JOIN events_topics t ON t.id = g.topic_id
        WHERE g.topic_id = one AND g.grp = p_grp FOR UPDATE OF g;
        newest := least(newest, base + least(share, left_));
        CONTINUE WHEN newest IS NULL OR newest <= base OR left_bytes <= 0;
        until := NULL;
        FOR seq, body IN
            SELECT e.seq, e.body FROM events_entries e
            WHERE e.topic_id = one AND e.seq > base AND e.seq <= newest ORDER BY e.seq
        LOOP
            EXIT WHEN left_bytes <= 0;
            RETURN NEXT;
            until := seq;
            left_bytes := left_bytes - octet_length(body);
        END LOOP;
        IF until IS NULL THEN
            -- The table has lost what should be there.
            UPDATE events_groups g SET delivered = newest, lost = g.lost + newest - base WHERE g.topic_id = one AND g.grp = p_grp;
            CONTINUE;
        END IF;
        INSERT INTO events_deliveries (grp, topic_id, seq, at, member, attempts, notes)
        SELECT p_grp, one, e.seq, e.at, p_member, 1, '' FROM events_entries e
        WHERE e.topic_id = one AND e.seq > base AND e.seq <= until
        ON CONFLICT DO NOTHING;
        UPDATE events_groups g SET delivered = until WHERE g.topic_id = one AND g.grp = p_grp;
        left_ := left_ - (until - base);
    END LOOP;
END
$$;

-- Take up to *p_limit* entries of *p_bytes* bytes altogether (but one at least): what is due, what dead members had, what is
-- new. With *p_idle* (seconds) only what members had that gave no sign of life for so long. All of it in one atomic step.
-- Rows by kind:
--   "d"  a delivery: topic, seq, attempts, notes, body
--   "l"  losses not yet told: topic, seq: how many
--   "m"  seq: the id of this member; attempts: how many topics it follows, as far as their groups are there
--   "r"  seq: entries of dead members that were looked at; attempts: those taken; seconds: until there may be something to take
CREATE OR REPLACE FUNCTION events_claim(
    p_grp text, p_consumer text, p_hold double precision, p_limit integer, p_bytes bigint, p_idle double precision
) RETURNS TABLE (kind text, topic text, seq bigint, attempts integer, notes bytea, body bytea, seconds double precision)
LANGUAGE plpgsql ROWS 100 SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    me bigint := events_beat(p_grp, p_consumer, p_hold);
    moment timestamptz := clock_timestamp();
    topic_ids bigint[];
    followed integer;
    losses boolean;
    waiting bigint;
    got integer := 0;
    amount integer;
    checked bigint := 0;
    recovered integer := 0;
    dead bigint[];
    picked_topics bigint[];
    picked_seqs bigint[];
    pause double precision;
BEGIN
    -- A crash of the server may undo the claims of its last moments: they come again. An acknowledgement is safe, and makes the
    -- claims before it safe.
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT count(*), bool_or(g.lost > 0), array_agg(t.id ORDER BY t.id) FILTER (WHERE t.last > g.delivered),
           sum(t.last - g.delivered)
    INTO followed, losses, topic_ids, waiting
    FROM events_follows f
    JOIN events_groups g ON g.topic_id = f.topic_id AND g.grp = p_grp
    JOIN events_topics t ON t.id = f.topic_id
    WHERE f.member_id = me;
    kind := 'm'; seq := me; attempts := followed;
    RETURN NEXT;

    IF losses THEN
        RETURN QUERY
        WITH told AS (
            SELECT g.topic_id, g.lost FROM events_groups g
            WHERE g.grp = p_grp AND g.lost > 0 AND g.topic_id IN (SELECT f.topic_id FROM events_follows f WHERE f.member_id = me)
            ORDER BY g.topic_id FOR UPDATE
        ), done AS (
            UPDATE events_groups g SET lost = 0 FROM told WHERE g.topic_id = told.topic_id AND g.grp = p_grp
        )
        SELECT 'l', t.topic, told.lost, NULL::integer, NULL::bytea, NULL::bytea, NULL::double precision
        FROM told JOIN events_topics t ON t.id = told.topic_id;
    END IF;

    IF p_idle IS NULL AND EXISTS (SELECT 1 FROM events_deliveries d WHERE d.grp = p_grp AND d.due <= moment) THEN
        SELECT array_agg(x.topic_id), array_agg(x.seq) INTO picked_topics, picked_seqs
        FROM (
            SELECT d.topic_id, d.seq FROM events_deliveries d
            WHERE d.grp = p_grp AND d.due <= moment
              AND d.topic_id IN (SELECT f.topic_id FROM events_follows f WHERE f.member_id = me)
            ORDER BY d.due, d.topic_id, d.seq LIMIT p_limit FOR UPDATE SKIP LOCKED
        ) x;
        SELECT * INTO picked_topics, picked_seqs FROM events_as_many(p_grp, picked_topics, picked_seqs, p_bytes);
        RETURN QUERY SELECT * FROM events_give(p_grp, me, picked_topics, picked_seqs);
        GET DIAGNOSTICS got = ROW_COUNT;
    END IF;

    IF got < p_limit AND EXISTS (
        SELECT 1 FROM events_members m
        WHERE m.grp = p_grp AND m.id <> me AND m.seen + coalesce(make_interval(secs => p_idle), m.hold) <= moment
    ) THEN
        dead := ARRAY(
            SELECT m.id FROM events_members m
            WHERE m.grp = p_grp AND m.id <> me AND m.seen + coalesce(make_interval(secs => p_idle), m.hold) <= moment
            FOR UPDATE SKIP LOCKED);
        IF cardinality(dead) > 0 THEN
            SELECT array_agg(x.topic_id), array_agg(x.seq), count(*) INTO picked_topics, picked_seqs, checked
            FROM (
                SELECT d.topic_id, d.seq FROM events_deliveries d
                WHERE d.grp = p_grp AND d.member = ANY (dead)
                  AND d.topic_id IN (SELECT f.topic_id FROM events_follows f WHERE f.member_id = me)
                ORDER BY d.topic_id, d.seq LIMIT p_limit - got FOR UPDATE SKIP LOCKED
            ) x;
            SELECT * INTO picked_topics, picked_seqs FROM events_as_many(p_grp, picked_topics, picked_seqs, p_bytes);
            RETURN QUERY SELECT * FROM events_give(p_grp, me, picked_topics, picked_seqs);
            GET DIAGNOSTICS recovered = ROW_COUNT;
            got := got + recovered;
            WITH forgotten AS (
                DELETE FROM events_members m WHERE m.id = ANY (dead) AND m.seen + m.hold <= moment
                  AND NOT EXISTS (SELECT 1 FROM events_deliveries d WHERE d.grp = p_grp AND d.member = m.id)
                RETURNING m.id
            )
            DELETE FROM events_follows f USING forgotten m WHERE f.member_id = m.id;
        END IF;
    END IF;

    IF p_idle IS NULL AND topic_ids IS NOT NULL AND got < p_limit THEN
        RETURN QUERY SELECT * FROM events_take_new(p_grp, me, topic_ids, p_limit - got, waiting, p_bytes);
        GET DIAGNOSTICS amount = ROW_COUNT;
        got := got + amount;
    END IF;

    IF got = 0 THEN
        SELECT extract(epoch FROM least(
            (SELECT min(d.due) FROM events_deliveries d WHERE d.grp = p_grp AND d.due IS NOT NULL),
            (SELECT min(m.seen + m.hold) FROM events_members m WHERE m.grp = p_grp AND m.id <> me)
        ) - clock_timestamp()) INTO pause;
    END IF;
    kind := 'r'; seq := checked; attempts := recovered; seconds := pause;
    RETURN NEXT;
END
$$;
