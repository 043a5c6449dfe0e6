-- What a PostgresStore does, each step one call, so that nobody can die in the middle of it holding a lock. Changes here need
-- another number in postgres_schema.py; the tables are told in postgres_tables.sql.
--
-- `o` are the options: 1 events that may wait, 2 bytes that may, 3 seconds that an event may wait, 4 seconds that an id is known
-- after its event has gone, 5 dead letters that are kept, 6 for how many seconds; infinity is none. 7 are the milliseconds
-- that the caller waits for others.

-- A plan may be made while the tables are empty, and used when they are not: `SET enable_...` lets it use the indexes.

CREATE OR REPLACE FUNCTION connector_buffers.now() RETURNS float8 LANGUAGE sql VOLATILE AS $$
  SELECT extract(epoch FROM clock_timestamp())::float8
$$;

-- Lock a buffer until the end of the transaction: all changes of one buffer come one after the other.
CREATE OR REPLACE FUNCTION connector_buffers.enter(p_prefix text, o float8[]) RETURNS connector_buffers.accounts
LANGUAGE plpgsql AS $$
DECLARE
  a connector_buffers.accounts;
BEGIN
  PERFORM set_config('lock_timeout', greatest(1, o[7]::int)::text, true);
  SELECT * INTO a FROM connector_buffers.accounts WHERE prefix = p_prefix FOR UPDATE;
  IF NOT FOUND THEN
    INSERT INTO connector_buffers.accounts (prefix) VALUES (p_prefix) ON CONFLICT DO NOTHING;
    SELECT * INTO a FROM connector_buffers.accounts WHERE prefix = p_prefix FOR UPDATE;
  END IF;
  RETURN a;
END $$;

CREATE OR REPLACE FUNCTION connector_buffers.count_drop(b int, p_reason text, n bigint) RETURNS void LANGUAGE sql AS $$
  INSERT INTO connector_buffers.dropped AS d SELECT b, p_reason, n WHERE n > 0
  ON CONFLICT (buffer, reason) DO UPDATE SET events = d.events + excluded.events
$$;

-- Let events go, and begin to forget their ids. Tells how many there were, and the bytes of their bodies.
CREATE OR REPLACE FUNCTION connector_buffers.remove(b int, p_arrivals bigint[], p_now float8, OUT n bigint, OUT size bigint)
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
  WITH gone AS (
    DELETE FROM connector_buffers.events e WHERE e.buffer = b AND e.arrival = ANY (p_arrivals)
    RETURNING e.arrival, e.event_id, e.origin, e.size, e.again
  ), known AS (
    UPDATE connector_buffers.ids i SET gone = p_now FROM gone g
    WHERE g.event_id <> '' AND i.buffer = b AND i.event_id = g.event_id AND i.origin = g.origin
  ), reasons AS (
    DELETE FROM connector_buffers.evidence v USING gone g WHERE g.again AND v.buffer = b AND v.arrival = g.arrival
  )
  SELECT count(*), coalesce(sum(g.size), 0) INTO n, size FROM gone g;
END $$;

-- Forget dead letters, and begin to forget their ids.
CREATE OR REPLACE FUNCTION connector_buffers.discard(b int, p_arrivals bigint[], p_now float8) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  n bigint;
BEGIN
  WITH gone AS (
    DELETE FROM connector_buffers.letters l WHERE l.buffer = b AND l.arrival = ANY (p_arrivals)
    RETURNING l.arrival, l.event_id, l.origin
  ), known AS (
    UPDATE connector_buffers.ids i SET gone = p_now FROM gone g
    WHERE g.event_id <> '' AND i.buffer = b AND i.event_id = g.event_id AND i.origin = g.origin
  ), reasons AS (
    DELETE FROM connector_buffers.evidence v USING gone g WHERE v.buffer = b AND v.arrival = g.arrival
  )
  SELECT count(*) INTO n FROM gone;
  RETURN n;
END $$;

-- What ran out: leases, whose events wait again, and events that waited for too long. Tells how many of these there were.
CREATE OR REPLACE FUNCTION connector_buffers.upkeep(b int, o float8[], p_now float8) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  n bigint;
  s bigint;
  late bigint[];
