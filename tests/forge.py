"""Backups that somebody with the public key and write access to the repository could have made: sealed right, and wrong."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from datetime import timedelta
from itertools import count

from recovery.manifest import Manifest, StoredObject
from recovery.repository import catalog, layout
from recovery.repository.catalog import Backup
from recovery.repository.in_memory import seal_bytes
from recovery.repository.sealing import parse_recipient, unseal_bytes
from tests.support import Site

_seconds = count(1)

Change = Callable[[bytes], bytes]


def forge(site: Site, genuine: Backup, *, role: str = "volume", change: Change) -> Backup:
    """A committed younger backup: its data directory's volume (or first dump) holds what `change` makes of it."""
    moment = layout.moment_of(genuine.id) + timedelta(seconds=next(_seconds))
    identifier = layout.backup_id(moment, genuine.manifest.kind)
    folder = layout.backup_folder("app038", genuine.manifest.server.system_identifier, identifier)
    store, objects, done = site.store(), [], False
    for item in genuine.manifest.objects:
        if item.role == role and item.tablespace is None and not done:
            content = unseal_bytes(store, item.sealed(genuine.folder), identities=[site.identity])
            recipients = [parse_recipient(text) for text in genuine.manifest.recipients] if item.encrypted else []
            sealed = seal_bytes(store, folder + item.key, change(content), recipients=recipients)
            objects.append(
                StoredObject.of(
                    sealed, folder=folder, role=item.role, tablespace=item.tablespace, database=item.database
                )
            )
            done = True
        else:
            store.put(folder + item.key, store.get(genuine.folder + item.key))
            objects.append(item)
    made = Backup(Manifest(**(dict(genuine.manifest) | {"id": identifier, "objects": objects})), folder)
    catalog.commit(store, made)
    return made


def with_member(name: str, content: bytes = b"evil") -> Change:
    """The tar with one more member, first."""

    def change(data: bytes) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            header_and_content = buffer.getvalue()[: 512 + len(content) + -len(content) % 512]
        return header_and_content + data

    return change


def without_member(name: str) -> Change:
    """The tar without one of its files."""

    def change(data: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            info = tar.getmember(name)
        return data[: info.offset] + data[info.offset_data + info.size + -info.size % 512 :]

    return change


def with_flipped_bit_in(member: str) -> Change:
    """The tar with one bit of one file's content changed."""

    def change(data: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            info = tar.getmember(member)
        changed = bytearray(data)
        changed[info.offset_data + info.size // 2] ^= 1
        return bytes(changed)

    return change
