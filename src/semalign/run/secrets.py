"""What a run writes down for others to read holds no credentials: they may stand in URLs and on command lines."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_URL = re.compile(
    r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<user>[^\s/?#'\"<>]*@)?(?P<place>[^\s?#'\"<>]*)(?P<query>[?#][^\s'\"<>]*)?"
)
_TOKEN = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-|AKIA)[A-Za-z0-9_-]{12,}")
_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
SHORTEST = 8
"""Characters that the value of an environment variable needs to be told from ordinary text."""
HIDDEN = "***"
"""What stands in a secret's place."""


def redacted(value: Any) -> Any:
    """A plain value in whose texts user names, passwords and queries of URLs are hidden, and so are tokens of a known form and
    the values of environment variables that are named like secrets."""
    if isinstance(value, str):
        return _redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted(inner) for key, inner in value.items()}
    return [redacted(inner) for inner in value] if isinstance(value, list | tuple) else value


def _redacted(text: str) -> str:
    for name, secret in os.environ.items():
        if _NAMES.search(name) and len(secret) >= SHORTEST:
            text = text.replace(secret, HIDDEN)
    return _TOKEN.sub(HIDDEN, _URL.sub(_address, text))


def _address(url: re.Match[str]) -> str:
    user, query = url["user"] and f"{HIDDEN}@", url["query"] and f"?{HIDDEN}"
    return f"{url['scheme']}{user or ''}{url['place']}{query or ''}"
