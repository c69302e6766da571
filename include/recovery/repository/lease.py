"""One writer at a time: a lease per system and job, kept in the repository.

A lease is a row of small objects, `00000001.json`, `00000002.json`, … Each is created only if absent, so that of two
writers who want the next number one loses. The highest number is the truth: held until it expires, or released. Ages
are taken on the store's own clock. No lock server, and no primitive but the conditional put.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from datetime import timedelta
from types import TracebackType

from recovery.errors import LeaseError, ObjectExists, ObjectMissing, RecoveryError, StoreError
from recovery.repository import layout
from recovery.repository.store import ObjectInfo, ObjectStore, put_once

DEFAULT_TTL = timedelta(seconds=120)


def held_jobs(store: ObjectStore, *, kind: str, name: str) -> frozenset[str]:
    """The jobs of a system that somebody is at work on now."""
    folder = layout.lease_folder(kind, name, "")[:-1]
    jobs = store.folders(folder)
    return frozenset(job for job in jobs if Lease(store, kind=kind, name=name, job=job).holder() is not None)


class Lease:
    """Held inside a `with` block and renewed by a thread. Call check() before anything that must not happen twice.

    Entering raises LeaseError when somebody else holds it. A store that cannot keep leases raises StoreError: the
    caller decides (a backup goes on, a restore into production does not).
    """

    def __init__(self, store: ObjectStore, *, kind: str, name: str, job: str, ttl: timedelta = DEFAULT_TTL) -> None:
        self._store = store
        self._folder = layout.lease_folder(kind, name, job)
        self._what = f"{kind} {name}, {job}"
        self._ttl = ttl
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._generation = 0
        self._good_until = 0.0
        self._lost: RecoveryError | None = None
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=f"lease {job}", daemon=True)

    def __enter__(self) -> Lease:
        newest = self._newest()
        if holder := self._held_by(newest):
            raise LeaseError(
                f"{self._what} is being written by {holder}",
                where=self._store.description,
                remedy=f"wait for it; a dead writer is passed over after {self._ttl.total_seconds():.0f} s",
            )
        self._generation = self._number(newest)
        try:
            self._claim()
        except ObjectExists:
            raise LeaseError(
                f"another writer took {self._what} at this moment", where=self._store.description, remedy="try again"
            ) from None
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._renewer.join()
        if self._lost is None:
            try:
                self._write(released=True)
                self._sweep()
            except StoreError:
                return  # It expires by itself; the work that it guarded is done or has failed with its own error.

    def holder(self) -> str | None:
        """Who holds it now, whether or not that is us."""
        return self._held_by(self._newest())

    def check(self) -> None:
        """Raise LeaseError if the lease was lost: another writer may be at work."""
        if self._lost is not None:
            raise self._lost
        if time.monotonic() > self._good_until:
            # This process slept, or the store kept a renewal waiting: others may have passed over the lease.
            raise LeaseError(
                f"{self._what}: the lease has run out before it was renewed",
                where=self._store.description,
                remedy="nothing was committed; run it again",
            )

    def _renew(self) -> None:
        third = self._ttl.total_seconds() / 3
        failures = 0
        while not self._stop.wait(third):
            try:
                self._claim()
                failures = 0
            except ObjectExists:
                self._lost = LeaseError(
                    f"{self._what}: the lease was taken by another writer",
                    where=self._store.description,
                    remedy="nothing was committed; see who",
                )
                return
            except StoreError as problem:
                failures += 1
                if failures >= 2:
                    self._lost = LeaseError(
                        f"{self._what}: the lease could not be renewed ({problem.what})",
                        where=self._store.description,
                        remedy="nothing was committed; run it again when the store answers",
                    )
                    return

    def _claim(self) -> None:
        begun = time.monotonic()
        self._write(released=False)
        self._sweep()
        self._good_until = begun + self._ttl.total_seconds()

    def _write(self, *, released: bool) -> None:
        document = {"holder": self._holder, "released": released, "ttl_seconds": self._ttl.total_seconds()}
        key = f"{self._folder}{self._generation + 1:08d}.json"
        put_once(self._store, key, json.dumps(document, sort_keys=True).encode(), locked=False)
        self._generation += 1

    def _newest(self) -> ObjectInfo | None:
        return max(self._store.scan(self._folder), key=lambda info: info.key, default=None)

    def _held_by(self, newest: ObjectInfo | None) -> str | None:
        if newest is None:
            return None
        try:
            document = json.loads(self._store.get(newest.key))
        except ObjectMissing:
            return None
        age = self._store.now() - newest.modified
        if document["released"] or age > timedelta(seconds=document["ttl_seconds"]):
            return None
        return str(document["holder"])

    def _number(self, info: ObjectInfo | None) -> int:
        return 0 if info is None else int(info.key.removeprefix(self._folder).removesuffix(".json"))

    def _sweep(self) -> None:
        """Forget what is older than the newest: it decides nothing any more. Raises ObjectExists where ours is older.

        That a number could be written does not make it the highest: a later holder may have swept it away before.
        """
        for info in list(self._store.scan(self._folder)):
            if self._number(info) > self._generation:
                raise ObjectExists("another writer's lease is newer", where=info.key)
            if self._number(info) < self._generation:
                self._store.delete(info.key)
