-- What makes dumps hard, all in one database.

SET client_min_messages = error;
CREATE EXTENSION btree_gist;
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE EXTENSION ltree;
CREATE EXTENSION pg_trgm;
CREATE EXTENSION pgcrypto SCHEMA public;

-- A table for each built-in type, with a value of it and an array of such values. Types without input (statistics, parse trees) have
-- a column all the same.
CREATE SCHEMA builtin;
CREATE TEMPORARY TABLE sample (type name PRIMARY KEY, value text);
INSERT INTO sample VALUES
    ('aclitem', 'postgres=r*w/postgres'), ('bit', '10101'), ('bool', 'true'), ('box', '((1,2),(3,4))'), ('bpchar', 'padded  '),
    ('bytea', '\x00ff5c27'), ('char', 'c'), ('cid', '7'), ('cidr', '10.1.0.0/16'), ('circle', '<(1,2),3>'), ('date', '0044-03-15 BC'),
    ('datemultirange', '{[2020-01-01,2021-01-01)}'), ('daterange', '[2020-01-01,infinity]'), ('float4', '1.1754944e-38'),
    ('float8', 'NaN'), ('inet', '2001:db8::1/64'), ('int2', '-32768'), ('int2vector', '1 2 3'), ('int4', '-2147483648'),
    ('int4multirange', '{[1,3),[5,9)}'), ('int4range', 'empty'), ('int8', '-9223372036854775808'), ('int8multirange', '{}'),
    ('int8range', '[1,)'), ('interval', '-1 year 2 mons -3 days 04:05:06.789'), ('json', '{"b": 1, "a": [1, null], "b": 2}'),
    ('jsonb', '{"a": {"b": [1, 2.50, "\u00fc"]}}'), ('jsonpath', '$.a[*] ? (@.b > 1)'), ('line', '{1,2,3}'), ('lseg', '[(1,2),(3,4)]'),
    ('macaddr', '08:00:2b:01:02:03'), ('macaddr8', '08:00:2b:01:02:03:04:05'), ('money', '-12.34'), ('name', 'a name'),
    ('numeric', '1234567890123456789012345678901234567890.000000000000000000012345'), ('nummultirange', '{(1.5,2.5]}'),
    ('numrange', '(1.5,2.5]'), ('oid', '4294967295'), ('oidvector', '1 2'), ('path', '[(1,2),(3,4)]'), ('pg_lsn', '16/B374D848'),
    ('pg_snapshot', '10:20:10,14,15'), ('point', '(1.5,-2.5)'), ('polygon', '((1,2),(3,4),(5,0))'), ('refcursor', 'cursor'),
    ('regclass', 'pg_class'), ('regcollation', '"C"'), ('regconfig', 'english'), ('regdictionary', 'simple'),
    ('regnamespace', 'pg_catalog'), ('regoper', '||/'), ('regoperator', '+(integer,integer)'), ('regproc', 'now'),
    ('regprocedure', 'lower(text)'), ('regrole', 'postgres'), ('regtype', 'timestamp with time zone'), ('text', E'Zo\u00eb\ttab\nline\\.'),
    ('tid', '(1,2)'), ('time', '23:59:59.999999'), ('timestamp', 'infinity'), ('timestamptz', '1999-12-31 23:59:59.5+14'),
    ('timetz', '12:00:00-08:30'), ('tsmultirange', '{[2020-01-01 00:00,2020-01-02 00:00)}'), ('tsquery', '''fat'' & ( ''rat'' | !''cat'' )'),
    ('tsrange', '(,2020-01-01 00:00]'), ('tstzmultirange', '{(,)}'), ('tstzrange', '[2020-01-01 00:00+00,)'),
    ('tsvector', '''a'':1A ''fat'':2B,4C'), ('txid_snapshot', '10:20:10,14,15'), ('uuid', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'),
    ('varbit', '1'), ('varchar', ''), ('xid', '42'), ('xid8', '18446744073709551615'), ('xml', '<a b="c">&amp;</a>');
