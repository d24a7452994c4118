"""JSON web tokens: signature, algorithm, issuer, audience and life are all checked. The only user of PyJWT.

A token names its algorithm and its key; neither is believed. The algorithm must be on the configured list,
and the key must be of the type that this algorithm uses: a public key is never a shared secret.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard

try:
    import jwt
except ImportError as missing:
    from featurestore.errors import MissingDependencyError

    raise MissingDependencyError(
        "web tokens need PyJWT", hint="pip install 'featurestore[serve]'"
    ) from missing

from featurestore.errors import AccessDeniedError
from featurestore.serve.config import JwtSettings
from featurestore.serve.key_sets import KeySource, KeyText, key_source

_SKEW_S: Final = 30
_RSA_BITS_MIN: Final = 2048
_TIME_MAX_S: Final = 2**53  # neither infinite nor NaN, and exact as a float
# What a key must be for an algorithm: its type, and its curve where that type has several.
_FITS: Final[Mapping[str, tuple[str, str | None]]] = {
    **{f"{family}{size}": ("RSA", None) for family in ("RS", "PS") for size in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
_TYPES: Final = ("JWT", "AT+JWT")


class TokenVerifier:
    """Tells good tokens from bad ones.

    Attributes:
        changes: Grows when keys change; a token that was found good under old keys is to be verified again.
    """

    def __init__(self, settings: JwtSettings, keys: KeySource | None = None) -> None:
        """Take settings; keys come from where they say unless given.

        Raises:
            ServerError: the key set's file cannot be read.
        """
        self._settings = settings
        self._source = keys
        if keys is None and settings.jwks is not None:
            self._source = key_source(settings.jwks, refresh_s=settings.refresh_s)
        self._keys: tuple[Mapping[str, Any], ...] = ()
        self._read = -1
        self.changes = 0
        self.refresh()

    def refresh(self) -> int:
        """Take over keys that changed; returns `changes`."""
        if self._source is not None:
            found = self._source.current()
            if found.changes != self._read:
                self._keys, self._read = _keys_in(found), found.changes
                self.changes += 1
        return self.changes

    def claims(self, text: str, now_s: int) -> dict[str, Any]:
        """Return a token's claims.

        Args:
            now_s: The time, seconds since 1970 UTC.

        Raises:
            AccessDeniedError: anything about the token is not as it must be.
        """
        try:
            header = jwt.get_unverified_header(text)
            algorithm = self._algorithm(header)
            claims: dict[str, Any] = jwt.decode(
                text,
                self._key(header, algorithm),
                algorithms=[algorithm],
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                options={
                    "require": ["exp", "iss", "aud"],
                    # A token's life is told by the server's own clock, below.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_sub": False,
                    "verify_jti": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            denial = _denied(_why(error))
            raise denial from error
        _check_life(claims, now_s)
        return claims

    def _algorithm(self, header: Mapping[str, Any]) -> str:
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._settings.algorithms:
            denial = _denied(f"its algorithm is not one of {', '.join(self._settings.algorithms)}")
            raise denial
        if str(header.get("typ", "JWT")).upper() not in _TYPES:
            denial = _denied("it is not a web token")
            raise denial
        return algorithm

    def _key(self, header: Mapping[str, Any], algorithm: str) -> Any:
        """Return the one key that a token may be signed with."""
        if self._settings.secret is not None:
            return self._settings.secret
        named = header.get("kid")
        fitting = [
            key for key in self._keys if _fits(key, algorithm) and (named is None or key.get("kid") == named)
        ]
        if len(fitting) != 1:
            if self._source is not None and not fitting:
                self._source.look_again()
            denial = _denied("its key is not known" if not fitting else "it does not name its key")
            raise denial
        return jwt.PyJWK(dict(fitting[0]), algorithm=algorithm)


def _keys_in(found: KeyText) -> tuple[Mapping[str, Any], ...]:
    """Read a key set; text that is none holds no keys, and so lets no one in."""
    try:
        keys = json.loads(found.text or "{}").get("keys", [])
    except (ValueError, AttributeError, RecursionError):
        return ()
    if not isinstance(keys, Sequence):
        return ()
    return tuple(key for key in keys if isinstance(key, dict) and _is_for_signatures(key))


def _is_for_signatures(key: Mapping[str, Any]) -> bool:
    operations = key.get("key_ops", ["verify"])
    if key.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return False
    # base64url: four characters hold 24 bits.
    return key.get("kty") != "RSA" or len(str(key.get("n", "")).rstrip("=")) * 6 >= _RSA_BITS_MIN


def _fits(key: Mapping[str, Any], algorithm: str) -> bool:
    kind, curve = _FITS[algorithm]
    return (
        key.get("kty") == kind
        and (curve is None or key.get("crv") == curve)
        and key.get("alg", algorithm) == algorithm
    )


def _check_life(claims: Mapping[str, Any], now_s: int) -> None:
    expires, begins = claims.get("exp"), claims.get("nbf", 0)
    if not _is_time(expires) or not _is_time(begins):
        denial = _denied("it has no expiry")
        raise denial
    # A token's life is the guard's business, no row's visibility.
    if not now_s < expires or now_s + _SKEW_S < begins:
        denial = _denied("it is not valid now")
        raise denial


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _TIME_MAX_S


def _why(error: Exception) -> str:
    reasons = (
        (jwt.InvalidSignatureError, "its signature is wrong"),
        ((jwt.InvalidAudienceError, jwt.InvalidIssuerError), "it is for someone else"),
        (jwt.MissingRequiredClaimError, "it lacks exp, iss or aud"),
    )
    return next((why for kinds, why in reasons if isinstance(error, kinds)), "it cannot be read")


def _denied(why: str) -> AccessDeniedError:
    return AccessDeniedError(f"the bearer token is refused: {why}", unknown=1)