BEGIN
  -- The clock may have been set back: no lease holds longer than it may.
  IF EXISTS (SELECT 1 FROM connector_buffers.leases l WHERE l.buffer = b AND (l.runs_out <= p_now OR l.runs_out > p_now + l.hold + 1)) THEN
    WITH ended AS (
      DELETE FROM connector_buffers.leases l
      WHERE l.buffer = b AND (l.runs_out <= p_now OR l.runs_out > p_now + l.hold + 1) RETURNING l.lease
    ), back AS (
      UPDATE connector_buffers.events e SET lease = NULL FROM ended
      WHERE e.buffer = b AND e.lease = ended.lease RETURNING e.size
    )
    SELECT count(*), coalesce(sum(size), 0) INTO n, s FROM back;
    UPDATE connector_buffers.accounts SET waiting = waiting + n, bytes = bytes + s, in_flight = in_flight - n WHERE buffer = b;
  END IF;
  IF o[3] = 'infinity' THEN
    RETURN 0;
  END IF;
  SELECT array_agg(e.arrival) INTO late FROM connector_buffers.events e
  WHERE e.buffer = b AND e.lease IS NULL AND e.clock <= p_now - o[3];
  RETURN CASE WHEN late IS NULL THEN 0 ELSE connector_buffers.give_up(b, late, 'expired', p_now) END;
END $$;

-- Drop events that wait.
CREATE OR REPLACE FUNCTION connector_buffers.give_up(b int, p_arrivals bigint[], p_reason text, p_now float8) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  r record;
BEGIN
  r := connector_buffers.remove(b, p_arrivals, p_now);
  UPDATE connector_buffers.accounts SET waiting = waiting - r.n, bytes = bytes - r.size WHERE buffer = b;
  PERFORM connector_buffers.count_drop(b, p_reason, r.n);
  RETURN r.n;
END $$;

-- Forget what is to be forgotten, if it is time to look for that.
CREATE OR REPLACE FUNCTION connector_buffers.sweep(a connector_buffers.accounts, o float8[], p_now float8) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  old bigint[];
BEGIN
  IF a.next_sweep > p_now AND a.next_sweep <= p_now + 61 THEN
    RETURN;
  END IF;
  UPDATE connector_buffers.accounts SET next_sweep = p_now + least(60, o[6] / 4) WHERE buffer = a.buffer;
  DELETE FROM connector_buffers.ids i WHERE i.buffer = a.buffer AND i.gone <= p_now - o[4];
  DELETE FROM connector_buffers.batches t WHERE t.buffer = a.buffer AND t.clock <= p_now - 900;
  SELECT array_agg(l.arrival) INTO old FROM connector_buffers.letters l WHERE l.buffer = a.buffer AND l.clock <= p_now - o[6];
  IF old IS NOT NULL THEN
    PERFORM connector_buffers.discard(a.buffer, old, p_now);
  END IF;
  DELETE FROM connector_buffers.evidence v WHERE v.buffer = a.buffer AND v.clock <= p_now - o[6]
  AND NOT EXISTS (SELECT 1 FROM connector_buffers.letters l WHERE l.buffer = v.buffer AND l.arrival = v.arrival);
END $$;

-- Before something is looked at: see to what ran out, without a lock when nothing did.
CREATE OR REPLACE FUNCTION connector_buffers.tidy(p_prefix text, o float8[]) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  a connector_buffers.accounts;
  moment float8 := connector_buffers.now();
  expired bigint;
BEGIN
  IF current_setting('transaction_read_only') = 'on' THEN
    -- Who only looks is to find out as well that this server is no place for events (any more).
    RAISE EXCEPTION 'the server cannot be written to' USING ERRCODE = 'read_only_sql_transaction';
  END IF;
  SELECT * INTO a FROM connector_buffers.accounts WHERE prefix = p_prefix;
  IF NOT FOUND OR NOT (
    a.next_sweep <= moment
    OR EXISTS (SELECT 1 FROM connector_buffers.leases l WHERE l.buffer = a.buffer AND (l.runs_out <= moment OR l.runs_out > moment + l.hold + 1))
    OR EXISTS (SELECT 1 FROM connector_buffers.events e WHERE e.buffer = a.buffer AND e.lease IS NULL AND e.clock <= moment - o[3])
  ) THEN
    RETURN 0;
  END IF;
  a := connector_buffers.enter(p_prefix, o);
  moment := connector_buffers.now();
  expired := connector_buffers.upkeep(a.buffer, o, moment);
  PERFORM connector_buffers.sweep(a, o, moment);
  RETURN expired;
