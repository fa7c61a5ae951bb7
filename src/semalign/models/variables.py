"""Values that a tokenizer's chat template sees beside the conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

_NAME = "semalign_template_variables"


def give_variables(tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any]) -> None:
    """Have a tokenizer's chat template see these variables from now on; a saved copy of it does not keep them."""
    setattr(tokenizer, _NAME, dict(values))


def variables_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The variables that `give_variables` gave."""
    return dict(getattr(tokenizer, _NAME, {}))
