"""Logins to real OpenBao nodes: every kind, the active node, tokens that live as long as the work, TLS, plain errors.

Kubernetes is a stand-in: OpenBao's own method asks a small server in this process for its TokenReview of one JWT.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import ipaddress
import json
import logging
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lab.bao import OpenBao
from lab.bao_cluster import OpenBaoCluster
from lab.errors import LabError
from lab.ports import free_port
from recovery.connections import Connection, from_environment
from recovery.errors import ConfigurationError, PreconditionError, RecoveryError, VaultError, VaultUnreachable
from recovery.vault import session as sessions
from recovery.vault.session import Session, addresses, log_in, renewing
from recovery.vault.stream import snapshot_of
from tests.support import new_folder

ROLE, SECRET = "recovery-backup", "p@ss/w:rd?#%&+= ü"
WRONG = "a-secret-that-is-wrong"
POLICY = """
path "kv/app" { capabilities = ["read"] }
path "sys/storage/raft/snapshot" { capabilities = ["read"] }
"""
APPROLE: dict[str, Any] = {"auth_type": "approle"}
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
SERVICE_ACCOUNT = "system:serviceaccount:recovery:backup"


def jwt_of(account: str) -> str:
    """A token of a service account; its signature is for the API server to judge."""
    namespace, name = account.split(":")[2:]
    inner = {"namespace": namespace, "serviceaccount": {"name": name, "uid": "4f1b"}}
    times = {"iat": 1700000000, "nbf": 1700000000, "exp": 4102444800}
    claims = times | {"iss": "kubernetes", "sub": account, "kubernetes.io": inner}
    parts: list[bytes] = [
        json.dumps({"alg": "RS256"}).encode(),
        json.dumps(claims).encode(),
        b"signature" + name.encode(),
    ]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


JWT, OTHER_JWT = jwt_of(SERVICE_ACCOUNT), jwt_of("system:serviceaccount:recovery:other")
FORGED_JWT = JWT + "AA"
SECRETS = {SECRET, WRONG, JWT, OTHER_JWT, FORGED_JWT}


@pytest.fixture(autouse=True)
def nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    for secret in SECRETS:
        assert secret not in caplog.text


# A private CA, and small servers of a test.


@dataclass
class Authority:
    """A private CA in a folder, which gives out certificates."""

    folder: Path
    name: str = "ca"

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Recovery test {self.name}")])
        self.ca_cert = self.folder / f"{self.name}.pem"
        made = self._builder(self._subject, self._key, days=1).add_extension(x509.BasicConstraints(True, None), True)
        self._write(self.ca_cert, made.sign(self._key, hashes.SHA256()))

    def certify(self, name: str, *subjects: x509.GeneralName, days: int = 1) -> tuple[Path, Path]:
        """The certificate and key of a server, as files."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(subject, key, days=days).add_extension(x509.SubjectAlternativeName(subjects), False)
        certificate, key_file = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        self._write(certificate, made.sign(self._key, hashes.SHA256()))
        form = serialization.PrivateFormat.PKCS8
        key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        return certificate, key_file

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, days: int) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days))
        )

    @staticmethod
    def _write(path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with new_folder() as folder:
        yield Authority(folder)


@dataclass
class Answering:
    """A small HTTP server of a test: `answer` gets the path and the body, `headers` are those of each request."""

    answer: Callable[[str, Any], object]
    headers: list[dict[str, str]]
    address: str = ""


@contextlib.contextmanager
def answering(
    answer: Callable[[str, Any], object], *, certificate: tuple[Path, Path] | None = None
) -> Iterator[Answering]:
    found = Answering(answer, [])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.headers.append(dict(self.headers))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            content = json.dumps(answer(self.path, json.loads(body or "null"))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        # A client that gives up is no fault of the server's.
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        found.address = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def review(path: str, body: Any) -> object:
    """Kubernetes' TokenReview: it knows two service accounts, and no other token."""
    accounts = {JWT: SERVICE_ACCOUNT, OTHER_JWT: "system:serviceaccount:recovery:other"}
    account = accounts.get(body["spec"]["token"])
    status = {"authenticated": True, "user": {"username": account, "uid": "4f1b", "groups": []}}
    assert path == "/apis/authentication.k8s.io/v1/tokenreviews"
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "status": status if account else {"authenticated": False, "error": "invalid bearer token"},
    }


@pytest.fixture(scope="module")
def node(authority: Authority) -> Iterator[OpenBao]:
    certificate = authority.certify("kubernetes", LOOPBACK)
    with (
        new_folder() as folder,
        answering(review, certificate=certificate) as kubernetes,
        OpenBao(folder / "vault") as started,
    ):
        SECRETS.add(started.root_token)
        started.write_policy("backup", POLICY)
        started.request("POST", "sys/mounts/kv", body={"type": "kv"})
        started.request("POST", "kv/app", body={"of": "root"})
        for mount in ("approle", "machines"):
            started.request("POST", f"sys/auth/{mount}", body={"type": "approle"})
        make_role(started)
        make_role(started, mount="machines")
        for mount in ("kubernetes", "cluster/a"):
            started.request("POST", f"sys/auth/{mount}", body={"type": "kubernetes"})
            settings = {
                "kubernetes_host": kubernetes.address,
                "kubernetes_ca_cert": authority.ca_cert.read_text(),
                "token_reviewer_jwt": JWT,
                "disable_local_ca_jwt": True,
            }
            started.request("POST", f"auth/{mount}/config", body=settings)
            bound = {"bound_service_account_names": "backup", "bound_service_account_namespaces": "recovery"}
            started.request("POST", f"auth/{mount}/role/{ROLE}", body=bound | {"token_policies": ["backup"]})
        started.request("POST", "sys/namespaces/team")
        started.request("PUT", "team/sys/policies/acl/backup", body={"policy": POLICY})
        started.request("POST", "team/sys/mounts/kv", body={"type": "kv"})
        started.request("POST", "team/kv/app", body={"of": "team"})
        started.request("POST", "team/sys/auth/approle", body={"type": "approle"})
        make_role(started, namespace="team/")
        yield started


def make_role(node: OpenBao, *, mount: str = "approle", namespace: str = "", **settings: Any) -> None:
    path = f"{namespace}auth/{mount}/role/{ROLE}"
    with contextlib.suppress(LabError):
        node.request("DELETE", path)
    node.request("POST", path, body={"token_policies": ["backup"], "token_ttl": "1h"} | settings)
    node.request("POST", f"{path}/role-id", body={"role_id": ROLE})
    if settings.get("bind_secret_id", True):
        node.request("POST", f"{path}/custom-secret-id", body={"secret_id": SECRET})


@pytest.fixture
def role(node: OpenBao) -> Iterator[Callable[..., None]]:
    """Changes the AppRole for one test."""
    yield lambda **settings: make_role(node, **settings)
    make_role(node)


def connection_to(node: OpenBao, **fields: Any) -> Connection:
    connection = Connection(id="app038_vault", type="vault", host=node.host, port=node.port)
    return replace(connection, **fields)


def by_approle(node: OpenBao, **extra: Any) -> Connection:
    return connection_to(node, login=ROLE, password=SECRET, extra=APPROLE | extra)


def by_kubernetes(node: OpenBao, folder: Path, jwt: str, **extra: Any) -> Connection:
    path = folder / "jwt"
    path.write_text(jwt)
    return connection_to(
        node, extra={"auth_type": "kubernetes", "kubernetes_role": ROLE, "kubernetes_jwt_path": str(path)} | extra
    )


def made_token(node: OpenBao, **settings: Any) -> str:
    wanted = {"policies": ["backup"], "ttl": "1h"} | settings
    token = str(node.request("POST", "auth/token/create-orphan", body=wanted)["auth"]["client_token"])
    SECRETS.add(token)
    return token


def accessor_of(session: Session) -> str:
    SECRETS.add(session.client.token)
    return str(session.client.auth.token.lookup_self()["data"]["accessor"])


def alive(node: OpenBao, accessor: str) -> bool:
    try:
        node.request("POST", "auth/token/lookup-accessor", body={"accessor": accessor})
    except LabError:
        return False
    return True


def read(connection: Connection) -> str:
    with log_in(connection) as session:
        session.check()
        return str(session.client.read("kv/app")["data"]["of"])


def error_of(connection: Connection, kind: type[RecoveryError]) -> str:
    """The line that a login ends with. Neither it nor its trace holds a secret."""
    with pytest.raises(RecoveryError) as caught, log_in(connection):
        pytest.fail("it has logged in")
    assert type(caught.value) is kind
    line = str(caught.value)
    assert "\n" not in line and " -> " in line
    trace = "".join(traceback.format_exception(caught.value))
    assert not [secret for secret in SECRETS if secret in trace or secret in line]
    return line


# What a connection says: token, AppRole, Kubernetes.


def test_a_token_logs_in_and_is_not_revoked(node: OpenBao) -> None:
    token = made_token(node)
    with log_in(connection_to(node, password=token)) as session:
        accessor = accessor_of(session)
    assert alive(node, accessor)
    assert read(connection_to(node, password=token, extra={"auth_type": "token"})) == "root"


@pytest.mark.parametrize("ending", ["", "\n", "\r\n\n"])
def test_a_token_comes_from_a_file(node: OpenBao, folder: Path, ending: str) -> None:
    path = folder / "token"
    path.write_bytes((made_token(node) + ending).encode())
    assert read(connection_to(node, extra={"token_path": str(path)})) == "root"


def test_an_agent_that_writes_the_file_anew_is_followed(node: OpenBao, folder: Path) -> None:
    path = folder / "token"
    connection = connection_to(node, extra={"token_path": str(path)})
    for _ in range(2):
        token = made_token(node)
        path.write_text(token)
        assert read(connection) == "root"
        node.request("POST", "auth/token/revoke", body={"token": token})
    assert "the token is not valid here" in error_of(connection, PreconditionError)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read (no such file or directory) -> correct token_path"),
        (b"", "is empty -> correct token_path"),
        (b" \n", "is empty -> correct token_path"),
        (b"\xff\xfe", "cannot be read (not a text) -> correct token_path"),
        (f"{WRONG}\n{WRONG}\n".encode(), "the token holds a space, a line break or another character that none has"),
    ],
)
def test_a_token_file_that_holds_none_is_named(node: OpenBao, folder: Path, content: bytes | None, told: str) -> None:
    path = folder / "token"
    if content is not None:
        path.write_bytes(content)
    line = error_of(connection_to(node, extra={"token_path": str(path)}), ConfigurationError)
    assert line.startswith("connection app038_vault: ") and told in line


