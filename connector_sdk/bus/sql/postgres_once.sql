-- Keys of work that is to be done once. Times are seconds of the server's clock; each function is one atomic step.

-- Give a key to a holder if nobody has it and it is not done; who has it renews it. Returns 'yours', 'done' or 'taken'.
CREATE OR REPLACE FUNCTION events_reserve(p_key bytea, p_holder text, p_hold double precision) RETURNS text
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    is_done boolean;
BEGIN
    LOOP
        INSERT INTO events_once AS o (key, holder, done, until)
        VALUES (p_key, p_holder, false, clock_timestamp() + make_interval(secs => p_hold))
        ON CONFLICT (key) DO UPDATE
        SET holder = p_holder, done = false, until = clock_timestamp() + make_interval(secs => p_hold)
        WHERE o.until <= clock_timestamp() OR (o.holder = p_holder AND NOT o.done);
        IF FOUND THEN
            RETURN 'yours';
        END IF;
        -- The row may have gone, or have run out, since: then it is to be had after all.
        SELECT o.done INTO is_done FROM events_once o WHERE o.key = p_key AND o.until > clock_timestamp();
        IF FOUND THEN
            RETURN CASE WHEN is_done THEN 'done' ELSE 'taken' END;
        END IF;
    END LOOP;
END
$$;

-- Mark a key as done, unless another has it or has marked it; returns whether it is.
CREATE OR REPLACE FUNCTION events_keep_key(p_key bytea, p_holder text, p_ttl double precision) RETURNS boolean
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    INSERT INTO events_once AS o (key, holder, done, until)
    VALUES (p_key, p_holder, true, clock_timestamp() + make_interval(secs => p_ttl))
    ON CONFLICT (key) DO UPDATE
    SET holder = p_holder, done = true, until = clock_timestamp() + make_interval(secs => p_ttl)
    WHERE o.until <= clock_timestamp() OR o.holder = p_holder;
    RETURN FOUND;
END
$$;

-- Let others have a key, if the holder has it and has not marked it.
CREATE OR REPLACE FUNCTION events_free(p_key bytea, p_holder text) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    DELETE FROM events_once o WHERE o.key = p_key AND o.holder = p_holder AND NOT o.done;
END
$$;

-- Remove rows that ran out, up to *p_limit*, and return how many; those that somebody is at are left for the next time. now() is
-- what the index is good for, and one call is one moment.
CREATE OR REPLACE FUNCTION events_forget(p_limit integer) RETURNS bigint LANGUAGE sql AS $$
    WITH gone AS (
        DELETE FROM events_once WHERE key IN (
            SELECT o.key FROM events_once o WHERE o.until <= now() ORDER BY o.until LIMIT p_limit FOR UPDATE SKIP LOCKED
        ) RETURNING 1
    ) SELECT count(*) FROM gone
$$;
