"""Web tokens signed with a private key: what a token says of its algorithm and key is never believed."""

import contextlib
import http.server
import json
import random
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.serve.test_fuzz import mutated

from featurestore.core.clock import ManualClock
from featurestore.errors import AccessDeniedError, DefinitionError, ServerError
from featurestore.serve.access import Access
from featurestore.serve.config import ServerConfig, check_config
from featurestore.serve.key_sets import KeyUrl

NOW_S = 1000
CLAIMS = {"iss": "us", "aud": "serving", "exp": 2000, "sub": "alice", "roles": ["read"]}
KEYS: Mapping[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHER = rsa.generate_private_key(65537, 2048)
ALGORITHMS: Mapping[str, Any] = jwt.algorithms.get_default_algorithms()


def public(algorithm: str, key: Any, **more: object) -> dict[str, Any]:
    """A public key as a JSON web key."""
    text = ALGORITHMS[algorithm].to_jwk(key.public_key())
    return {**json.loads(text), "kid": algorithm, **more}


def key_set(*keys: Mapping[str, Any]) -> str:
    return json.dumps({"keys": list(keys)})


SET = key_set(*(public(name, key) for name, key in KEYS.items()))


def signed(algorithm: str, key: Any = None, *, kid: str | None = None, **claims: Any) -> str:
    headers = {"kid": algorithm if kid is None else kid} if kid != "" else {}
    return jwt.encode({**CLAIMS, **claims}, key or KEYS[algorithm], algorithm=algorithm, headers=headers)


def access(folder: Path, text: str = SET, **settings: object) -> Access:
    path = folder / "keys.json"
    path.write_text(text)
    given = {"issuer": "us", "audience": "serving", "jwks": str(path), **settings}
    return Access(ServerConfig(root="", jwt=given), ManualClock(NOW_S * 10**9))


def refused(guard: Access, token: str) -> str:
    with pytest.raises(AccessDeniedError) as caught:
        guard.known(f"Bearer {token}")
    assert caught.value.context["unknown"]
    return caught.value.message


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_signed_with_a_private_key_says_who_calls(algorithm: str, tmp_path: Path) -> None:
    guard = access(tmp_path)
    caller = guard.known(f"Bearer {signed(algorithm)}")
    assert (caller.principal, caller.roles) == ("alice", frozenset({"read"}))


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "them"},
        {"aud": "other"},
        {"exp": 999},
        {"exp": True},
        {"nbf": 1500},
        {"exp": None},
        {"aud": None},
    ],
)
def test_claims_are_checked_whatever_the_signature(claims: dict[str, Any], tmp_path: Path) -> None:
    refused(access(tmp_path), signed("RS256", **claims))


def test_a_public_key_is_never_a_shared_secret(tmp_path: Path) -> None:
    pem = KEYS["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    # PyJWT refuses to sign so; an attacker does not ask it.
    forged = ALGORITHMS["HS256"].sign
    head, body, _ = jwt.encode(CLAIMS, "x" * 32, algorithm="HS256", headers={"kid": "RS256"}).split(".")
    mac = jwt.utils.base64url_encode(forged(f"{head}.{body}".encode(), pem)).decode()
    assert "algorithm" in refused(access(tmp_path), f"{head}.{body}.{mac}")


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (jwt.encode(CLAIMS, "", algorithm="none"), "algorithm"),
        (signed("RS256", OTHER), "signature"),
        (signed("PS256", KEYS["RS256"], kid="RS256"), "algorithm"),
        (signed("RS512", KEYS["RS256"], kid="RS256"), "algorithm"),
        (signed("RS256", kid="ES256"), "key is not known"),
        (signed("RS256", kid="nobody"), "key is not known"),
        (signed("RS256")[:-4] + "AAAA", "signature"),
        (signed("RS256").rpartition(".")[0] + ".", "signature"),
        ("e30.e30.e30", "algorithm"),
        ("!.!.!", "cannot be read"),
    ],
    ids=range(10),
)
def test_a_token_that_is_not_what_it_says_is_refused(token: str, why: str, tmp_path: Path) -> None:
    assert why in refused(access(tmp_path), token)


