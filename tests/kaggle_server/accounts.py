"""Tokens: Kaggle's answers to whose one is, and new ones for a login."""

from typing import Any

from .reply import RefusedError, Reply, as_json
from .state import World

Body = dict[str, Any]
TOKEN_PREFIX = "KGAT_"
LASTS_S = 43_200


def introspect_token(world: World, body: Body) -> Reply:
    """Return the owner of an access token."""
    if not is_active(world, str(body.get("token", ""))):
        return as_json({"active": False})
    return as_json({"active": True, "username": world.username, "userId": 42, "scope": "resources.admin:*"})


def generate_access_token(world: World, body: Body) -> Reply:
    """Give a new access token to whoever has the lasting one of a login."""
    if body.get("refreshToken") not in world.logins:
        raise RefusedError(world.login_refusal, "Invalid refresh token")
    if body.get("apiVersion") != "API_VERSION_V1" or body.get("expirationDuration") != f"{LASTS_S}s":
        raise RefusedError(400, "Bad request")
    token = f"{TOKEN_PREFIX}login{len(world.granted)}_of_{world.username}"
    world.granted.append(token)
    return as_json({"token": token, "expiresIn": LASTS_S, "userName": world.username, "userId": 42})


def is_active(world: World, token: str) -> bool:
    """Return whether a token has neither expired nor been revoked."""
    return token.startswith(TOKEN_PREFIX) and token not in world.expired_tokens


METHODS = {
    "security.OAuthService/IntrospectToken": introspect_token,
    "users.AccountService/GenerateAccessToken": generate_access_token,
}