def test_a_directory_is_no_token_file(node: OpenBao, folder: Path) -> None:
    line = error_of(connection_to(node, extra={"token_path": str(folder)}), ConfigurationError)
    assert f"{folder} cannot be read (is a directory)" in line


def test_no_token_at_all_is_said(node: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where another program's token is at hand."""
    monkeypatch.setenv("VAULT_TOKEN", node.root_token)
    assert error_of(connection_to(node), ConfigurationError) == (
        "connection app038_vault: there is no token -> set the password, or token_path in extra"
    )


def test_a_wrong_token_is_refused_in_one_line(node: OpenBao) -> None:
    assert error_of(connection_to(node, password=WRONG), PreconditionError) == (
        f"connection app038_vault, {node.address}: Vault refuses: the token is not valid here, or may not look itself up "
        "(permission denied) -> correct the connection's secret, or give its role the policy include/config/vault/backup.hcl"
    )


@pytest.mark.parametrize("ending", ["\n", " and more", "€"])
def test_a_token_that_no_header_can_carry_is_never_quoted(node: OpenBao, ending: str) -> None:
    line = error_of(connection_to(node, password=WRONG + ending), ConfigurationError)
    assert "the token holds a space, a line break or another character that none has" in line


@pytest.mark.parametrize("mount", [None, "", "approle", "machines", "machines/"])
def test_an_approle_logs_in_by_its_mount(node: OpenBao, mount: str | None) -> None:
    assert read(by_approle(node, **({} if mount is None else {"auth_mount_point": mount}))) == "root"


def test_role_id_and_secret_id_may_stand_in_extra(node: OpenBao) -> None:
    extra = APPROLE | {"role_id": ROLE, "secret_id": SECRET}
    assert read(connection_to(node, extra=extra)) == "root"


def test_a_role_without_a_secret_id_needs_none(node: OpenBao, role: Callable[..., None]) -> None:
    role(bind_secret_id=False, token_bound_cidrs=["127.0.0.1/32"], secret_id_bound_cidrs=[])
    assert read(connection_to(node, login=ROLE, extra=APPROLE)) == "root"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"password": ""}, "approle (missing secret_id)"),
        ({"password": WRONG}, "approle (invalid role or secret ID)"),
        ({"login": "nobody"}, "approle (invalid role or secret ID)"),
        ({"extra": APPROLE | {"auth_mount_point": "nowhere"}}, "nowhere (permission denied)"),
    ],
)
def test_an_approle_that_is_refused_is_one_line(node: OpenBao, fields: dict[str, Any], told: str) -> None:
    assert error_of(replace(by_approle(node), **fields), PreconditionError) == (
        f"connection app038_vault, {node.address}: Vault refuses: no approle login at auth/{told}"
        " -> correct its login (the role id), its password (the secret id) or auth_mount_point"
    )


