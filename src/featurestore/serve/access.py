"""Who calls and what they may do: bearer tokens, roles, default deny."""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from featurestore.core.clock import Clock
from featurestore.errors import AccessDeniedError
from featurestore.serve.config import ServerConfig, Token, jwt_settings

if TYPE_CHECKING:
    from featurestore.serve.pyjwt_tokens import TokenVerifier

Metadata = Callable[[], Sequence[tuple[str, Any]]]
_SCHEME: Final = "bearer "


@dataclass(frozen=True, slots=True)
class Caller:
    """Someone who calls.

    Attributes:
        roles: What they may do.
        views: The views they may touch; `None`: all.
    """

    principal: str
    roles: frozenset[str]
    views: frozenset[str] | None = None

    def check(self, role: str, views: Iterable[str] = ()) -> None:
        """Check that the caller may act on views (by name, without version).

        Raises:
            AccessDeniedError: not with these roles, or not on one of these views.
        """
        if role not in self.roles and "admin" not in self.roles:
            raise AccessDeniedError(f"{self.principal} may not {role}", hint=f"needs role {role!r}")
        if self.views is not None:
            for view in views:
                if view not in self.views:
                    raise AccessDeniedError(f"{self.principal} may not {role} {view}")


ANYONE: Final = Caller("anyone", frozenset({"read", "push", "admin"}))


class Access:
    """Knows callers by their bearer token; without tokens configured, everyone may do everything.

    Checked before any work; tokens are compared by hash in constant time, and JSON web tokens are verified
    once and remembered until they expire or the issuer's keys change.
    """

    def __init__(self, config: ServerConfig, clock: Clock) -> None:
        """Take the configured tokens.

        Raises:
            ServerError: the issuer's key set is a file that cannot be read.
        """
        self._tokens = config.tokens
        self._verifier = None
        if config.jwt is not None:
            from featurestore.serve.pyjwt_tokens import TokenVerifier  # noqa: PLC0415 -- only where it is used

            self._verifier = TokenVerifier(jwt_settings(config.jwt))
        self._clock = clock
        self._verified: dict[str, tuple[float, Caller]] = {}
        self._keys_changed = 0
        self.is_open = not config.tokens and config.jwt is None

    def caller(self, metadata: Metadata) -> Caller:
        """Return who calls.

        Raises:
            AccessDeniedError: no token, or not one that is known.
        """
        if self.is_open:
            return ANYONE
        for name, value in metadata():
            if name == "authorization" and isinstance(value, str):
                return self.known(value)
        raise AccessDeniedError(
            "the call has no bearer token", hint="send authorization: Bearer …", unknown=1
        )

    def known(self, authorization: str) -> Caller:
        """Return who an `Authorization` header stands for.

        Raises:
            AccessDeniedError: it is not a known bearer token.
        """
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise AccessDeniedError("the authorization is not a bearer token", unknown=1)
        text = authorization[len(_SCHEME) :].strip()
        found = self._token(text)
        if found is not None:
            return Caller(found.principal, frozenset(found.roles), frozenset(found.views) or None)
        if self._verifier is not None and text.count(".") == 2:
            return self._of_jwt(self._verifier, text)
        raise AccessDeniedError("the bearer token is not known", unknown=1)

    def _token(self, text: str) -> Token | None:
        digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
        found = None
        for token in self._tokens:
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found

    def _of_jwt(self, verifier: "TokenVerifier", text: str) -> Caller:
        changes = verifier.refresh()
        if changes != self._keys_changed:
            self._verified.clear()
            self._keys_changed = changes
        now_s = self._clock.now_ns() // 1_000_000_000
        remembered = self._verified.get(text)
        if remembered is not None and now_s < remembered[0]:
            return remembered[1]
        claims = verifier.claims(text, now_s)
        caller = Caller(
            str(claims.get("sub", "")),
            _texts(claims, "roles") if "roles" in claims else frozenset(),
            _texts(claims, "views") if "views" in claims else None,
        )
        if len(self._verified) > 10_000:
            self._verified.clear()
        self._verified[text] = (claims["exp"], caller)
        return caller


def _texts(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return a claim that restricts its holder; one that cannot be read grants nothing.

    Raises:
        AccessDeniedError: it is no list of texts.
    """
    given = claims[name]
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise AccessDeniedError(f"the token's claim {name!r} is no list of texts", unknown=1)
    return frozenset(given)