END $$;

CREATE OR REPLACE FUNCTION connector_buffers.append(
  p_prefix text, o float8[], p_writer text, p_number bigint,
  p_times float8[], p_sessions bytea[], p_kinds bytea[], p_ids bytea[], p_origins bytea[], p_bodies bytea[],
  OUT stored bigint, OUT duplicates bigint, OUT size bigint, OUT expired bigint, OUT overflow bigint
) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  a connector_buffers.accounts := connector_buffers.enter(p_prefix, o);
  moment float8 := connector_buffers.now();
  added bigint;
BEGIN
  stored := 0; duplicates := 0; expired := 0; overflow := 0;
  INSERT INTO connector_buffers.batches VALUES (a.buffer, p_writer, p_number, moment) ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    size := a.waiting;
    RETURN;
  END IF;
  WITH given AS (
    SELECT * FROM unnest(p_times, p_sessions, p_kinds, p_ids, p_origins, p_bodies)
    WITH ORDINALITY AS g (time, session, kind, event_id, origin, body, place)
  ), firsts AS (
    SELECT DISTINCT ON (event_id, origin) event_id, origin, a.arrivals + place AS arrival FROM given WHERE event_id <> ''
    ORDER BY event_id, origin, place
  ), known AS (
    -- An id that is known, but whose event went long enough ago, is that of the new event from now on.
    INSERT INTO connector_buffers.ids AS i SELECT a.buffer, event_id, origin, arrival, NULL FROM firsts
    ON CONFLICT (buffer, event_id, origin) DO UPDATE SET arrival = excluded.arrival, gone = NULL WHERE i.gone <= moment - o[4]
    RETURNING i.arrival
  ), fresh AS (
    INSERT INTO connector_buffers.events
    SELECT a.buffer, a.arrivals + place, time, moment, length(body), NULL, false, session, kind, event_id, origin, body FROM given
    WHERE event_id = '' OR a.arrivals + place IN (SELECT arrival FROM known)
    RETURNING events.size
  )
  SELECT count(*), coalesce(sum(fresh.size), 0) INTO stored, added FROM fresh;
  duplicates := cardinality(p_times) - stored;
  UPDATE connector_buffers.accounts SET received = received + cardinality(p_times), waiting = waiting + stored,
    bytes = bytes + added, arrivals = arrivals + cardinality(p_times) WHERE buffer = a.buffer;
  PERFORM connector_buffers.count_drop(a.buffer, 'duplicate', duplicates);
  expired := connector_buffers.upkeep(a.buffer, o, moment);
  overflow := connector_buffers.keep_bounds(a.buffer, o, moment);
  PERFORM connector_buffers.sweep(a, o, moment);
  SELECT waiting INTO size FROM connector_buffers.accounts WHERE buffer = a.buffer;
END $$;

-- Give up the oldest until the bounds are kept.
CREATE OR REPLACE FUNCTION connector_buffers.keep_bounds(b int, o float8[], p_now float8) RETURNS bigint
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  a connector_buffers.accounts;
  many float8;
  much float8;
  r record;
  chosen bigint[] := '{}';
BEGIN
  SELECT * INTO a FROM connector_buffers.accounts WHERE buffer = b;
  many := a.waiting - o[1];
  much := a.bytes - o[2];
  IF many <= 0 AND much <= 0 THEN
    RETURN 0;
  END IF;
  FOR r IN SELECT e.arrival, e.size FROM connector_buffers.events e WHERE e.buffer = b AND e.lease IS NULL ORDER BY e.time, e.arrival LOOP
    EXIT WHEN many <= 0 AND much <= 0;
    chosen := array_append(chosen, r.arrival);
    many := many - 1;
    much := much - r.size;
  END LOOP;
  RETURN connector_buffers.give_up(b, chosen, 'overflow', p_now);
