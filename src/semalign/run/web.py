"""Requests to servers that speak JSON: retried with patience, refused in one sentence."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from semalign.config import ServerConfig
from semalign.errors import ConfigError, ModelError

FIRST_WAIT = 0.5  # seconds before a request is sent again; doubled each time
LONGEST_WAIT = 30.0
HERE = ("127.0.0.1", "localhost", "::1")


def json_from(
    url: str, body: dict[str, Any] | None, *, patience: float, key: str | None = None, retries: int = 0
) -> Any:
    """What an address answers to a request, with a body if there is one.

    Args:
        patience: seconds for one answer.
        key: sent as a bearer token.
        retries: how often a request is sent again that got no answer, or an answer that says to come back (429, 5xx).

    Raises:
        ModelError: it refuses, or gives no answer; the key is in no sentence.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, data, headers)
    # What runs on this machine is asked without a proxy.
    is_here = urllib.parse.urlsplit(url).hostname in HERE
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if is_here else []))
    for tried in range(retries + 1):
        try:
            with opener.open(request, timeout=patience) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = _body(error).decode(errors="replace")
            fault = f"{url}: the server refused a request ({error.code}: {said:.300})."
            if error.code != 429 and error.code < 500:
                raise ModelError(fault) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            fault = f"{url}: the server gave no answer ({error})."
        if tried < retries:
            time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2**tried))
    times = f" It was asked {retries + 1} times." if retries else ""
    raise ModelError(fault + times)


def _body(error: urllib.error.HTTPError) -> bytes:
    """What a refusal says, as far as it came."""
    try:
        return error.read()
    except http.client.IncompleteRead as cut:
        return cut.partial
    except (OSError, http.client.HTTPException):
        return b""


@dataclass(frozen=True)
class Server:
    """A server that holds a model, by the root of its address."""

    root: str
    patience: float = 3600.0
    """Seconds for one answer, those that wait before it included."""
    retries: int = 0
    key_variable: str | None = None
    """Name of the environment variable that holds its key."""
    model: str | None = None

    @classmethod
    def of(cls, options: ServerConfig) -> Server:
        """The one of a config.

        Raises:
            ConfigError: the environment variable of the key is not set.
        """
        if options.key_variable and options.key_variable not in os.environ:
            raise ConfigError(
                f"teacher.server.key_variable: expected the name of an environment variable that is set, got {options.key_variable!r}; "
                "export it with the server's key."
            )
        root = str(options.url).rstrip("/").removesuffix("/v1")
        return cls(root, retries=options.retries, key_variable=options.key_variable, model=options.model)

    @cached_property
    def name(self) -> str:
        """The model's name there.

        Raises:
            ModelError: the server lists none.
        """
        if self.model:
            return self.model
        try:
            return str(self.json("/v1/models")["data"][0]["id"])
        except (LookupError, TypeError):
            raise ModelError(
                f"{self.root}/v1/models: expected a list of models, got another answer; name the model."
            ) from None

    def json(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What it answers at a path; see `json_from`."""
        key = os.environ.get(self.key_variable) if self.key_variable else None
        return json_from(self.root + path, body, patience=self.patience, key=key, retries=self.retries)