def test_an_approle_without_a_role_id_is_said(node: OpenBao) -> None:
    line = error_of(replace(by_approle(node), login=""), ConfigurationError)
    assert line.endswith("approle needs a role id -> put it into the login")


@pytest.mark.parametrize("mount", [None, "cluster/a"])
def test_a_service_account_logs_in_by_its_mount(node: OpenBao, folder: Path, mount: str | None) -> None:
    extra = {} if mount is None else {"auth_mount_point": mount}
    with log_in(by_kubernetes(node, folder, f"{JWT}\n", **extra)) as session:
        accessor = accessor_of(session)
        assert session.client.read("kv/app")["data"] == {"of": "root"}
    assert not alive(node, accessor)


@pytest.mark.parametrize(
    ("jwt", "told"),
    [
        (FORGED_JWT, "permission denied"),
        (OTHER_JWT, "service account name not authorized"),
        (WRONG, "permission denied"),
    ],
    ids=["forged", "another", "none"],
)
def test_another_service_account_is_refused_in_one_line(node: OpenBao, folder: Path, jwt: str, told: str) -> None:
    assert error_of(by_kubernetes(node, folder, jwt), PreconditionError) == (
        f"connection app038_vault, {node.address}: Vault refuses: no kubernetes login at auth/kubernetes ({told})"
        " -> correct kubernetes_role or auth_mount_point, or bind the role to this service account"
    )


