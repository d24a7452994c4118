"""Who may do what: default deny, checked before any work."""

import base64
import hashlib
import hmac
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.serve.certificates import certificates
from tests.serve.conftest import NOW, OPENER
from tests.serve.house import quotes

from featurestore.core.clock import ManualClock
from featurestore.errors import AccessDeniedError, DefinitionError, OnlineStoreError, OnlineStoreTimeoutError
from featurestore.serve.access import Access
from featurestore.serve.config import Limits, ServerConfig, Tls, Token, check_config, config_from_json
from featurestore.serve.flight_client import BulkClient
from featurestore.serve.grpc_client import OnlineClient
from featurestore.serve.server import ServerHandle, serve

JWT = {"secret": "a secret that no one will guess, of 32 bytes", "issuer": "us", "audience": "serving"}
ROWS = quotes([{"symbol": "A", "ts": 990, "bid": 1.0}])


def token(text: str, *roles: str, views: tuple[str, ...] = ()) -> Token:
    return Token(sha256=hashlib.sha256(text.encode()).hexdigest(), principal=text, roles=roles, views=views)


TOKENS = (
    token("reader", "read", views=("quote",)),
    token("pusher", "push"),
    token("narrow", "push", views=("quote",)),
    token("boss", "admin"),
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHandle]:
    folder = str(tmp_path_factory.mktemp("online"))
    with serve(folder, now=NOW, opener=OPENER, tokens=TOKENS, http_address="127.0.0.1:0") as server:
        yield server


def read(server: ServerHandle, name: str | None, features: Any = ("quote",)) -> object:
    with OnlineClient(server.address, token=name) as client:
        return client.get_online_features(list(features), {"symbol": ["A"]}).num_rows


def push(server: ServerHandle, name: str | None) -> object:
    with OnlineClient(server.address, token=name) as client:
        return client.push("quotes", ROWS).applied


def test_what_the_roles_allow_is_done(guarded: ServerHandle) -> None:
    assert read(guarded, "reader") == 1
    assert push(guarded, "pusher")
    assert read(guarded, "boss", ("quote", "flow", "last")) == 1
    assert push(guarded, "boss")


@pytest.mark.parametrize(
    ("name", "act"),
    [
        (None, read),
        ("", read),
        ("Reader", read),
        ("pusher", read),
        ("reader", push),
        ("narrow", push),  # the source feeds views that it may not touch
        (None, push),
    ],
)
def test_anything_else_is_denied(guarded: ServerHandle, name: str | None, act: Any) -> None:
    with pytest.raises(AccessDeniedError):
        act(guarded, name)


def test_a_view_behind_another_feature_needs_its_own_permission(guarded: ServerHandle) -> None:
    with pytest.raises(AccessDeniedError, match="may not read flow"):
        read(guarded, "reader", ("quote", "flow:n"))
    refused = pytest.raises(AccessDeniedError, match="may not read")
    with OnlineClient(guarded.address, token=TOKENS[0].principal) as client, refused:
        client.get_online_features("model", {"symbol": ["A"]})


@pytest.mark.parametrize(
    ("header", "status"),
    [(None, 401), ("Bearer nobody", 401), ("Basic x", 401), ("Bearer pusher", 403), ("Bearer reader", 200)],
)
def test_http_checks_the_same_tokens(guarded: ServerHandle, header: str | None, status: int) -> None:
    assert guarded.http_address is not None
    connection = http.client.HTTPConnection(guarded.http_address, timeout=10)
    body = json.dumps({"features": ["quote:bid"], "entities": {"symbol": ["A"]}})
    connection.request(
        "POST", "/get-online-features", body, {} if header is None else {"Authorization": header}
    )
    assert connection.getresponse().status == status
    connection.close()


def jwt(claims: dict[str, Any], *, secret: str = JWT["secret"], alg: str = "HS256") -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    signed = f"{part({'alg': alg, 'typ': 'JWT'})}.{part(claims)}"
    mac = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


GOOD = {"iss": "us", "aud": "serving", "exp": 2000, "sub": "alice", "roles": ["read"]}


def test_a_good_web_token_says_who_calls_until_it_expires() -> None:
    clock = ManualClock(1000 * 10**9)
    access = Access(ServerConfig(root="", jwt=JWT), clock)
    caller = access.known(f"Bearer {jwt(GOOD)}")
    assert (caller.principal, caller.roles) == ("alice", frozenset({"read"}))
    assert access.known(f"bearer {jwt(GOOD)}") == caller
    clock.time_ns = 2000 * 10**9
    with pytest.raises(AccessDeniedError, match="not valid now"):
        access.known(f"Bearer {jwt(GOOD)}")


@pytest.mark.parametrize(
    "text",
    [
        jwt(GOOD, secret=JWT["issuer"]),
        jwt(GOOD, alg="none"),
        jwt(GOOD, alg="HS512"),
        jwt({**GOOD, "iss": "them"}),
        jwt({**GOOD, "aud": "other"}),
        jwt({**GOOD, "exp": 999}),
        jwt({k: v for k, v in GOOD.items() if k != "exp"}),
        jwt({**GOOD, "exp": "2000"}),
        jwt({**GOOD, "nbf": 1500}),
        jwt(GOOD)[:-2],
        "a.b.c",
        "..",
        jwt(GOOD).rpartition(".")[0] + ".",
        "é.é.é",
    ],
    ids=range(14),
)
def test_a_web_token_with_any_flaw_is_refused(text: str) -> None:
    access = Access(ServerConfig(root="", jwt=JWT), ManualClock(1000 * 10**9))
    with pytest.raises(AccessDeniedError):
        access.known(f"Bearer {text}")


