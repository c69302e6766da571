-- What a comparison or a copy could trip over: names, types, rows without a key, and relations that are not plain tables.
CREATE SCHEMA "Ünïcode schema";
CREATE TABLE "order" ("order" integer, "column with ""quotes""" text);
INSERT INTO "order" SELECT n, 'row ' || n FROM generate_series(1, 200) AS n;
-- A column named like its table hides the row behind it; rows without a key may be equal.
CREATE TABLE same (same integer);
INSERT INTO same SELECT n % 5 FROM generate_series(1, 100) AS n;
CREATE TYPE mood AS ENUM ('sad', 'it''s fine', 'happy');
CREATE TYPE pair AS (a integer, b text);
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE TABLE "Ünïcode schema"."all types" (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mood mood,
    pair pair,
    positive positive,
    document jsonb,
    bytes bytea,
    real double precision,
    exact numeric,
    at timestamptz,
    spell interval,
    span int4range,
    tags text[],
    twice integer GENERATED ALWAYS AS (positive * 2) STORED
);
INSERT INTO "Ünïcode schema"."all types" (mood, pair, positive, document, bytes, real, exact, at, spell, span, tags)
VALUES
    ('it''s fine', (1, 'b'), 1, '{"k": [1, null, "ü"]}', '\x00ff10', 'NaN', 'NaN', 'infinity', '1 mon -2 days', '[1,9)', '{a,"b c",NULL}'),
    (NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    ('happy', (NULL, E'tab\tnewline\n'), 7, 'null', '', '-Infinity', 1e-30, '0044-03-15 BC', '-00:00:01', 'empty', '{}');
INSERT INTO "Ünïcode schema"."all types" (bytes, real) SELECT decode(repeat(md5(n::text), 300), 'hex'), n / 7.0 FROM generate_series(1, 60) AS n;
CREATE TABLE "empty" ();
CREATE TABLE "no columns" ();
INSERT INTO "no columns" DEFAULT VALUES;
CREATE TABLE measurements (day date NOT NULL, value integer) PARTITION BY RANGE (day);
CREATE TABLE "measurements 2026" PARTITION OF measurements FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE "measurements rest" PARTITION OF measurements DEFAULT;
INSERT INTO measurements SELECT date '2025-12-01' + n, n FROM generate_series(1, 100) AS n;
CREATE TABLE parent (id integer PRIMARY KEY);
CREATE TABLE child (more text) INHERITS (parent);
INSERT INTO parent VALUES (1);
INSERT INTO child VALUES (1, 'the same key as its parent''s row');
CREATE MATERIALIZED VIEW totals AS SELECT count(*) AS rows FROM measurements;
CREATE UNLOGGED TABLE cache (key text PRIMARY KEY);
INSERT INTO cache VALUES ('gone after a crash');
CREATE TABLE counters (id serial PRIMARY KEY);
INSERT INTO counters SELECT FROM generate_series(1, 10);
SELECT setval('counters_id_seq', 4711);
SELECT lo_from_bytea(0, decode(repeat('00ff', 5000), 'hex'));
