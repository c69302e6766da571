"""Fill App038's main database with plausible rows, up to a size, as fast as the server takes them."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import LiteralString

import psycopg

_PRODUCTS = 2_000
# Rows for each MB of database, indexes included; measured with pg_database_size.
_ROWS_PER_MB = {"users": 80, "orders": 450, "order_lines": 1_200, "payments": 420, "documents": 75}
_ROWS_PER_MB |= {"sessions": 80, "audit_log": 700, "jobs": 5}
_DOCUMENT_BYTES = 4_096

_PRODUCT_ROWS: LiteralString = """
INSERT INTO products (sku, title, price_cents, attributes)
SELECT format('SKU-%%s', lpad(n::text, 6, '0')), (ARRAY['Chair','Lamp','Desk','Shelf','Rug'])[1 + n %% 5] || ' ' || n,
       199 + (n * 7919) %% 90000, jsonb_build_object('colour', (ARRAY['oak','black','white'])[1 + n %% 3], 'weight', n)
FROM generate_series(1, %(rows)s) AS n
"""
_USER_ROWS: LiteralString = """
INSERT INTO users (name, email, email_verified_at, password, remember_token, settings, created_at)
SELECT (ARRAY['Ada','Grace','Edsger','Barbara','Linus','Margaret'])[1 + n %% 6] || ' ' || left(md5(n::text), 8),
       format('user%%s@example.com', n), now() - n * interval '3 minutes',
       '$2y$12$' || left(md5(n::text) || md5('x' || n), 53), left(md5('r' || n), 32),
       jsonb_build_object('locale', (ARRAY['de','en','fr'])[1 + n %% 3], 'newsletter', n %% 2 = 0),
       now() - n * interval '3 minutes'
FROM generate_series(1, %(rows)s) AS n
"""
_ORDER_ROWS: LiteralString = """
INSERT INTO orders (user_id, status, total_cents, shipping, placed_at)
SELECT 1 + floor(random() * %(users)s)::bigint,
       (ARRAY['pending','paid','shipped','delivered','delivered','delivered','cancelled'])[1 + n %% 7]::order_status,
       500 + floor(random() * 90000),
       jsonb_build_object('city', (ARRAY['Bern','Wien','Paris'])[1 + n %% 3], 'zip', n %% 99999),
       now() - (%(rows)s - n) * interval '5 minutes'
FROM generate_series(1, %(rows)s) AS n
"""
_ORDER_LINE_ROWS: LiteralString = """
INSERT INTO order_lines (order_id, product_id, quantity, unit_price_cents, note)
SELECT 1 + n %% %(orders)s, 1 + floor(random() * %(products)s)::bigint, 1 + n %% 4, 199 + floor(random() * 90000),
       CASE WHEN n %% 11 = 0 THEN 'gift, wrap it please ' || n END
FROM generate_series(1, %(rows)s) AS n
"""
_PAYMENT_ROWS: LiteralString = """
INSERT INTO payments (order_id, method, amount_cents, provider_reference, provider_answer)
SELECT 1 + n %% %(orders)s, (ARRAY['card','sepa','invoice'])[1 + n %% 3]::payment_method, 500 + floor(random() * 90000),
       'pi_' || md5('p' || n), jsonb_build_object('code', 'approved', 'risk', n %% 100)
FROM generate_series(1, %(rows)s) AS n
"""
_SESSION_ROWS: LiteralString = """
INSERT INTO sessions (id, user_id, ip_address, user_agent, payload, last_activity)
SELECT md5('s' || n), 1 + n %% %(users)s, ('10.0.' || n %% 250 || '.' || n %% 199)::inet,
       'Mozilla/5.0 (X11; Linux x86_64)',
       (SELECT string_agg(md5(n::text || part), '') FROM generate_series(1, 24) AS part),
       extract(epoch FROM now())::integer - n %% 7200
FROM generate_series(1, %(rows)s) AS n
"""
_AUDIT_ROWS: LiteralString = """
INSERT INTO audit_log (happened_at, actor_id, action, details)
SELECT now() - (%(rows)s - n) * interval '1 minute', n %% 5000,
       (ARRAY['login','order.placed','order.paid'])[1 + n %% 3],
       jsonb_build_object('ip', '10.1.' || n %% 250 || '.7', 'request', md5('a' || n))
FROM generate_series(1, %(rows)s) AS n
"""
_JOB_ROWS: LiteralString = """
INSERT INTO jobs (queue, payload, available_at, created_at)
SELECT (ARRAY['default','mail','erp'])[1 + n %% 3], '{"displayName":"App\\\\Jobs\\\\SyncOrder","order":' || n || '}',
       extract(epoch FROM now())::integer, extract(epoch FROM now())::integer
FROM generate_series(1, %(rows)s) AS n
"""


def fill(dsn: str, size_mb: int) -> None:
    """Add about `size_mb` MB of rows (indexes included). `dsn` is a superuser's; call it once, on fresh tables."""
    rows = {table: max(1, count * size_mb) for table, count in _ROWS_PER_MB.items()}
    with ThreadPoolExecutor(max_workers=2) as pool:
        halves = [pool.submit(_fill_orders, dsn, rows), pool.submit(_fill_the_rest, dsn, rows)]
        for half in halves:
            half.result()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ANALYZE")
        connection.execute("CHECKPOINT")


def _bulk(dsn: str) -> psycopg.Connection:
    # The rows refer to each other by construction: checking each reference again would take most of the time.
    options = "-c session_replication_role=replica -c synchronous_commit=off -c maintenance_work_mem=64MB"
    connection = psycopg.connect(dsn, options=options)
    connection.execute("SELECT setseed(0.38)")
    return connection


def _fill_orders(dsn: str, rows: dict[str, int]) -> None:
    with _bulk(dsn) as connection:
        connection.execute(_PRODUCT_ROWS, {"rows": _PRODUCTS})
        connection.execute(_ORDER_ROWS, {"rows": rows["orders"], "users": rows["users"]})
        for statement, table in ((_ORDER_LINE_ROWS, "order_lines"), (_PAYMENT_ROWS, "payments")):
            connection.execute(statement, {"rows": rows[table], "orders": rows["orders"], "products": _PRODUCTS})


def _fill_the_rest(dsn: str, rows: dict[str, int]) -> None:
    with _bulk(dsn) as connection:
        connection.execute(_USER_ROWS, {"rows": rows["users"]})
        connection.execute(_SESSION_ROWS, {"rows": rows["sessions"], "users": rows["users"]})
        connection.execute(_AUDIT_ROWS, {"rows": rows["audit_log"]})
        connection.execute(_JOB_ROWS, {"rows": rows["jobs"]})
        _copy_documents(connection, count=rows["documents"], users=rows["users"])


def _copy_documents(connection: psycopg.Connection, *, count: int, users: int) -> None:
    """Half of each document is random and half repeats itself, as in scans and PDF files."""
    generator = random.Random(38)
    text = (b"Invoice: please pay within thirty days. " * 100)[: _DOCUMENT_BYTES // 2]
    with connection.cursor().copy(
        "COPY documents (user_id, name, mime_type, content) FROM STDIN (FORMAT binary)"
    ) as copy:
        copy.set_types(["int8", "varchar", "varchar", "bytea"])
        for number in range(count):
            content = generator.randbytes(_DOCUMENT_BYTES // 2) + text
            copy.write_row((1 + number % users, f"invoice-{number}.pdf", "application/pdf", content))
