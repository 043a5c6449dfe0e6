-- Storing entries, topics, and what retention takes.

-- Wake whoever waits: *kind* is "t" for entries of the topic *name*, "g" for the group *name*, "c" for the catalogue.
-- The channel has a fixed name, and a reader that misses a notification finds everything by its number.
CREATE OR REPLACE FUNCTION events_wake(kind text, name text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('events_wakeup', CASE WHEN octet_length(name) < 2000 THEN kind || name ELSE 'x' END)
$$;

CREATE OR REPLACE FUNCTION events_number_now() RETURNS bigint LANGUAGE sql AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
$$;

-- Make those topics that are not there. Call it before any row of events_topics is locked.
CREATE OR REPLACE FUNCTION events_make(p_topics text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
    number bigint;
BEGIN
    PERFORM 1 FROM events_log FOR UPDATE;
    FOREACH name IN ARRAY p_topics LOOP
        CONTINUE WHEN EXISTS (SELECT 1 FROM events_topics t WHERE t.topic = name);
        UPDATE events_log SET topics = topics + 1 RETURNING topics INTO STRICT number;
        INSERT INTO events_topics (id, topic, born, floor, last, last_at)
        SELECT number, name, now_, now_, now_, clock_timestamp() FROM events_number_now() AS now_;
        PERFORM events_wake('c', name);
    END LOOP;
END
$$;

-- Store *p_bodies*; body i belongs to topic p_topics[p_places[i]], or to the only one. Returns the number before the first
-- entry of each topic; the numbers of one call have no gaps. Topics with a true in *p_tend* are then cut to what retention allows,
-- by the bounds at the same place; NULL: none.
CREATE OR REPLACE FUNCTION events_publish(
    p_topics text[], p_places integer[], p_bodies bytea[], p_tend boolean[],
    p_max bigint[], p_ttl double precision[], p_backlog bigint[], p_backlog_ttl double precision[]
) RETURNS bigint[] LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    topic_key bigint;
    before bigint;
    stored timestamptz;
    amount bigint := cardinality(p_bodies);
    befores bigint[] := '{}';
    ids bigint[] := '{}';
    place integer;
BEGIN
    IF cardinality(p_topics) = 1 THEN
        UPDATE events_topics t SET last = t.last + amount, last_at = greatest(t.last_at, clock_timestamp())
        WHERE t.topic = p_topics[1] RETURNING t.id, t.last - amount, t.last_at INTO topic_key, before, stored;
        IF NOT FOUND THEN
            PERFORM events_make(p_topics);
            RETURN events_publish(
                p_topics, p_places, p_bodies, p_tend, p_max, p_ttl, p_backlog, p_backlog_ttl);
        END IF;
        INSERT INTO events_entries (topic_id, seq, at, body)
        SELECT topic_key, before + entry.place, stored, entry.body
        FROM unnest(p_bodies) WITH ORDINALITY AS entry (body, place);
        PERFORM pg_notify('events_wakeup', CASE WHEN octet_length(p_topics[1]) < 2000 THEN 't' || p_topics[1] ELSE 'x' END);
        IF p_tend[1] THEN
            PERFORM events_tend(topic_key, p_max[1], p_ttl[1], p_backlog[1], p_backlog_ttl[1]);
        END IF;
        RETURN ARRAY[before];
    END IF;
    IF (SELECT count(*) FROM events_topics t WHERE t.topic = ANY (p_topics)) < cardinality(p_topics) THEN
        PERFORM events_make(p_topics);
    END IF;
    PERFORM 1 FROM events_topics t WHERE t.topic = ANY (p_topics) ORDER BY t.id FOR NO KEY UPDATE;
    FOR place IN 1 .. cardinality(p_topics) LOOP
        amount := cardinality(array_positions(p_places, place));
        UPDATE events_topics t SET last = t.last + amount, last_at = greatest(t.last_at, clock_timestamp())
        WHERE t.topic = p_topics[place] RETURNING t.id, t.last - amount, t.last_at INTO STRICT topic_key, before, stored;
        befores := befores || before;
        ids := ids || topic_key;
    END LOOP;
    INSERT INTO events_entries (topic_id, seq, at, body)
    SELECT ids[entry.place], befores[entry.place] + row_number() OVER (PARTITION BY entry.place ORDER BY entry.turn),
           t.last_at, entry.body
    FROM ROWS FROM (unnest(p_bodies), unnest(p_places)) WITH ORDINALITY AS entry (body, place, turn)
    JOIN events_topics t ON t.id = ids[entry.place];
    FOR place IN 1 .. cardinality(p_topics) LOOP
        PERFORM events_wake('t', p_topics[place]);
        IF p_tend[place] THEN
            PERFORM events_tend(ids[place], p_max[place], p_ttl[place], p_backlog[place], p_backlog_ttl[place]);
        END IF;
    END LOOP;
    RETURN befores;
END
$$;

-- The number of the last entry of a topic that was stored before *p_at*; its floor without one.
CREATE OR REPLACE FUNCTION events_position_at(p_topic_id bigint, p_at timestamptz) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    low bigint;
    high bigint;
    middle bigint;
    found_at timestamptz;
BEGIN
    SELECT t.floor, t.last INTO low, high FROM events_topics t WHERE t.id = p_topic_id;
    WHILE low < high LOOP
        middle := low + (high - low + 1) / 2;
        SELECT e.at INTO found_at FROM events_entries e WHERE e.topic_id = p_topic_id AND e.seq = middle;
        IF found_at < p_at THEN low := middle; ELSE high := middle - 1; END IF;
    END LOOP;
    RETURN low;
END
$$;

-- Let go what is beyond *p_max* entries or *p_ttl* seconds and what every group has finished; and what is beyond the hard
-- bounds *p_backlog* and *p_backlog_ttl* in any case: that is noted for the groups that had not finished it, but for what a
-- member has in hand, which keeps its body. At most 20,000 entries a call. Returns how many went.
CREATE OR REPLACE FUNCTION events_tend(
    p_topic_id bigint, p_max bigint, p_ttl double precision, p_backlog bigint, p_backlog_ttl double precision
) RETURNS bigint LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    topic events_topics;
    one events_groups;
    cut bigint;
    hard bigint;
    needed bigint;
    gone bigint;
BEGIN
    SELECT * INTO topic FROM events_topics t WHERE t.id = p_topic_id FOR NO KEY UPDATE;
    IF NOT FOUND OR topic.floor = topic.last THEN
        RETURN 0;
    END IF;
    cut := greatest(
        topic.last - p_max, events_position_at(p_topic_id, clock_timestamp() - make_interval(secs => p_ttl)));
    IF cut <= topic.floor THEN
        RETURN 0;
    END IF;
    hard := greatest(
        topic.last - p_backlog, events_position_at(p_topic_id, clock_timestamp() - make_interval(secs => p_backlog_ttl)));
    FOR one IN SELECT * FROM events_groups g WHERE g.topic_id = p_topic_id ORDER BY g.grp FOR NO KEY UPDATE LOOP
        SELECT min(d.seq) INTO needed FROM events_deliveries d
        WHERE d.grp = one.grp AND d.topic_id = p_topic_id AND d.body IS NULL;
        cut := least(cut, one.delivered, needed - 1);
    END LOOP;
    cut := least(greatest(cut, hard), topic.floor + 20000);
    IF cut <= topic.floor THEN
        RETURN 0;
    END IF;
    IF hard > topic.floor THEN
        FOR one IN SELECT * FROM events_groups g WHERE g.topic_id = p_topic_id ORDER BY g.grp LOOP
            UPDATE events_deliveries d SET body = e.body FROM events_entries e
            WHERE d.grp = one.grp AND d.topic_id = p_topic_id AND d.seq <= cut AND d.body IS NULL AND d.member IS NOT NULL
              AND e.topic_id = d.topic_id AND e.seq = d.seq;
            DELETE FROM events_deliveries d
            WHERE d.grp = one.grp AND d.topic_id = p_topic_id AND d.seq <= cut AND d.body IS NULL;
            GET DIAGNOSTICS gone = ROW_COUNT;
            gone := gone + greatest(0, cut - one.delivered);
            UPDATE events_groups g SET delivered = greatest(g.delivered, cut), lost = g.lost + gone
            WHERE g.topic_id = p_topic_id AND g.grp = one.grp AND gone > 0;
            IF gone > 0 THEN
                PERFORM events_wake('g', one.grp);
            END IF;
        END LOOP;
    END IF;
    -- From the floor on, and not past what was deleted before and is not yet vacuumed.
    DELETE FROM events_entries e WHERE e.topic_id = p_topic_id AND e.seq > topic.floor AND e.seq <= cut;
    UPDATE events_topics t SET floor = cut WHERE t.id = p_topic_id;
    RETURN cut - topic.floor;
END
$$;

-- The topics that have something to let go.
CREATE OR REPLACE FUNCTION events_untidy(p_max bigint, p_ttl double precision) RETURNS TABLE (id bigint, topic text)
LANGUAGE sql STABLE AS $$
    SELECT t.id, t.topic FROM events_topics t
    WHERE t.floor < t.last AND (
        t.last - t.floor > p_max
        OR (SELECT e.at FROM events_entries e WHERE e.topic_id = t.id AND e.seq = t.floor + 1)
            < clock_timestamp() - make_interval(secs => p_ttl))
    ORDER BY t.id
$$;