END $$;

CREATE OR REPLACE FUNCTION connector_buffers.take(
  p_prefix text, o float8[], p_name text, p_limit int, p_page bigint, p_hold float8, p_session bytea, p_kinds bytea[],
  p_time float8, p_arrival bigint, p_holder text,
  OUT times float8[], OUT arrivals bigint[], OUT bodies bytea[], OUT kinds bytea[], OUT ids bytea[], OUT origins bytea[],
  OUT remaining bigint, OUT more boolean, OUT expired bigint
) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  a connector_buffers.accounts := connector_buffers.enter(p_prefix, o);
  moment float8 := connector_buffers.now();
  chosen bigint[];
  found bigint;
  s bigint;
  l bigint;
BEGIN
  more := false;
  expired := connector_buffers.upkeep(a.buffer, o, moment);
  IF p_holder = '' OR NOT EXISTS (
    SELECT 1 FROM connector_buffers.leases x WHERE x.buffer = a.buffer AND NOT starts_with(x.name, p_holder)
    AND EXISTS (SELECT 1 FROM connector_buffers.events e WHERE e.buffer = a.buffer AND e.lease = x.lease)
  ) THEN
    SELECT count(*), array_agg(arrival) FILTER (WHERE before < p_page), sum(size) FILTER (WHERE before < p_page)
    INTO found, chosen, s FROM (
      SELECT arrival, size, sum(size) OVER (ORDER BY time, arrival) - size AS before FROM (
        SELECT e.arrival, e.size, e.time FROM connector_buffers.events e
        WHERE e.buffer = a.buffer AND e.lease IS NULL AND (e.time, e.arrival) > (p_time, p_arrival)
        AND (p_session IS NULL OR e.session = p_session) AND (p_kinds IS NULL OR e.kind = ANY (p_kinds))
        ORDER BY e.time, e.arrival LIMIT p_limit
      ) oldest
    ) summed;
    more := found = p_limit OR found > cardinality(chosen);
  END IF;
  IF chosen IS NOT NULL THEN
    INSERT INTO connector_buffers.leases AS x (buffer, name, hold, runs_out) VALUES (a.buffer, p_name, p_hold, moment + p_hold)
    ON CONFLICT (buffer, name) DO UPDATE SET hold = excluded.hold, runs_out = excluded.runs_out RETURNING x.lease INTO l;
    WITH taken AS (
      UPDATE connector_buffers.events e SET lease = l WHERE e.buffer = a.buffer AND e.arrival = ANY (chosen)
      RETURNING e.time, e.arrival, e.body, e.kind, e.event_id, e.origin
    )
    SELECT array_agg(t.time), array_agg(t.arrival), array_agg(t.body), array_agg(t.kind), array_agg(t.event_id), array_agg(t.origin)
    INTO times, arrivals, bodies, kinds, ids, origins FROM (SELECT * FROM taken ORDER BY time, arrival) t;
    UPDATE connector_buffers.accounts SET waiting = waiting - cardinality(chosen), bytes = bytes - s,
      in_flight = in_flight + cardinality(chosen) WHERE buffer = a.buffer;
  END IF;
  SELECT waiting INTO remaining FROM connector_buffers.accounts WHERE buffer = a.buffer;
  more := more AND remaining > 0;
END $$;

-- The number of a lease that has not run out, NULL without one.
CREATE OR REPLACE FUNCTION connector_buffers.lease_of(b int, p_name text, p_now float8) RETURNS bigint LANGUAGE sql AS $$
  SELECT lease FROM connector_buffers.leases
  WHERE buffer = b AND name = p_name AND runs_out > p_now AND runs_out <= p_now + hold + 1
$$;

-- Those of these events that a lease has; NULL: all.
CREATE OR REPLACE FUNCTION connector_buffers.held(b int, l bigint, p_tickets bigint[]) RETURNS bigint[]
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
  RETURN (
    SELECT coalesce(array_agg(e.arrival), '{}') FROM connector_buffers.events e
    WHERE e.buffer = b AND e.lease = l AND (p_tickets IS NULL OR e.arrival = ANY (p_tickets))
  );