def test_a_key_without_a_name_is_found_only_where_there_is_no_choice(tmp_path: Path) -> None:
    one = access(tmp_path, key_set(public("RS256", KEYS["RS256"])))
    assert one.known(f"Bearer {signed('RS256', kid='')}").principal == "alice"
    two = access(tmp_path, key_set(public("RS256", KEYS["RS256"]), public("RS256", OTHER, kid="other")))
    assert "does not name its key" in refused(two, signed("RS256", kid=""))
    assert two.known(f"Bearer {signed('RS256', OTHER, kid='other')}").principal == "alice"


@pytest.mark.parametrize(
    "key",
    [
        public("RS256", KEYS["RS256"], use="enc"),
        public("RS256", KEYS["RS256"], alg="RS512"),
        public("RS256", KEYS["RS256"], key_ops=["encrypt"]),
        public("RS256", rsa.generate_private_key(65537, 1024)),  # noqa: S505 -- that it is weak is the point
        {"kty": "oct", "k": "c2VjcmV0", "kid": "RS256", "alg": "RS256"},
        {"kty": "RSA", "kid": "RS256"},
        {"kty": "RSA", "kid": "RS256", "n": "A" * 400, "e": "!"},
    ],
    ids=["for encryption", "of another algorithm", "not to verify", "short", "shared", "empty", "noise"],
)
def test_a_key_that_is_not_for_the_signature_is_not_used(key: dict[str, Any], tmp_path: Path) -> None:
    refused(access(tmp_path, key_set(key)), signed("RS256"))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"keys": 3}', '{"keys": [1, null]}'])
def test_a_set_that_is_none_lets_no_one_in(text: str, tmp_path: Path) -> None:
    assert "not known" in refused(access(tmp_path, text), signed("RS256"))


def test_a_key_file_that_changes_counts_at_once_also_for_tokens_seen_before(tmp_path: Path) -> None:
    guard = access(tmp_path)
    old, new = signed("RS256"), signed("RS256", OTHER)
    assert guard.known(f"Bearer {old}").principal == "alice"
    assert "signature" in refused(guard, new)
    (tmp_path / "keys.json").write_text(key_set(public("RS256", OTHER)) + " ")
    assert guard.known(f"Bearer {new}").principal == "alice"
    assert "signature" in refused(guard, old)
    (tmp_path / "keys.json").unlink()  # the last keys stay
    assert guard.known(f"Bearer {new}").principal == "alice"


def test_hostile_tokens_and_claims_are_refused_and_nothing_else(tmp_path: Path) -> None:
    guard = access(tmp_path)
    draw = random.Random(11)  # noqa: S311 -- a test's dice
    for algorithm in KEYS:
        good = signed(algorithm)
        for _ in range(400):
            token = mutated(draw, good.encode()).decode("latin-1")
            if token != good:
                with pytest.raises(AccessDeniedError):
                    guard.known(f"Bearer {token}")
    odd: list[Any] = [None, True, -1, 1e308, 10**400, float("nan"), "", [], [[]], {}, {"a": []}, "\ud800"]
    for name in ("iss", "aud", "exp", "nbf", "sub", "roles", "views", "iat", "jti"):
        for value in [*odd, "x" * 5000]:
            body = json.dumps({**CLAIMS, name: value}).encode()
            token = jwt.api_jws.encode(body, KEYS["EdDSA"], algorithm="EdDSA", headers={"kid": "EdDSA"})
            if name in {"iss", "aud", "exp"}:
                refused(guard, token)
            else:
                with contextlib.suppress(AccessDeniedError):
                    caller = guard.known(f"Bearer {token}")
                    assert caller.roles <= {"read"}
                    assert caller.views is None or name == "views"


@pytest.mark.parametrize("views", ["quote", "", None, {"quote": True}, ["quote", 1], [["quote"]], True])
def test_a_restriction_that_cannot_be_read_grants_nothing(views: Any, tmp_path: Path) -> None:
    assert "'views'" in refused(access(tmp_path), signed("EdDSA", views=views))


