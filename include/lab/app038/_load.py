"""The small steady write load on App038, and how to pause it, from its own process or from any other.

Each transaction first takes advisory lock 38 in shared mode. Whoever holds that lock exclusively has paused the load:
nothing of it is in flight then, and it goes on when that session ends, however it ends.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import TracebackType
from typing import Self

import psycopg

PAUSE_LOCK = 38
_SESSION_LIFETIME_SECONDS = 7200
_RECONNECT_SECONDS = 0.5
_PAUSED_POLL_SECONDS = 0.05


@contextmanager
def paused(dsn: str) -> Iterator[None]:
    """Hold the load of the database that `dsn` names still; any role may, in any process."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (PAUSE_LOCK,))
        yield


class Load:
    """Orders, payments, session updates and deletes of expired sessions, as the application's role, in a thread."""

    def __init__(self, dsn: str, *, transactions_per_second: float = 20.0) -> None:
        self._dsn = dsn
        self._interval = 1.0 / transactions_per_second
        self._random = random.Random(38)
        self._stopping = Event()
        self._thread: Thread | None = None
        self._pause: psycopg.Connection | None = None
        self.committed = 0
        self.last_order_id: int | None = None
        self.last_error: str | None = None

    def start(self) -> None:
        """Begin; a server that cannot be reached is tried again until `stop`."""
        self._stopping.clear()
        self._thread = Thread(target=self._run, name="app038-load", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the transaction in flight."""
        self._stopping.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        self.resume()

    def pause(self) -> None:
        """Return when no transaction is in flight; none begins until `resume`. A restart of the server ends it too."""
        self.resume()
        self._pause = psycopg.connect(self._dsn, autocommit=True)
        self._pause.execute("SELECT pg_advisory_lock(%s)", (PAUSE_LOCK,))

    def resume(self) -> None:
        """Go on after `pause`."""
        if self._pause:
            self._pause.close()
            self._pause = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._dsn) as connection:
                    users = self._count(connection, "SELECT max(id) FROM users")
                    products = self._count(connection, "SELECT max(id) FROM products")
                    connection.commit()
                    while not self._stopping.wait(self._interval):
                        self._one_transaction(connection, users=users, products=products)
            except psycopg.Error as error:
                self.last_error = str(error).strip()
                self._stopping.wait(_RECONNECT_SECONDS)

    @staticmethod
    def _count(connection: psycopg.Connection, query: str) -> int:
        row = connection.execute(query.encode()).fetchone()
        return int(row[0] or 0) if row else 0

    def _one_transaction(self, connection: psycopg.Connection, *, users: int, products: int) -> None:
        with connection.transaction():
            row = connection.execute("SELECT pg_try_advisory_xact_lock_shared(%s)", (PAUSE_LOCK,)).fetchone()
            allowed = bool(row and row[0])
            order_id = self._work(connection, users=users, products=products) if allowed else None
        # Counted after the commit has returned: what this says is committed must be there after a recovery.
        if allowed:
            self.committed += 1
            self.last_order_id = order_id or self.last_order_id
        else:
            self._stopping.wait(_PAUSED_POLL_SECONDS)

    def _work(self, connection: psycopg.Connection, *, users: int, products: int) -> int | None:
        user = self._random.randint(1, max(1, users))
        dice = self._random.random()
        if dice < 0.4 and users and products:
            return self._place_order(connection, user=user, product=self._random.randint(1, products))
        if dice < 0.6:
            self._pay_oldest(connection)
        elif dice < 0.95:
            self._touch_session(connection, user=user if users else None)
        else:
            connection.execute(
                "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions"
                " WHERE last_activity < extract(epoch FROM now()) - %s LIMIT 100)",
                (_SESSION_LIFETIME_SECONDS,),
            )
        return None

    def _place_order(self, connection: psycopg.Connection, *, user: int, product: int) -> int:
        row = connection.execute(
            "INSERT INTO orders (user_id, total_cents) VALUES (%s, %s) RETURNING id",
            (user, self._random.randint(500, 90_000)),
        ).fetchone()
        assert row
        for line in range(self._random.randint(1, 3)):
            connection.execute(
                "INSERT INTO order_lines (order_id, product_id, quantity, unit_price_cents) VALUES (%s, %s, %s, %s)",
                (row[0], product, line + 1, self._random.randint(199, 90_000)),
            )
        connection.execute(
            "INSERT INTO jobs (queue, payload, available_at, created_at)"
            " VALUES ('erp', %s, extract(epoch FROM now()), extract(epoch FROM now()))",
            (f'{{"order":{row[0]}}}',),
        )
        return int(row[0])

    def _pay_oldest(self, connection: psycopg.Connection) -> None:
        connection.execute(
            "WITH due AS (SELECT id, total_cents FROM orders WHERE status = 'pending' ORDER BY placed_at LIMIT 1"
            " FOR UPDATE SKIP LOCKED), paid AS (UPDATE orders SET status = 'paid', updated_at = now() FROM due"
            " WHERE orders.id = due.id)"
            " INSERT INTO payments (order_id, method, amount_cents, provider_reference)"
            " SELECT id, 'card', total_cents, %s FROM due",
            (f"pi_{secrets.token_hex(16)}",),
        )

    def _touch_session(self, connection: psycopg.Connection, *, user: int | None) -> None:
        connection.execute(
            "INSERT INTO sessions (id, user_id, payload, last_activity) VALUES (%s, %s, %s, extract(epoch FROM now()))"
            " ON CONFLICT (id) DO UPDATE SET payload = excluded.payload, last_activity = excluded.last_activity",
            (f"live{self._random.randrange(500):04}", user, secrets.token_urlsafe(600)),
        )