END $$;

CREATE OR REPLACE FUNCTION connector_buffers.acknowledge(p_prefix text, o float8[], p_name text, p_tickets bigint[], p_reason text)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  a connector_buffers.accounts := connector_buffers.enter(p_prefix, o);
  moment float8 := connector_buffers.now();
  l bigint := connector_buffers.lease_of(a.buffer, p_name, moment);
  r record;
BEGIN
  IF l IS NULL THEN
    RETURN false;
  END IF;
  r := connector_buffers.remove(a.buffer, connector_buffers.held(a.buffer, l, p_tickets), moment);
  IF p_tickets IS NULL THEN
    DELETE FROM connector_buffers.leases WHERE lease = l;
  END IF;
  UPDATE connector_buffers.accounts SET in_flight = in_flight - r.n,
    delivered = delivered + CASE WHEN p_reason IS NULL THEN r.n ELSE 0 END WHERE buffer = a.buffer;
  IF p_reason IS NOT NULL THEN
    PERFORM connector_buffers.count_drop(a.buffer, p_reason, r.n);
  END IF;
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION connector_buffers.extend(p_prefix text, o float8[], p_name text, p_hold float8)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  a connector_buffers.accounts := connector_buffers.enter(p_prefix, o);
  moment float8 := connector_buffers.now();
  l bigint := connector_buffers.lease_of(a.buffer, p_name, moment);
BEGIN
  UPDATE connector_buffers.leases SET hold = p_hold, runs_out = moment + p_hold WHERE lease = l;
  RETURN l IS NOT NULL;
END $$;

CREATE OR REPLACE FUNCTION connector_buffers.give_back(p_prefix text, o float8[], p_name text)
RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  a connector_buffers.accounts := connector_buffers.enter(p_prefix, o);
  l bigint := connector_buffers.lease_of(a.buffer, p_name, connector_buffers.now());
  n bigint;
  s bigint;
BEGIN
  IF l IS NULL THEN
    RETURN false;
  END IF;
  WITH back AS (
    UPDATE connector_buffers.events e SET lease = NULL WHERE e.buffer = a.buffer AND e.lease = l RETURNING e.size
  )
  SELECT count(*), coalesce(sum(size), 0) INTO n, s FROM back;
  DELETE FROM connector_buffers.leases WHERE lease = l;
  UPDATE connector_buffers.accounts SET waiting = waiting + n, bytes = bytes + s, in_flight = in_flight - n WHERE buffer = a.buffer;
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION connector_buffers.set_aside(p_prefix text, o float8[], p_name text, p_tickets bigint[], p_kept bigint)
RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  a connector_buffers.accounts := connector_buffers.enter(p_prefix, o);
  moment float8 := connector_buffers.now();
  l bigint := connector_buffers.lease_of(a.buffer, p_name, moment);
  chosen bigint[] := connector_buffers.held(a.buffer, l, p_tickets);
  r record;
BEGIN
  IF l IS NULL THEN
    RETURN false;
  END IF;
  INSERT INTO connector_buffers.quarantine (buffer, session, body)
  SELECT a.buffer, e.session, e.body FROM unnest(p_tickets) WITH ORDINALITY AS g (arrival, place)
  JOIN connector_buffers.events e ON e.buffer = a.buffer AND e.arrival = g.arrival AND e.lease = l ORDER BY g.place;
  DELETE FROM connector_buffers.quarantine q WHERE q.buffer = a.buffer AND q.place <= (
    SELECT x.place FROM connector_buffers.quarantine x WHERE x.buffer = a.buffer ORDER BY x.place DESC OFFSET p_kept LIMIT 1
  );
  r := connector_buffers.remove(a.buffer, chosen, moment);
  UPDATE connector_buffers.accounts SET in_flight = in_flight - r.n WHERE buffer = a.buffer;
  PERFORM connector_buffers.count_drop(a.buffer, 'undecodable', r.n);
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION connector_buffers.bury(p_prefix text, o float8[], p_name text, p_tickets bigint[], p_evidence bytea[])
RETURNS boolean LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  a connector_buffers.accounts := connector_buffers.enter(p_prefix, o);
  moment float8 := connector_buffers.now();
  l bigint := connector_buffers.lease_of(a.buffer, p_name, moment);
  chosen bigint[] := connector_buffers.held(a.buffer, l, p_tickets);
  excess bigint;
