"""JSON web tokens, HS256: the signature, issuer, audience, expiry and algorithm are all checked."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from featurestore.errors import AccessDeniedError

_SKEW_S = 30


def check_jwt(text: str, settings: Mapping[str, str], now_s: int) -> dict[str, Any]:
    """Return a token's claims.

    Args:
        settings: `secret`, `issuer` and `audience`, all of them required.
        now_s: The time, seconds since 1970 UTC.

    Raises:
        AccessDeniedError: anything about the token is not as it must be.
    """
    head, body, signature = text.split(".")
    header = _json(head)
    if header.get("alg") != "HS256" or header.get("typ", "JWT") != "JWT":
        denial = _denied("its algorithm is not HS256")
        raise denial
    wanted = hmac.new(settings["secret"].encode(), f"{head}.{body}".encode(), hashlib.sha256).digest()
    if not hmac.compare_digest(wanted, _decoded(signature)):
        denial = _denied("its signature is wrong")
        raise denial
    claims = _json(body)
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if claims.get("iss") != settings["issuer"] or settings["audience"] not in audiences:
        denial = _denied("it is for someone else")
        raise denial
    expires, begins = claims.get("exp"), claims.get("nbf", 0)
    if not isinstance(expires, (int, float)) or not isinstance(begins, (int, float)):
        denial = _denied("it has no expiry")
        raise denial
    # A token's life is the guard's business, no row's visibility.
    if now_s >= expires or now_s + _SKEW_S < begins:
        denial = _denied("it is not valid now")
        raise denial
    return claims


def _json(part: str) -> dict[str, Any]:
    try:
        found = json.loads(_decoded(part))
    except (ValueError, RecursionError) as error:
        denial = _denied("it is not JSON")
        raise denial from error
    if not isinstance(found, dict):
        denial = _denied("it is not JSON")
        raise denial
    return found


def _decoded(part: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError) as error:
        denial = _denied("it is not base64")
        raise denial from error


def _denied(why: str) -> AccessDeniedError:
    return AccessDeniedError(f"the bearer token is refused: {why}", unknown=1)
