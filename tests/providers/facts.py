"""One row for each preset: what it has to know, and how its vendor's API answers.

What a docstring calls unconfirmed is no expectation here; where an answer needs a status all the same, any would do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Said:
    """An answer of a vendor's API."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    upstream: str
    refused: Said
    limited: Said
    default: Mapping[str, str] = field(default_factory=dict)
    """Fields that are sent where the caller sends none."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Fields that are sent whatever the caller sends."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the preset can't do without."""


def limited(status: int = 429, body: Any = "slow down", **headers: str) -> Said:
    return Said(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


FACTS = {
    "atlassian": Facts(
        "https://api.atlassian.com",
        refused=Said(401, {"code": 401, "message": "Unauthorized"}),
        limited=limited(retry_after="7"),
    ),
    "bitbucket": Facts(
        "https://api.bitbucket.org/2.0",
        refused=Said(401, {"type": "error", "error": {"message": "Access token expired."}}),
        limited=limited(),
    ),
    "discord": Facts(
        "https://discord.com/api/v10",
        refused=Said(401, {"message": "401: Unauthorized", "code": 0}),
        limited=limited(body={"retry_after": 64.57, "global": False}, retry_after="65"),
        fixed={"user-agent": "DiscordBot (https://app.example, 1.0)"},
        arguments={"user_agent": "DiscordBot (https://app.example, 1.0)"},
    ),
    "dropbox": Facts(
        "https://api.dropboxapi.com/2",
        refused=Said(401, {"error_summary": "expired_access_token/...", "error": {".tag": "expired_access_token"}}),
        limited=limited(body={"error": {"reason": {".tag": "too_many_requests"}, "retry_after": 1}}, retry_after="1"),
    ),
    "dropbox_content": Facts(
        "https://content.dropboxapi.com/2",
        refused=Said(401, {"error": {".tag": "invalid_access_token"}}),
        limited=limited(retry_after="1"),
    ),
    "facebook": Facts(
        "https://graph.facebook.com/v25.0",
        refused=Said(400, {"error": {"type": "OAuthException", "code": 190, "error_subcode": 463}}),
        limited=limited(400, {"error": {"type": "OAuthException", "code": 4}}),
        fixed={"accept-encoding": "identity"},
        arguments={"app_secret": "the-app-secret"},
    ),
    "github": Facts(
        "https://api.github.com",
        refused=Said(401, {"message": "Bad credentials"}),
        limited=limited(403, {"message": "API rate limit exceeded"}, x_ratelimit_remaining="0"),
        default={
            "accept": "application/vnd.github+json",
            "user-agent": "idp_middleware",
            "x-github-api-version": "2022-11-28",
        },
    ),
    "gitlab": Facts("https://gitlab.com/api/v4", refused=Said(401, {"message": "401 Unauthorized"}), limited=limited()),
    "google": Facts(
        "https://www.googleapis.com",
        refused=Said(401, {"error": {"code": 401, "status": "UNAUTHENTICATED"}}),
        limited=limited(403, {"error": {"code": 403, "errors": [{"reason": "userRateLimitExceeded"}]}}),
    ),
    "hubspot": Facts("https://api.hubapi.com", refused=Said(401, {"status": "error"}), limited=limited()),
    "linkedin": Facts(
        "https://api.linkedin.com/rest",
        refused=Said(401, {"serviceErrorCode": 401, "status": 401}),
        limited=limited(),
        default={"linkedin-version": "202606", "x-restli-protocol-version": "2.0.0"},
        arguments={"version": "202606"},
    ),
    "microsoft_graph": Facts(
        "https://graph.microsoft.com/v1.0",
        refused=Said(401, {"error": {"code": "InvalidAuthenticationToken"}}),
        limited=limited(503, retry_after="10"),
    ),
    "notion": Facts(
        "https://api.notion.com/v1",
        refused=Said(401, {"object": "error", "status": 401, "code": "unauthorized"}),
        limited=limited(body={"object": "error", "status": 429, "code": "rate_limited"}, retry_after="3"),
        default={"notion-version": "2025-09-03"},
    ),
    "salesforce": Facts(
        "https://*.my.salesforce.com",
        refused=Said(401, [{"errorCode": "INVALID_SESSION_ID"}]),
        limited=limited(403, [{"errorCode": "REQUEST_LIMIT_EXCEEDED"}]),
    ),
    "slack": Facts(
        "https://slack.com/api",
        refused=Said(200, {"ok": False, "error": "token_expired"}),
        limited=limited(body={"ok": False, "error": "ratelimited"}, retry_after="30"),
        fixed={"accept-encoding": "identity"},
    ),
    "spotify": Facts(
        "https://api.spotify.com/v1",
        refused=Said(401, {"error": {"status": 401, "message": "The access token expired"}}),
        limited=limited(body={"error": {"status": 429, "reason": "QUOTA_EXCEEDED"}}, retry_after="4"),
    ),
    "twitch": Facts(
        "https://api.twitch.tv/helix",
        refused=Said(401, {"error": "Unauthorized", "status": 401}),
        limited=limited(ratelimit_reset="1700000000"),
        fixed={"client-id": "the-client"},
        arguments={"client_id": "the-client"},
    ),
    "x": Facts(
        "https://api.x.com/2",
        refused=Said(401, {"title": "Unauthorized", "status": 401}),
        limited=limited(x_rate_limit_reset="1700000000"),
    ),
    "x_oauth1": Facts(
        "https://api.x.com",
        refused=Said(401, {"errors": [{"code": 89, "message": "Invalid or expired token."}]}),
        limited=limited(x_rate_limit_reset="1700000000"),
        arguments={"consumer_key": "the-consumer", "consumer_secret": "the-consumer-secret"},
    ),
    "zoom": Facts(
        "https://api.zoom.us/v2",
        refused=Said(401, {"code": 124, "message": "Access token is expired."}),
        limited=limited(),
    ),
}
