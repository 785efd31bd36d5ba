"""Whose request is answered: one to this machine by its own name, from this machine's own pages, with the token.

Host      a page of another site whose name was made to lead to 127.0.0.1 (DNS rebinding) names itself there
Origin    a page of another site that asks names itself there
token     another user of this machine does not know it

Any port is fine: through `ssh -L 9000:127.0.0.1:7007` the browser says localhost:9000.
"""

from __future__ import annotations

import hmac
import re
import secrets

LOCAL = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?", re.IGNORECASE)
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer."""


def new_token() -> str:
    """128 random bits."""
    return secrets.token_urlsafe(16)


def is_host(host: str | None) -> bool:
    """Whether a Host header names this machine as itself."""
    return host is not None and LOCAL.fullmatch(host) is not None


def is_origin(origin: str | None) -> bool:
    """Whether an Origin header is missing, as of what a person typed, or a page of this machine's."""
    if origin is None:
        return True
    scheme, _, host = origin.partition("://")
    return scheme.lower() in ("http", "https") and is_host(host)


def is_token(given: str, token: str) -> bool:
    """Whether it is the token; takes the same time whatever is given."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