def test_a_configuration_crosses_to_workers_whole() -> None:
    config = ServerConfig(root="r", tokens=TOKENS, tls=Tls(certificate="c", key="k"), jwt=JWT, now_ns=7)
    config = check_config(config)
    assert config_from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "wrong",
    [
        {"sha256": "secret"},
        {"sha256": "A" * 64},
        {"sha256": None},
        {"principal": 5},
        {"roles": "read"},
        {"roles": None},
        {"views": "quote"},
        {"views": None},
        {"views": [1]},
    ],
    ids=str,
)
def test_a_token_that_cannot_be_meant_is_refused_and_never_shown(wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"sha256": "a" * 64, "principal": "p", "roles": ("read",)}
    with pytest.raises(DefinitionError) as refused:
        Token(**given | wrong)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": ["127.0.0.1"]},
        {"port": 70_000},
        {"http_port": "6566"},
        {"workers": "2"},
        {"workers": 0},
        {"now_ns": "2024-01-01"},
        {"limits": {"rows": 5}},
        {"limits": Limits(rows=0)},
        {"limits": Limits(deadline_s=float("nan"))},
        {"tls": "server.pem"},
        {"tokens": ["secret"]},
        {"jwt": "https://issuer"},
        {"jwt": {"issuer": "i", "audience": "a", "secret": 5}},
        {"jwt": {"issuer": "i", "audience": "a", "secret": "s" * 32, "algorithms": "HS256"}},
        {"log_calls": "yes"},
        {"reload_s": 0},
        {"answer_fraction": 2},
        {"answer_log": 5},
    ],
    ids=str,
)
def test_a_configuration_of_wrong_kinds_is_refused_before_a_process_starts(wrong: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        check_config(replace(ServerConfig(root="r"), **wrong))


@pytest.mark.parametrize("address", [None, 5, ["127.0.0.1:1"], {}], ids=str)
def test_a_client_is_told_where_its_server_is(address: Any) -> None:
    for client in (OnlineClient, BulkClient):
        with pytest.raises(DefinitionError, match="address"):
            client(address)
    with pytest.raises(DefinitionError, match="channels"):
        OnlineClient("127.0.0.1:1", channels="2")  # type: ignore[arg-type]


def test_a_token_without_a_known_role_is_a_mistake() -> None:
    for roles in ((), ("write",)):
        with pytest.raises(DefinitionError, match="roles"):
            check_config(ServerConfig(root="", tokens=(token("x", *roles),)))


def test_tls_and_mutual_tls_and_a_renewed_certificate(tmp_path: Path) -> None:
    folder = tmp_path / "pem"
    folder.mkdir()
    files = certificates(folder)
    tls = Tls(certificate=files["server.pem"], key=files["server.key"], client_ca=files["ca.pem"])
    authority = Path(files["ca.pem"]).read_bytes()
    mine: dict[str, Any] = {
        "root_certificates": authority,
        "private_key": Path(files["client.key"]).read_bytes(),
        "certificate": Path(files["client.pem"]).read_bytes(),
    }
    with serve(str(tmp_path / "online"), now=NOW, opener=OPENER, tls=tls) as server:
        with OnlineClient(server.address, **mine) as client:
            assert client.push("quotes", ROWS).applied
        without: list[dict[str, Any]] = [{}, {"root_certificates": authority}]
        for options in without:
            refused = pytest.raises((OnlineStoreError, OnlineStoreTimeoutError))
            with OnlineClient(server.address, timeout_s=2.0, retries=0, **options) as client, refused:
                client.list_features()
        renewed = certificates(folder)
        time.sleep(0.01)
        with OnlineClient(
            server.address,
            root_certificates=Path(renewed["ca.pem"]).read_bytes(),
            private_key=Path(renewed["client.key"]).read_bytes(),
            certificate=Path(renewed["client.pem"]).read_bytes(),
        ) as client:
            assert client.get_online_features(["quote:bid"], {"symbol": ["A"]}).to_dict()["bid"] == [1.0]


def fingerprint(address: str, files: dict[str, str]) -> bytes:
    """Connect over TLS and return the certificate that the HTTP front shows."""
    context = ssl.create_default_context(cafile=files["ca.pem"])
    context.load_cert_chain(files["client.pem"], files["client.key"])
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        shown = secure.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def test_the_http_front_takes_over_a_renewed_certificate_and_keeps_its_connections(tmp_path: Path) -> None:
    folder = tmp_path / "pem"
    folder.mkdir()
    files = certificates(folder)
    tls = Tls(certificate=files["server.pem"], key=files["server.key"], client_ca=files["ca.pem"])
    options: dict[str, Any] = {"now": NOW, "opener": OPENER, "tls": tls, "reload_s": 0.05}
    with serve(str(tmp_path / "online"), http_address="127.0.0.1:0", **options) as server:
        assert server.http_address is not None
        first = fingerprint(server.http_address, files)
        context = ssl.create_default_context(cafile=files["ca.pem"])
        context.load_cert_chain(files["client.pem"], files["client.key"])
        context.check_hostname = False
        open_before = http.client.HTTPSConnection(server.http_address, timeout=10, context=context)
        open_before.request("GET", "/health")
        assert open_before.getresponse().read()
        Path(files["server.pem"]).write_text("no certificate")  # half a renewal: the old one stays
        time.sleep(0.2)
        assert fingerprint(server.http_address, files) == first
        certificates(folder)  # a new authority too: the old client's certificate is no longer accepted
        until = time.monotonic() + 10
        while True:
            try:
                assert fingerprint(server.http_address, files) != first
                break
            except ssl.SSLError:
                assert time.monotonic() < until
                time.sleep(0.05)
        open_before.request("GET", "/health")
        assert open_before.getresponse().status == 200
        open_before.close()
