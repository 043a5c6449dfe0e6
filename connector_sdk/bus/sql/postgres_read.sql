-- Reading without a group. Each function sees one state of the tables, for it is STABLE.

-- What comes after the cursors of some topics (0: from what is kept), and topics that were created after the catalogue's
-- cursor (NULL: nobody asks, 0: from now on). At most *p_limit* entries of *p_bytes* bytes altogether, but one at least.
-- Rows by kind:
--   "e"  an entry: topic, seq, body
--   "l"  entries between the cursor and what is there are gone: topic, count (NULL: the topic began anew), seq: the cursor to
--        go on from, unless there are entries
--   "n"  a new topic
--   "c"  seq: the catalogue's cursor to go on from
CREATE OR REPLACE FUNCTION events_read(
    p_topics text[], p_cursors bigint[], p_catalogue bigint, p_limit integer, p_bytes bigint
) RETURNS TABLE (kind text, topic text, seq bigint, count bigint, body bytea) LANGUAGE plpgsql STABLE ROWS 100 SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    one record;
    share bigint;
    left_ bigint := p_limit;
    left_bytes bigint := p_bytes;
BEGIN
    IF p_catalogue IS NOT NULL THEN
        RETURN QUERY SELECT 'c', NULL, l.topics, NULL::bigint, NULL::bytea FROM events_log l;
        IF p_catalogue > 0 THEN
            RETURN QUERY
            SELECT 'n', t.topic, NULL::bigint, NULL::bigint, NULL::bytea FROM events_topics t, events_log l
            WHERE t.id > p_catalogue OR p_catalogue > l.topics ORDER BY t.id;
        END IF;
    END IF;
    -- Each topic has its share and its turn, so that a busy one does not starve the others.
    FOR one IN
        SELECT t.id, t.topic, t.born, t.floor, t.last, a.after, count(*) OVER () AS amount,
               sum(t.last - greatest(a.after, t.floor)) OVER () AS waiting
        FROM unnest(p_topics, p_cursors) AS a (name, after) JOIN events_topics t ON t.topic = a.name
        WHERE t.last <> a.after AND (t.last > t.floor OR a.after > 0) ORDER BY random()
    LOOP
        IF one.after > 0 AND (one.after < one.floor OR one.after > one.last) THEN
            kind := 'l'; topic := one.topic; seq := one.floor; body := NULL;
            count := CASE WHEN one.after BETWEEN one.born AND one.floor THEN one.floor - one.after END;
            RETURN NEXT;
            CONTINUE WHEN one.after > one.last;
        END IF;
        share := left_;
        IF one.waiting > p_limit THEN
            share := least(left_, greatest(1, p_limit / one.amount));
        END IF;
        kind := 'e'; topic := one.topic; count := NULL;
        FOR seq, body IN
            SELECT e.seq, e.body FROM events_entries e
            WHERE e.topic_id = one.id AND e.seq > one.after ORDER BY e.seq LIMIT share
        LOOP
            EXIT WHEN left_bytes <= 0;
            RETURN NEXT;
            left_ := left_ - 1;
            left_bytes := left_bytes - octet_length(body);
        END LOOP;
        EXIT WHEN left_ <= 0 OR left_bytes <= 0;
    END LOOP;
END
$$;

-- What is known of a topic, without a row if there is none; then a row for each of its groups.
CREATE OR REPLACE FUNCTION events_info(p_topic text) RETURNS TABLE (
    name text, length bigint, first bigint, last bigint, age double precision, letters bigint,
    consumers bigint, pending bigint, lag bigint, delivered bigint
) LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    one events_topics;
    moment timestamptz := clock_timestamp();
BEGIN
    SELECT * INTO one FROM events_topics t WHERE t.topic = p_topic;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT NULL::text, one.last - one.floor, one.floor + 1, one.last,
           (SELECT greatest(0, extract(epoch FROM moment - e.at))::double precision FROM events_entries e
            WHERE e.topic_id = one.id AND e.seq = one.floor + 1),
           (SELECT count(*) FROM events_letters d WHERE d.topic = p_topic),
           NULL::bigint, NULL::bigint, NULL::bigint, NULL::bigint;
    RETURN QUERY
    SELECT g.grp, NULL::bigint, NULL::bigint, NULL::bigint,
           CASE WHEN d.oldest IS NOT NULL THEN greatest(0, extract(epoch FROM moment - d.oldest)) END::double precision,
           NULL::bigint,
           (SELECT count(*) FROM events_members m JOIN events_follows f ON f.member_id = m.id AND f.topic_id = one.id
            WHERE m.grp = g.grp AND m.seen + m.hold > moment),
           d.amount, one.last - g.delivered, CASE WHEN g.delivered > one.born THEN g.delivered ELSE 0 END
    FROM events_groups g CROSS JOIN LATERAL (
        SELECT count(*) AS amount, min(d.at) AS oldest FROM events_deliveries d WHERE d.grp = g.grp AND d.topic_id = one.id
    ) d
    WHERE g.topic_id = one.id ORDER BY g.grp;
END
$$;
