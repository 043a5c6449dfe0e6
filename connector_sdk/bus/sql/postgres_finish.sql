-- What members of groups do with what they were given; and dead letters.

-- These are finished. One by one: each is found by its whole key, among however many that are finished and not yet vacuumed;
-- the planner prefers a part of the key for a set of them.
CREATE OR REPLACE FUNCTION events_finish(p_grp text, p_topics text[], p_seqs bigint[]) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    name text;
    topic_key bigint;
BEGIN
    FOR turn IN 1 .. cardinality(p_seqs) LOOP
        IF name IS DISTINCT FROM p_topics[turn] THEN
            name := p_topics[turn];
            topic_key := (SELECT t.id FROM events_topics t WHERE t.topic = name);
        END IF;
        DELETE FROM events_deliveries d WHERE d.grp = p_grp AND d.topic_id = topic_key AND d.seq = p_seqs[turn];
    END LOOP;
END
$$;

-- Let an entry that the member has come again in *p_delay* seconds. Nothing happens when another has it by now.
CREATE OR REPLACE FUNCTION events_postpone(
    p_grp text, p_consumer text, p_topic text, p_seq bigint, p_delay double precision, p_notes bytea
) RETURNS void LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    UPDATE events_deliveries d
    SET member = NULL, due = clock_timestamp() + make_interval(secs => p_delay), notes = p_notes
    FROM events_members m, events_topics t
    WHERE m.grp = p_grp AND m.consumer = p_consumer AND t.topic = p_topic
      AND d.grp = p_grp AND d.topic_id = t.id AND d.seq = p_seq AND d.member = m.id;
    PERFORM events_wake('g', p_grp);
END
$$;

-- Let entries that the member has and did not begin come again at once; the attempt does not count.
CREATE OR REPLACE FUNCTION events_give_back(p_grp text, p_consumer text, p_topics text[], p_seqs bigint[]) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    moment timestamptz := clock_timestamp();
BEGIN
    UPDATE events_deliveries d SET member = NULL, due = moment, attempts = d.attempts - 1
    FROM events_members m, unnest(p_topics, p_seqs) AS a (topic, seq) JOIN events_topics t ON t.topic = a.topic
    WHERE m.grp = p_grp AND m.consumer = p_consumer
      AND d.grp = p_grp AND d.topic_id = t.id AND d.seq = a.seq AND d.member = m.id;
    PERFORM events_wake('g', p_grp);
END
$$;

-- What the member has, but for what is named: the answer that told of it may have been lost.
CREATE OR REPLACE FUNCTION events_held(p_grp text, p_consumer text, p_topics text[], p_seqs bigint[], p_limit integer)
RETURNS TABLE (kind text, topic text, seq bigint, attempts integer, notes bytea, body bytea) LANGUAGE sql STABLE ROWS 100 AS $$
    SELECT 'd', t.topic, d.seq, d.attempts, d.notes, coalesce(d.body, e.body)
    FROM events_members m JOIN events_deliveries d ON d.grp = p_grp AND d.member = m.id
    JOIN events_topics t ON t.id = d.topic_id
    LEFT JOIN events_entries e ON e.topic_id = d.topic_id AND e.seq = d.seq
    WHERE m.grp = p_grp AND m.consumer = p_consumer
      AND (t.topic, d.seq) NOT IN (SELECT a.topic, a.seq FROM unnest(p_topics, p_seqs) AS a (topic, seq))
    ORDER BY t.topic, d.seq LIMIT p_limit
$$;

-- Leave the group: what the member has goes to others at once.
CREATE OR REPLACE FUNCTION events_leave(p_grp text, p_consumer text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    me bigint;
BEGIN
    DELETE FROM events_members m WHERE m.grp = p_grp AND m.consumer = p_consumer RETURNING m.id INTO me;
    IF FOUND THEN
        DELETE FROM events_follows f WHERE f.member_id = me;
        UPDATE events_deliveries d SET member = NULL, due = clock_timestamp() WHERE d.grp = p_grp AND d.member = me;
        PERFORM events_wake('g', p_grp);
    END IF;
END
$$;

-- Keep a dead letter, and of those of its topic the newest *p_max*; return its id.
CREATE OR REPLACE FUNCTION events_keep(
    p_topic text, p_grp text, p_seq bigint, p_at timestamptz, p_body bytea, p_evidence bytea, p_max integer
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    letter bigint;
BEGIN
    INSERT INTO events_letters (topic, grp, seq, at, body, evidence, buried_at)
    VALUES (p_topic, p_grp, p_seq, coalesce(p_at, clock_timestamp()), p_body, p_evidence, clock_timestamp())
    RETURNING id INTO letter;
    DELETE FROM events_letters d
    WHERE d.topic = p_topic
      AND d.id <= (SELECT o.id FROM events_letters o WHERE o.topic = p_topic ORDER BY o.id DESC OFFSET p_max LIMIT 1);
    RETURN letter;
END
$$;

-- Move an entry to the dead letters, finished for the group; return the letter's id. When the entry is finished by now, the
-- letter that was made of it is named. NULL: there is none, and the body must be given.
CREATE OR REPLACE FUNCTION events_bury(
    p_grp text, p_topic text, p_seq bigint, p_body bytea, p_evidence bytea, p_max integer
) RETURNS bigint LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    one events_deliveries;
    content bytea := p_body;
    letter bigint;
BEGIN
    DELETE FROM events_deliveries d USING events_topics t
    WHERE t.topic = p_topic AND d.grp = p_grp AND d.topic_id = t.id AND d.seq = p_seq RETURNING d.* INTO one;
    IF FOUND THEN
        content := coalesce(
            one.body, (SELECT e.body FROM events_entries e WHERE e.topic_id = one.topic_id AND e.seq = p_seq), p_body);
    ELSE
        SELECT d.id INTO letter FROM events_letters d
        WHERE d.topic = p_topic AND d.grp = p_grp AND d.seq = p_seq ORDER BY d.id DESC LIMIT 1;
        IF FOUND OR p_body IS NULL THEN
            RETURN letter;
        END IF;
    END IF;
    RETURN events_keep(p_topic, p_grp, p_seq, one.at, content, p_evidence, p_max);
END
$$;

-- Let a dead letter be delivered again; return whether there was one.
CREATE OR REPLACE FUNCTION events_redrive(p_letter bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    letter events_letters;
    one events_topics;
BEGIN
    DELETE FROM events_letters d WHERE d.id = p_letter RETURNING d.* INTO letter;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF letter.grp IS NULL THEN
        PERFORM events_publish(ARRAY[letter.topic], NULL, ARRAY[letter.body], NULL, NULL, NULL, NULL, NULL);
        RETURN true;
    END IF;
    SELECT * INTO one FROM events_topics t WHERE t.topic = letter.topic FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM events_make(ARRAY[letter.topic]);
        SELECT * INTO STRICT one FROM events_topics t WHERE t.topic = letter.topic FOR NO KEY UPDATE;
    END IF;
    INSERT INTO events_groups (topic_id, grp, delivered) VALUES (one.id, letter.grp, one.floor) ON CONFLICT DO NOTHING;
    INSERT INTO events_deliveries (grp, topic_id, seq, at, attempts, due, notes, body)
    VALUES (letter.grp, one.id, letter.seq, letter.at, 0, clock_timestamp(), letter.evidence, letter.body)
    ON CONFLICT DO NOTHING; -- it is about to come as it is
    PERFORM events_wake('g', letter.grp);
    RETURN true;
END
$$;