@pytest.mark.parametrize(
    ("extra", "kind", "told"),
    [
        ({"kubernetes_role": ""}, ConfigurationError, "kubernetes needs a role -> set kubernetes_role in its extra"),
        ({"kubernetes_role": "nobody"}, PreconditionError, "no kubernetes login at auth/kubernetes ("),
        ({"kubernetes_jwt_path": "/nowhere/jwt"}, ConfigurationError, "/nowhere/jwt cannot be read (no such file"),
        # Where a pod has its own, and this machine has none.
        ({"kubernetes_jwt_path": ""}, ConfigurationError, "kubernetes.io/serviceaccount/token cannot be read (no such"),
    ],
)
def test_what_kubernetes_lacks_is_named(
    node: OpenBao, folder: Path, extra: dict[str, Any], kind: type[RecoveryError], told: str
) -> None:
    assert told in error_of(by_kubernetes(node, folder, JWT, **extra), kind)


def test_an_unknown_auth_type_names_those_that_are_known(node: OpenBao) -> None:
    line = error_of(by_approle(node, auth_type="ldap"), ConfigurationError)
    assert line.endswith("auth_type 'ldap' is not known here -> use token, approle or kubernetes")


def test_a_setting_that_is_no_text_is_named(node: OpenBao) -> None:
    assert "ca_cert is not a text" in error_of(by_approle(node, ca_cert=True), ConfigurationError)


def test_empty_fields_of_airflows_form_are_as_if_absent(node: OpenBao) -> None:
    fields = ("auth_mount_point", "kubernetes_role", "token_path", "namespace", "ca_cert", "use_tls", "role_id")
    assert read(by_approle(node, **dict.fromkeys(fields, ""))) == "root"
    assert read(connection_to(node, password=made_token(node), extra={"auth_type": ""})) == "root"


# From the environment, as Airflow reads it.