def test_a_token_touches_the_views_it_names_and_without_the_claim_all(tmp_path: Path) -> None:
    guard = access(tmp_path)
    guard.known(f"Bearer {signed('EdDSA')}").check("read", ["quote", "flow"])
    one = guard.known(f"Bearer {signed('EdDSA', views=['quote'])}")
    one.check("read", ["quote"])
    for caller, view in ((one, "flow"), (guard.known(f"Bearer {signed('EdDSA', views=[])}"), "quote")):
        with pytest.raises(AccessDeniedError, match=f"may not read {view}"):
            caller.check("read", [view])


class Issuer(http.server.BaseHTTPRequestHandler):
    """Publishes a key set, or what else a test puts there."""

    text = ""
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("location", "/keys")
            self.end_headers()
            return
        body = type(self).text.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its base's name
        """Say nothing."""


@pytest.fixture
def issuer() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Issuer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Issuer.text, Issuer.asked = SET, 0
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_keys_come_from_a_url_and_a_new_one_is_asked_for_once(issuer: str, tmp_path: Path) -> None:
    guard = access(tmp_path, jwks=f"{issuer}/keys")
    assert guard.known(f"Bearer {signed('ES256')}").principal == "alice"
    Issuer.text = key_set(public("RS256", OTHER, kid="next"))
    token = signed("RS256", OTHER, kid="next")
    for _ in range(20):  # strangers cannot make the server ask at will: it asked a moment ago
        refused(guard, token)
    assert Issuer.asked == 1


def test_a_url_is_asked_again_when_it_is_due_or_a_key_is_missing() -> None:
    now, texts = [0.0], ["one"]
    answered = threading.Event()

    def fetch(url: str) -> str:
        assert url == "https://issuer/keys"
        answered.set()
        if not texts[0]:
            raise OSError("down")
        return texts[0]

    def told() -> str:
        answered.wait(5)
        while keys._asking:
            pass
        answered.clear()
        return keys.current().text

    keys = KeyUrl("https://issuer/keys", refresh_s=300, fetch=fetch, timer=lambda: now[0])
    assert told() == "one"
    texts[0] = "two"
    now[0] = 4.9
    keys.look_again()
    assert not answered.is_set()
    now[0] = 5.0
    keys.look_again()
    assert told() == "two"
    texts[0] = "three"
    now[0] = 304.9
    assert keys.current().text == "two"
    assert not answered.is_set()
    now[0] = 305.0
    keys.current()
    assert told() == "three"
    texts[0] = ""  # an issuer that is down keeps its keys
    now[0] = 605.0
    keys.current()
    assert told() == "three"
    assert keys.current().changes == 3


def test_an_issuer_that_is_down_or_sends_one_elsewhere_gives_no_keys(issuer: str, tmp_path: Path) -> None:
    for url in (f"{issuer}/moved", "http://127.0.0.1:1/keys"):
        assert "not known" in refused(access(tmp_path, jwks=url), signed("RS256"))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"secret": "s" * 32}, "not both"),
        ({"jwks": None}, "a secret or a key set"),
        ({"jwks": None, "secret": "short"}, "fewer than 32 bytes"),
        ({"algorithms": ["HS256"]}, "'HS256'"),
        ({"algorithms": ["none"]}, "'none'"),
        ({"jwks": None, "secret": "s" * 32, "algorithms": ["RS256"]}, "'RS256'"),
        ({"jwks": "http://example.com/keys"}, "https"),
        ({"jwks": "ftp://example.com/keys"}, "https"),
        ({"issuer": ""}, "issuer"),
        ({"keys": 1}, "keys"),
    ],
    ids=range(10),
)
def test_settings_that_would_not_be_safe_are_refused(settings: dict[str, Any], match: str) -> None:
    given = {"issuer": "us", "audience": "serving", "jwks": "keys.json", **settings}
    with pytest.raises(DefinitionError, match=match):
        check_config(ServerConfig(root="", jwt=given))


def test_a_key_file_that_is_missing_is_told_at_the_start(tmp_path: Path) -> None:
    given = {"issuer": "us", "audience": "serving", "jwks": str(tmp_path / "none.json")}
    with pytest.raises(ServerError, match=r"none\.json"):
        Access(ServerConfig(root="", jwt=given), ManualClock(0))