DO $$
DECLARE
    builtin record;
BEGIN
    FOR builtin IN
        SELECT t.typname, format('pg_catalog.%I', t.typname) AS type, t.typarray <> 0 AS has_array, s.type IS NOT NULL AS has_sample, s.value
        FROM pg_type t LEFT JOIN sample s ON s.type = t.typname
        WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typtype IN ('b', 'r', 'm') AND t.typname NOT LIKE '\_%'
    LOOP
        EXECUTE format('CREATE TABLE builtin.%I (plain %s)', builtin.typname, builtin.type);
        EXECUTE format('INSERT INTO builtin.%I VALUES (NULL)', builtin.typname);
        IF builtin.has_sample THEN
            EXECUTE format('INSERT INTO builtin.%I VALUES (%L)', builtin.typname, builtin.value);
        ELSIF builtin.typname NOT IN ('gtsvector', 'pg_brin_bloom_summary', 'pg_brin_minmax_multi_summary', 'pg_dependencies',
                                      'pg_mcv_list', 'pg_ndistinct', 'pg_node_tree') THEN
            RAISE EXCEPTION 'there is no sample of the type %', builtin.typname;
        END IF;
        IF builtin.has_sample AND builtin.has_array THEN
            EXECUTE format('ALTER TABLE builtin.%I ADD list %s[]', builtin.typname, builtin.type);
            EXECUTE format('UPDATE builtin.%I SET list = ARRAY[plain, NULL] WHERE plain IS NOT NULL', builtin.typname);
        END IF;
    END LOOP;
END $$;