def test_a_connection_in_airflows_uri_form_logs_in(node: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"vault://{ROLE}:{quote(SECRET, safe='')}@{node.host}:{node.port}/?auth_type=approle&use_tls=false"
    monkeypatch.setenv("AIRFLOW_CONN_APP038_VAULT", uri)
    assert read(from_environment("app038_vault")) == "root"


def test_a_uri_names_several_hosts_when_they_are_quoted(node: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = quote(f"{node.host}:{free_port()},{node.host}:{node.port}", safe="")
    monkeypatch.setenv(
        "AIRFLOW_CONN_APP038_VAULT", f"vault://{ROLE}:{quote(SECRET, safe='')}@{hosts}/?auth_type=approle"
    )
    assert read(from_environment("app038_vault")) == "root"


@pytest.mark.parametrize("extra_is_text", [False, True])
def test_a_connection_in_json_logs_in(node: OpenBao, monkeypatch: pytest.MonkeyPatch, extra_is_text: bool) -> None:
    document = {
        "conn_type": "vault",
        "host": node.host,
        "port": node.port,
        "login": ROLE,
        "password": SECRET,
        "extra": json.dumps(APPROLE) if extra_is_text else APPROLE,
    }
    monkeypatch.setenv("AIRFLOW_CONN_APP038_VAULT", json.dumps(document))
    assert read(from_environment("app038_vault")) == "root"


def test_proxies_and_netrc_and_vaults_own_variables_are_not_for_this(
    node: OpenBao, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = folder / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    netrc.chmod(0o600)
    nowhere = f"http://127.0.0.1:{free_port()}"
    environment = {"NETRC": str(netrc), "VAULT_TOKEN": WRONG, "VAULT_ADDR": nowhere, "VAULT_NAMESPACE": "team"}
    for name, value in (environment | dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), nowhere)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert read(by_approle(node)) == "root"
    with answering(lambda path, body: {}) as other:
        error_of(connection_to(node, host=other.address, password=WRONG), VaultUnreachable)
        assert other.headers and not [headers for headers in other.headers if "Authorization" in headers]


# The token's life.


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_token_that_a_login_made_is_revoked_whatever_becomes_of_the_work(
    node: OpenBao, error: type[BaseException] | None
) -> None:
    with contextlib.suppress(ValueError, KeyboardInterrupt), log_in(by_approle(node)) as session:
        accessor = accessor_of(session)
        assert alive(node, accessor)
        if error is not None:
            raise error
    assert not alive(node, accessor)


def test_a_node_that_is_sealed_under_way_does_not_hide_how_the_work_ended(node: OpenBao) -> None:
    with pytest.raises(ValueError, match="the work"), log_in(by_approle(node)):
        node.request("PUT", "sys/seal")
        raise ValueError("the work")
    unseal(node)


def unseal(node: OpenBao) -> None:
    node.unseal()
    until(lambda: node.request("GET", "sys/health", token=""))


def until(probe: Callable[[], object], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(LabError, httpx.HTTPError):
            if probe():
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_long_run_outlives_the_lifetime_of_its_token(node: OpenBao, role: Callable[..., None]) -> None:
    role(token_ttl="2s", token_max_ttl="60s")
    with log_in(by_approle(node)) as session:
        accessor = accessor_of(session)
        time.sleep(6)
        session.check()
        assert session.client.read("kv/app")["data"] == {"of": "root"}
    assert not alive(node, accessor)


def test_a_run_that_is_longer_than_the_tokens_maximum_hears_why(node: OpenBao, role: Callable[..., None]) -> None:
    role(token_ttl="2s", token_max_ttl="3s")
    with log_in(by_approle(node)) as session:
        session.check()
        with pytest.raises(VaultError) as caught:
            until(session.check, seconds=10)
    assert str(caught.value) == (
        f"{node.address}: the token could not be renewed: its maximum lifetime is reached"
        " -> raise token_max_ttl of its role above the longest run"
    )


def test_a_token_that_is_revoked_under_way_is_lost(node: OpenBao, role: Callable[..., None]) -> None:
    role(token_ttl="2s", token_max_ttl="60s")
    with log_in(by_approle(node)) as session:
        node.request("POST", "auth/token/revoke-accessor", body={"accessor": accessor_of(session)})
        with pytest.raises(VaultError, match=r"the token could not be renewed: Vault refuses: .*permission denied -> "):
            until(session.check, seconds=10)


def test_tokens_that_need_no_renewal_are_fine(node: OpenBao, role: Callable[..., None]) -> None:
    for token in (node.root_token, made_token(node, renewable=False), made_token(node, type="batch")):
        before = threading.active_count()
        with log_in(connection_to(node, password=token)) as session:
            assert threading.active_count() == before
            session.check()
            assert session.client.read("kv/app")["data"] == {"of": "root"}
    role(token_type="batch")
    assert read(by_approle(node)) == "root"


def test_a_token_that_may_not_look_itself_up_is_one_line(node: OpenBao) -> None:
    token = made_token(node, no_default_policy=True)
    line = error_of(connection_to(node, password=token), PreconditionError)
    assert "or may not look itself up" in line and "include/config/vault/backup.hcl" in line


@pytest.mark.parametrize(("unreachable", "lost"), [(3, False), (100, True)])
def test_a_vault_that_is_out_of_reach_is_asked_again_until_the_lifetime_is_over(unreachable: int, lost: bool) -> None:
    asked: list[float] = []
    problems: list[RecoveryError] = []
    began = time.monotonic()

    def renew() -> int:
        asked.append(time.monotonic() - began)
        if len(asked) <= unreachable:
            raise VaultUnreachable("no answer", where="a node", remedy="see that it runs")
        return 600

    with renewing(renew, lifetime=5, what="the token", lost=problems):
        time.sleep(6.5)
    assert [str(problem) for problem in problems] == (
        ["a node: the token could not be renewed: no answer -> see that it runs"] if lost else []
    )
    assert asked[-1] >= 5 if lost else len(asked) == 4


# Namespaces.


def test_a_login_in_a_namespace_reads_there(node: OpenBao) -> None:
    with log_in(by_approle(node, namespace="team")) as session:
        accessor = accessor_of(session)
        assert session.client.read("kv/app")["data"] == {"of": "team"}
    with pytest.raises(LabError):
        node.request("POST", "team/auth/token/lookup-accessor", body={"accessor": accessor})


def test_a_snapshot_from_a_namespace_is_refused_with_what_helps(node: OpenBao) -> None:
    with log_in(by_approle(node, namespace="team")) as session, pytest.raises(VaultError) as caught:
        list(snapshot_of(session.client))
    assert str(caught.value) == (
        f"{node.address}: Vault answers: operation unavailable in namespaces"
        " -> remove namespace from the connection: snapshots exist in the root namespace only"
    )


@pytest.mark.parametrize(
    ("namespace", "kind", "told"),
    [
        ("nowhere", PreconditionError, "namespace not found) -> correct namespace in the connection's extra"),
        ("te\nam", ConfigurationError, "the namespace holds a space, a line break or another character that none has"),
    ],
)
def test_a_namespace_that_is_not_there_is_named(
    node: OpenBao, namespace: str, kind: type[RecoveryError], told: str
) -> None:
    assert told in error_of(by_approle(node, namespace=namespace), kind)


# Addresses.


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"host": "a"}, ["http://a:8200"]),
        ({"host": "a", "port": 9}, ["http://a:9"]),
        ({"host": "a, b:7,c ,", "port": 9}, ["http://a:9", "http://b:7", "http://c:9"]),
        ({"host": "[::1]"}, ["http://[::1]:8200"]),
        ({"host": "[::1]:9"}, ["http://[::1]:9"]),
        ({"type": "vaults", "host": "a"}, ["https://a:8200"]),
        ({"type": "http", "host": "a"}, ["http://a:8200"]),
        ({"type": "https", "host": "a", "port": 443}, ["https://a:443"]),
        ({"host": "a", "extra": {"use_tls": True}}, ["https://a:8200"]),
        ({"host": "a", "extra": {"use_tls": "Yes"}}, ["https://a:8200"]),
        ({"type": "vaults", "host": "a", "extra": {"use_tls": "false"}}, ["http://a:8200"]),
        ({"type": "vaults", "host": "a", "extra": {"use_tls": ""}}, ["https://a:8200"]),
        ({"host": "https://a/"}, ["https://a"]),
        ({"host": "https://a/vault/", "port": 9}, ["https://a:9/vault"]),
        ({"host": "https://a:7,http://b,c", "port": 9}, ["https://a:7", "http://b:9", "http://c:9"]),
    ],
)
def test_hosts_ports_and_types_become_urls(fields: dict[str, Any], found: list[str]) -> None:
    assert addresses(Connection(**({"id": "app038_vault", "type": "vault"} | fields))) == found


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"host": ""}, "the connection names no host -> set its host and port"),
        ({"host": " , "}, "the connection names no host -> set its host and port"),
        ({"host": "::1"}, "its host is not one -> "),
        ({"host": "a:port"}, "its host is not one -> "),
        ({"host": "ftp://a"}, "its host is not one -> "),
        ({"host": "http://"}, "its host is not one -> "),
        ({"host": "a:"}, "its host is not one -> "),
        ({"host": f"https://root:{WRONG}@a"}, "its host is not one -> "),
        # Were it taken for false, the secret would go out in clear.
        ({"host": "a", "extra": {"use_tls": "ture"}}, "use_tls is 'ture' -> write true or false"),
    ],
)
def test_a_host_that_is_none_is_a_mistake_in_the_connection(fields: dict[str, Any], told: str) -> None:
    connection = Connection(**({"id": "app038_vault", "type": "vault"} | fields))
    assert error_of(connection, ConfigurationError).startswith(f"connection app038_vault: {told}")


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("no-such-host.invalid", "no answer ("),
        ("a..b", "no answer ("),
        ("a b", "no answer ("),
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(node: OpenBao, host: str, told: str) -> None:
    assert told in error_of(connection_to(node, host=host, password=WRONG), VaultUnreachable)


