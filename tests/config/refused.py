"""What a config says of a value that cannot be."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from semalign.errors import ConfigError


def assert_refused(make: Callable[[], object], said: str) -> None:
    """The sentence begins with the field, what was expected and what came, and ends with what to do."""
    with pytest.raises(ConfigError, match="^" + re.escape(said)) as caught:
        make()
    assert str(caught.value).endswith("; change it in the config or on the command line.")