-- Types of one's own.
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (first int, second text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE moods AS RANGE (subtype = mood);
CREATE COLLATION german (provider = icu, locale = 'de-u-co-phonebk');

-- Large objects: empty, small, longer than a page of them, with a comment and an owner.
CREATE ROLE everything_clerk;
CREATE ROLE everything_reader;
SELECT lo_create(100001), lo_from_bytea(100002, 'small'), lo_from_bytea(100003, decode(repeat('00ff10', 200000), 'hex'));
SELECT lo_from_bytea(0, decode(md5(n::text), 'hex')) FROM generate_series(1, 500) n;
COMMENT ON LARGE OBJECT 100002 IS 'it''s small';
ALTER LARGE OBJECT 100003 OWNER TO everything_clerk;
GRANT SELECT ON LARGE OBJECT 100002 TO everything_reader;

-- Partitions by range, list and hash, a default one, one below another.
CREATE TABLE event (id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL, kind text NOT NULL, body jsonb, PRIMARY KEY (id, at, kind))
    PARTITION BY RANGE (at);
CREATE TABLE event_2025 PARTITION OF event FOR VALUES FROM ('2025-01-01Z') TO ('2026-01-01Z') PARTITION BY LIST (kind);
CREATE TABLE event_2025_login PARTITION OF event_2025 FOR VALUES IN ('login', 'logout');
CREATE TABLE event_2025_rest PARTITION OF event_2025 DEFAULT;
CREATE TABLE event_rest PARTITION OF event DEFAULT;
CREATE INDEX ON event USING gin (body);
CREATE TABLE bucket (key uuid PRIMARY KEY, value hstore) PARTITION BY HASH (key);
CREATE TABLE bucket_0 PARTITION OF bucket FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE bucket_1 PARTITION OF bucket FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO event (at, kind, body)
    SELECT timestamptz '2025-06-01Z' + n * interval '1 h', (ARRAY['login', 'logout', 'other'])[n % 3 + 1], jsonb_build_object('n', n)
    FROM generate_series(1, 6000) n;
INSERT INTO bucket SELECT md5(n::text)::uuid, hstore('n', n::text) FROM generate_series(1, 1000) n;

-- All other kinds of objects.
CREATE TABLE person (
    id int GENERATED BY DEFAULT AS IDENTITY (START 100 INCREMENT 5) PRIMARY KEY,
    name citext UNIQUE COLLATE "C" NOT NULL,
    height positive,
    feels mood DEFAULT 'ok',
    duo pair,
    area ltree,
    during tstzrange,
    twice int GENERATED ALWAYS AS (height * 2) STORED,
    boss int REFERENCES person DEFERRABLE INITIALLY DEFERRED,
    CHECK (name <> ''),
    EXCLUDE USING gist (area WITH =, during WITH &&)
) WITH (fillfactor = 70);
INSERT INTO person (name, height, feels, duo, area, during, boss)
    SELECT 'Zoë ' || n, n, (enum_range(NULL::mood))[n % 3 + 1], ROW(n, 'a "quoted", \ text')::pair, ('top.n' || n)::ltree,
           tstzrange('2025-01-01Z', '2026-01-01Z'), 100 FROM generate_series(1, 300) n;
ALTER TABLE person ALTER height SET STATISTICS 500, ALTER duo SET STORAGE EXTERNAL, CLUSTER ON person_pkey;
CREATE INDEX person_trgm ON person USING gin ((name::text) gin_trgm_ops) WHERE height > 10;
CREATE STATISTICS person_stats (ndistinct, dependencies) ON height, feels FROM person;
CREATE VIEW tall WITH (security_barrier) AS SELECT * FROM person WHERE height > 100 WITH CHECK OPTION;
CREATE MATERIALIZED VIEW count_by_mood AS SELECT feels, count(*) FROM person GROUP BY 1;
CREATE UNIQUE INDEX ON count_by_mood (feels);
CREATE SEQUENCE odd AS smallint INCREMENT 2 START 1 CYCLE;
SELECT nextval('odd'), nextval('odd');
CREATE UNLOGGED TABLE scratch (x int);
INSERT INTO scratch SELECT generate_series(1, 10);
CREATE TABLE child (more text) INHERITS (scratch);
CREATE TABLE "strange ""name"" \ with $$" ("select" int, "a b" "char" DEFAULT 'x') PARTITION BY RANGE ("select");
CREATE FUNCTION add_up(a int, b int DEFAULT 1) RETURNS int LANGUAGE sql IMMUTABLE RETURN a + b;
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $fn$ BEGIN NEW.during := NULL; RETURN NEW; END $fn$;
CREATE PROCEDURE nothing() LANGUAGE plpgsql AS 'BEGIN NULL; END';
CREATE AGGREGATE product(numeric) (SFUNC = numeric_mul, STYPE = numeric, INITCOND = '1');
CREATE OPERATOR @+@ (LEFTARG = int, RIGHTARG = int, FUNCTION = add_up);
CREATE FUNCTION mood_length(mood) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT length($1::text)';
CREATE CAST (mood AS int) WITH FUNCTION mood_length(mood);
CREATE TRIGGER stamp BEFORE UPDATE OF height ON person FOR EACH ROW WHEN (OLD.height > 5) EXECUTE FUNCTION stamp();
ALTER TABLE person DISABLE TRIGGER stamp;
CREATE RULE no_delete AS ON DELETE TO scratch DO INSTEAD NOTHING;
ALTER TABLE person ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON person FOR SELECT TO everything_reader USING (name = current_user);
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER ddl ON ddl_command_end EXECUTE FUNCTION on_ddl();
CREATE PUBLICATION everything FOR TABLE person, event;
CREATE FOREIGN DATA WRAPPER dummy;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER dummy OPTIONS (host 'nowhere');
CREATE FOREIGN TABLE remote (x int OPTIONS (n '1')) SERVER elsewhere;
CREATE TEXT SEARCH CONFIGURATION german_simple (COPY = german);
GRANT SELECT (name), UPDATE (height) ON person TO everything_reader WITH GRANT OPTION;
GRANT USAGE ON SCHEMA builtin TO PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA builtin GRANT SELECT ON TABLES TO everything_reader;
ALTER TABLE event OWNER TO everything_clerk;
COMMENT ON TABLE person IS E'a comment\nof two lines -- and no more';
COMMENT ON COLUMN person.height IS 'in cm';