def test_the_second_host_is_asked_where_the_first_is_dead(node: OpenBao) -> None:
    with answering(lambda path, body: {}) as other:
        hosts = f"{node.host}:{free_port()},{other.address},{node.address}"
        assert read(replace(by_approle(node), host=hosts)) == "root"


def test_hosts_that_are_all_dead_are_all_named(node: OpenBao) -> None:
    ports = free_port(), free_port()
    line = error_of(replace(by_approle(node), host=",".join(f"127.0.0.1:{port}" for port in ports)), VaultUnreachable)
    assert line == (
        f"connection app038_vault: http://127.0.0.1:{ports[0]}: no answer (Connection refused); "
        f"http://127.0.0.1:{ports[1]}: no answer (Connection refused) -> see that it runs"
    )


def test_a_node_that_hangs_is_given_up(node: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_TIMEOUT_SECONDS", (0.2, 0.2))
    hung = threading.Event()
    with answering(lambda path, body: hung.wait(10)) as other:
        line = error_of(connection_to(node, host=other.address, password=WRONG), VaultUnreachable)
        assert read(replace(by_approle(node), host=f"{other.address},{node.address}")) == "root"
        hung.set()
    assert line == f"connection app038_vault: {other.address}: no answer (timed out) -> see that it runs"


def test_what_is_no_vault_is_said(node: OpenBao) -> None:
    with answering(lambda path, body: {"hello": "world"}) as other:
        line = error_of(connection_to(node, host=other.address, password=WRONG), VaultUnreachable)
    assert line.endswith(f"{other.address}: what answers is not a Vault -> correct host and port")


# Nodes that do not serve, and the active one of several.


def test_a_sealed_node_is_one_line(node: OpenBao) -> None:
    node.request("PUT", "sys/seal")
    try:
        line = error_of(by_approle(node), VaultUnreachable)
    finally:
        unseal(node)
    assert line == f"connection app038_vault: {node.address}: it is sealed -> unseal it"


class _Uninitialised(OpenBao):
    def _make_ready(self) -> None:
        self.request("GET", "sys/init", token="")


def test_an_uninitialised_node_is_one_line(folder: Path) -> None:
    with _Uninitialised(folder / "vault") as fresh:
        line = error_of(connection_to(fresh, password=WRONG), VaultUnreachable)
    assert line == (
        f"connection app038_vault: {fresh.address}: it is not initialised -> initialise it, or restore into it"
    )


def test_a_standby_leads_to_the_active_node(vault_cluster: OpenBaoCluster) -> None:
    leader = vault_cluster.wait_for_leader()
    SECRETS.add(vault_cluster.root_token)
    for node in vault_cluster.nodes:
        with log_in(connection_to(node, password=vault_cluster.root_token)) as session:
            assert session.address == leader.address
            assert session.client.sys.read_leader_status()["is_self"]


def test_a_cluster_that_loses_its_leader_is_out_of_reach_until_there_is_another(
    vault_cluster: OpenBaoCluster,
) -> None:
    leader = vault_cluster.wait_for_leader()
    standby, other = vault_cluster.standbys()
    SECRETS.add(vault_cluster.root_token)
    hosts = ",".join(vault_cluster.addresses)
    everywhere = connection_to(leader, host=hosts, password=vault_cluster.root_token)
    try:
        with log_in(everywhere) as session:
            leader.kill()
            standby.kill()
            began = time.monotonic()
            with pytest.raises(VaultUnreachable, match=r"no answer \(Connection refused\) -> see that it runs"):
                list(snapshot_of(session.client))
        line = error_of(everywhere, VaultUnreachable)
        assert time.monotonic() - began < 10
        assert line.startswith(f"connection app038_vault: {vault_cluster.addresses[0]}: ") and other.address in line
        standby.start()
        new = vault_cluster.wait_for_leader()
        with log_in(everywhere) as session:
            assert session.address == new.address != leader.address
    finally:
        for node in (leader, standby):
            if not node.running:
                node.start()


# TLS.


class _TlsOpenBao(OpenBao):
    """A node whose listener speaks TLS, and nothing else."""

    def __init__(self, data_dir: Path, authority: Authority, certificate: tuple[Path, Path]) -> None:
        super().__init__(data_dir)
        self._certificate = certificate
        self._trust = ssl.create_default_context(cafile=authority.ca_cert)
        self._trust.check_hostname = False

    @property
    def address(self) -> str:
        return f"https://{self.host}:{self.port}"

    def request(self, method: str, path: str, *, token: str | None = None, body: object = None) -> dict[str, Any]:
        headers = {"X-Vault-Token": self.root_token if token is None else token}
        with httpx.Client(trust_env=False, verify=self._trust) as client:
            answer = client.request(method, f"{self.address}/v1/{path}", headers=headers, json=body).raise_for_status()
        content: dict[str, Any] = answer.json() if answer.content else {}
        return content

    def _config(self) -> dict[str, object]:
        config: dict[str, Any] = super()._config()
        certificate, key = (str(path) for path in self._certificate)
        config["listener"]["tcp"] |= {"tls_disable": False, "tls_cert_file": certificate, "tls_key_file": key}
        return config


@pytest.fixture(scope="module")
def tls_node(authority: Authority) -> Iterator[OpenBao]:
    """Its certificate is for 127.0.0.1, not for localhost."""
    certificate = authority.certify("node", LOOPBACK)
    with new_folder() as folder, _TlsOpenBao(folder / "vault", authority, certificate) as started:
        SECRETS.add(started.root_token)
        yield started


def over_tls(node: OpenBao, **extra: Any) -> Connection:
    return connection_to(node, type="vaults", password=node.root_token, extra=extra)


@pytest.mark.parametrize(
    "fields", [{"type": "vaults"}, {"type": "https"}, {"type": "vault", "extra": {"use_tls": True}}]
)
def test_a_private_ca_is_trusted_where_it_is_named(
    tls_node: OpenBao, authority: Authority, fields: dict[str, Any]
) -> None:
    extra = fields.pop("extra", {}) | {"ca_cert": str(authority.ca_cert)}
    with log_in(connection_to(tls_node, password=tls_node.root_token, extra=extra, **fields)) as session:
        assert session.address == tls_node.address


def test_a_private_ca_that_is_not_named_is_asked_for(tls_node: OpenBao) -> None:
    assert error_of(over_tls(tls_node), VaultUnreachable) == (
        f"connection app038_vault: {tls_node.address}: no TLS connection (unable to get local issuer certificate)"
        " -> name the private CA's file in ca_cert"
    )


@pytest.mark.parametrize("verify", [False, "false"])
def test_a_certificate_is_checked_whatever_else_extra_says(tls_node: OpenBao, verify: object) -> None:
    assert "-> name the private CA's file in ca_cert" in error_of(over_tls(tls_node, verify=verify), VaultUnreachable)


def test_another_ca_of_the_same_name_is_not_trusted(tls_node: OpenBao, folder: Path) -> None:
    line = error_of(over_tls(tls_node, ca_cert=str(Authority(folder).ca_cert)), VaultUnreachable)
    assert "no TLS connection (" in line and line.endswith("-> name the private CA's file in ca_cert")


def test_a_name_that_the_certificate_does_not_hold_is_said(tls_node: OpenBao, authority: Authority) -> None:
    connection = replace(over_tls(tls_node, ca_cert=str(authority.ca_cert)), host="localhost")
    line = error_of(connection, VaultUnreachable)
    assert "(Hostname mismatch, certificate is not valid for 'localhost')" in line
    assert line.endswith("-> name it as its certificate does, or give it a certificate for this name")


def test_a_certificate_that_has_expired_is_said(authority: Authority) -> None:
    certificate = authority.certify("expired", LOOPBACK, days=-1)
    with answering(lambda path, body: {}, certificate=certificate) as server:
        extra = {"ca_cert": str(authority.ca_cert)}
        connection = Connection(id="app038_vault", host=server.address, password=WRONG, extra=extra)
        line = error_of(connection, VaultUnreachable)
    assert line.endswith("no TLS connection (certificate has expired) -> renew its certificate")


def test_a_ca_file_that_is_missing_or_none_is_named(tls_node: OpenBao, folder: Path) -> None:
    path = folder / "ca.pem"
    line = error_of(over_tls(tls_node, ca_cert=str(path)), ConfigurationError)
    assert line == f"connection app038_vault: {path}: the CA certificate is not there -> correct ca_cert"
    path.write_text("no certificate\n")
    line = error_of(over_tls(tls_node, ca_cert=str(path)), VaultUnreachable)
    assert "no TLS connection (no certificate or crl found)" in line and "ca_cert" in line


def test_tls_against_plain_http_is_said(node: OpenBao) -> None:
    line = error_of(by_approle(node, use_tls=True), VaultUnreachable)
    assert line.endswith("-> it speaks plain http: set use_tls to false, or give it TLS")


def test_plain_http_against_tls_is_said(tls_node: OpenBao) -> None:
    line = error_of(connection_to(tls_node, password=tls_node.root_token), VaultUnreachable)
    assert "Vault answers: Client sent an HTTP request to an HTTPS server." in line
    assert line.endswith("-> set use_tls in the connection's extra")
