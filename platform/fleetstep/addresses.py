"""The tracker's address in plain Python: which ones there are, and how to print one.

Here, because a configuration is checked without importing MLflow.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
ADVICE = (
    "leave it out for an SQLite file beside the runs, or write sqlite:////absolute/path.db or "
    "http://host:5000 (MLflow no longer keeps runs in plain folders)"
)
# Whatever a query calls its secret: `sslpassword`, `access_token`, `api-key`, ...
_SECRET_NAME = re.compile(r"pass|token|secret|api_?key|access_?key|credential")


def is_tracker(uri: str) -> bool:
    """Whether MLflow keeps runs at such an address: a database or a server, not a folder."""
    # The text before the first colon alone: the rest may hold a password.
    scheme = uri.partition(":")[0].partition("+")[0] if ":" in uri else ""
    return scheme in SCHEMES or uri == "databricks"


def redacted(text: str, uri: str | None = None) -> str:
    """`text` without the secrets of `uri` (by default `text` itself is the address): the password,
    a user name that stands alone (a token, then), and query values named like secrets.
    """
    for secret in sorted(_secrets(text if uri is None else uri), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _secrets(uri: str) -> set[str]:
    try:
        parts = urlsplit(uri)
    except ValueError:
        return set()
    asked = [
        value
        for key, value in parse_qsl(parts.query)
        if _SECRET_NAME.search(key.lower().replace("-", "_"))
    ]
    alone = parts.username if parts.password is None else None
    raw = {*asked, parts.password or "", alone or ""}
    return (raw | {unquote(secret) for secret in raw} | {quote(secret) for secret in raw}) - {""}
