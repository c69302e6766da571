"""A throwaway node: Vault or OpenBao with nothing in it, cut off from the network, for a snapshot to be restored into.

A restored node begins at once to revoke leases that have expired: it would log in to live databases and drop roles.
So it runs in a network namespace of its own, with loopback alone, and listens on a Unix socket in a private directory.
That directory is its root directory too: unsealing opens the snapshot's audit devices, which would write to files of
this machine, or fail to, and an audit device that cannot be opened keeps a node from serving. It ends with the process
that started it, also when that is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from recovery.errors import PreconditionError, RecoveryError, ServerError
from recovery.manifest import Seal
from recovery.vault import apply, isolate
from recovery.vault.session import errors_of

if TYPE_CHECKING:
    import hvac

Product = Literal["vault", "openbao"]
_PROGRAMS = {"vault": "vault", "openbao": "bao"}
_SOCKET = "api"
_POLL_SECONDS = 0.05
_STOP_SECONDS = 10
# A request fails that no audit device takes, and the snapshot's own may be a socket that nobody here listens on.
_AUDIT = [{"file": {"sandbox": {"description": "keeps nothing", "options": {"file_path": "discard"}}}}]
# Free for sure in a namespace of its own.
_PORTS = (8200, 8201)


def find_binary(product: Product, configured: Path | None) -> Path:
    """The server's program; raises PreconditionError with the remedy."""
    found = configured or shutil.which(_PROGRAMS[product])
    if found is None:
        raise PreconditionError(
            f"the program `{_PROGRAMS[product]}` is not on PATH",
            remedy="install it where drills run, or name it as vault.NAME.binary",
        )
    if not Path(found).is_file() or not os.access(found, os.X_OK):
        raise PreconditionError(
            "there is no program that can be run", where=str(found), remedy="correct vault.NAME.binary"
        )
    return Path(found)


class SandboxVault:
    """Start on entering the block, stop on leaving it. Raises ServerError with the end of the server's log."""

    def __init__(
        self,
        folder: Path,
        *,
        product: Product,
        binary: Path,
        isolated: bool = True,
        seal_config: Path | None = None,
        start_seconds: float = 60,
    ) -> None:
        """Everything lies in `folder`, which is made; whoever made its parent removes it.

        `seal_config` is one more configuration file: the seal stanza where a key service unseals. What it names must be
        in reach, so such a node keeps this machine's root directory, and so does one that is not isolated.
        """
        self._folder, self._product, self._binary = folder, product, binary
        self._isolated, self._seal_config, self._start_seconds = isolated, seal_config, start_seconds
        self._root = folder if isolated and seal_config is None else Path("/")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SandboxVault:
        self._folder.mkdir(mode=0o700, parents=True)
        for name in ("raft", "tmp"):
            (self._folder / name).mkdir()
        try:
            self._start()
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if isinstance(problem, apply.NotServing):
            raise apply.NotServing(f"{problem.what}: {self._last_words()}", where=problem.where) from None

    def client(self, token: str = "") -> hvac.Client:
        from recovery.vault import unix

        return unix.client(self._folder / _SOCKET, token)

    def initialise(self, seal: Seal) -> hvac.Client:
        """Give it throwaway keys, as many as `seal` has, unseal it with them, and log in as root."""
        return self.client(apply.initialise(self.client(), seal))

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _configuration(self) -> dict[str, object]:
        # An upload that takes longer than http_read_timeout (30 s unless told) is cut off.
        unix_listener: dict[str, object] = {"address": _SOCKET, "socket_mode": "600", "http_read_timeout": "24h"}
        if self._product == "openbao":
            # A root token is made from the shares, as after a disaster; OpenBao must be told to allow it.
            unix_listener["disable_unauthed_generate_root_endpoints"] = False
        api, cluster = _PORTS if self._isolated else _free_ports()
        # Raft wants an address for its peers, of which there are none.
        tcp = {"address": f"127.0.0.1:{api}", "cluster_address": f"127.0.0.1:{cluster}", "tls_disable": True}
        # Paths are relative to the working directory: the folder, whatever the root directory.
        return {
            "storage": {"raft": {"path": "raft", "node_id": "sandbox", "performance_multiplier": "1"}},
            "listener": [{"unix": unix_listener}, {"tcp": tcp}],
            "api_addr": f"http://127.0.0.1:{api}",
            "cluster_addr": f"http://127.0.0.1:{cluster}",
            **({"disable_mlock": True} if self._product == "vault" else {"audit": _AUDIT}),
            "ui": False,
            "log_level": "warn",
            # A drill reads lease entries; nobody else reaches this node.
            "raw_storage_endpoint": True,
        }

    def _start(self) -> None:
        (self._folder / "config.json").write_text(json.dumps(self._configuration()))
        command = [str(self._binary.absolute()), "server", "-config=config.json"]
        if self._seal_config is not None:
            command.append(f"-config={self._seal_config.absolute()}")
        home = Path("/") if self._root == self._folder else self._folder
        # setpriv (util-linux) ends the node when this process dies, kill -9 included.
        death = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._namespace(), *death, *self._shut_in(), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "LC_ALL": "C.UTF-8",
                    "HOME": str(home),
                    # It stages snapshots there.
                    "TMPDIR": str(home / "tmp"),
                },
                start_new_session=True,
            )

    def _namespace(self) -> list[str]:
        if not self._isolated:
            return []
        # A normal user may make one inside a user namespace, where the kernel and the container allow it.
        command = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
        tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
        if tried.returncode != 0:
            raise PreconditionError(
                f"no network namespace can be made ({tried.stderr.strip() or 'unshare failed'})",
                where="sandbox",
                remedy="run drills where `unshare --net` is allowed; or, where this host cannot reach production's "
                "databases, set sandbox.network: open",
            )
        return command

    def _shut_in(self) -> list[str]:
        return [sys.executable, "-I", "-S", isolate.__file__, str(self._root)] if self._isolated else []

    def _wait(self) -> None:
        """Until its API answers."""
        assert self._process is not None
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"the throwaway node did not start: {self._last_words()}", where=str(self._folder))
            try:
                with errors_of("sandbox"):
                    self.client().sys.read_seal_status()
                return
            except RecoveryError:
                time.sleep(_POLL_SECONDS)
        raise ServerError(
            f"the throwaway node did not answer in {self._start_seconds:.0f} s: {self._last_words()}",
            where=str(self._folder),
        )

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "rror" in line]
        return " / ".join((telling or lines)[-2:]) or "it said nothing"


def _free_ports() -> list[int]:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in _PORTS]
        return [each.getsockname()[1] for each in held]