BEGIN
  IF l IS NULL THEN
    RETURN false;
  END IF;
  INSERT INTO connector_buffers.letters (buffer, arrival, clock, time, session, kind, event_id, origin, body)
  SELECT a.buffer, e.arrival, moment, e.time, e.session, e.kind, e.event_id, e.origin, e.body
  FROM unnest(p_tickets) WITH ORDINALITY AS g (arrival, place)
  JOIN connector_buffers.events e ON e.buffer = a.buffer AND e.arrival = g.arrival AND e.lease = l ORDER BY g.place;
  UPDATE connector_buffers.evidence v SET clock = moment WHERE v.buffer = a.buffer AND v.arrival = ANY (chosen);
  INSERT INTO connector_buffers.evidence (buffer, arrival, death, clock, data)
  SELECT a.buffer, g.arrival, 1 + coalesce((
    SELECT max(v.death) FROM connector_buffers.evidence v WHERE v.buffer = a.buffer AND v.arrival = g.arrival
  ), 0), moment, g.data FROM unnest(p_tickets, p_evidence) AS g (arrival, data)
  JOIN connector_buffers.letters x ON x.buffer = a.buffer AND x.arrival = g.arrival AND x.clock = moment;
  DELETE FROM connector_buffers.events e WHERE e.buffer = a.buffer AND e.arrival = ANY (chosen);
  UPDATE connector_buffers.accounts SET in_flight = in_flight - cardinality(chosen) WHERE buffer = a.buffer;
  PERFORM connector_buffers.count_drop(a.buffer, 'dead_letter', cardinality(chosen));
  SELECT count(*) - o[5]::bigint INTO excess FROM connector_buffers.letters x WHERE x.buffer = a.buffer;
  IF excess > 0 THEN
    PERFORM connector_buffers.discard(a.buffer, (
      SELECT array_agg(f.arrival) FROM (
        SELECT x.arrival FROM connector_buffers.letters x WHERE x.buffer = a.buffer ORDER BY x.place LIMIT excess
      ) f
    ), moment);
  END IF;
  PERFORM connector_buffers.sweep(a, o, moment);
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION connector_buffers.redrive(p_prefix text, o float8[], p_arrivals bigint[])
RETURNS bigint[] LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
  a connector_buffers.accounts := connector_buffers.enter(p_prefix, o);
  moment float8 := connector_buffers.now();
  found bigint[];
  s bigint;
BEGIN
  WITH gone AS (
    DELETE FROM connector_buffers.letters l WHERE l.buffer = a.buffer AND l.arrival = ANY (p_arrivals) RETURNING l.*
  ), back AS (
    INSERT INTO connector_buffers.events
    SELECT g.buffer, g.arrival, moment, moment, length(g.body), NULL, true, g.session, g.kind, g.event_id, g.origin, g.body FROM gone g
    RETURNING events.arrival, events.size
  )
  SELECT coalesce(array_agg(arrival ORDER BY arrival), '{}'), coalesce(sum(size), 0) INTO found, s FROM back;
  UPDATE connector_buffers.evidence v SET clock = moment WHERE v.buffer = a.buffer AND v.arrival = ANY (found);
  UPDATE connector_buffers.accounts SET received = received + cardinality(found), waiting = waiting + cardinality(found), bytes = bytes + s
  WHERE buffer = a.buffer;
  RETURN found;
END $$;

CREATE OR REPLACE FUNCTION connector_buffers.purge(p_prefix text, o float8[], p_arrivals bigint[])
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  a connector_buffers.accounts := connector_buffers.enter(p_prefix, o);
BEGIN
  RETURN connector_buffers.discard(a.buffer, coalesce(p_arrivals, (
    SELECT coalesce(array_agg(l.arrival), '{}') FROM connector_buffers.letters l WHERE l.buffer = a.buffer
  )), connector_buffers.now());
END $$;
