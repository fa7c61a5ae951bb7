"""The options of SemAlignTrainer: transformers' own beside SemAlign's, and each checked where it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import semalign
from semalign import SemAlignConfig
from semalign.config import CacheConfig, PairingConfig, RecipeConfig
from semalign.errors import ConfigError

from .small import arguments


def test_options_are_transformers_own_and_print_as_plain_values(tmp_path: Path) -> None:
    args = SemAlignConfig(str(tmp_path), recipe="cosine", pairing={"num_layers": 2})
    assert args.learning_rate == semalign.methods.resolve(args.recipe).learning_rate
    assert json.loads(args.to_json_string())["pairing"]["num_layers"] == 2
    assert SemAlignConfig(str(tmp_path), learning_rate=3e-4).learning_rate == 3e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pairing": {"selection": "deepest"}}, r"pairing\.selection"),
        ({"pairing": PairingConfig(match="CKA")}, r"pairing\.match"),  # type: ignore[arg-type]
        ({"pairing": {"num_layers": "some"}}, r"pairing\.num_layers"),
        ({"pairing": 6}, "expected fields such as"),
        ({"recipe": {"signals": "shufled"}}, r"recipe\.signals"),
        ({"recipe": {"layer_schedule": "linear"}}, r"recipe\.layer_schedule"),
        ({"recipe": RecipeConfig(map="rigde")}, r"recipe\.map"),  # type: ignore[arg-type]
        ({"cache": CacheConfig(dtype="int32")}, r"cache\.dtype"),  # type: ignore[arg-type]
        ({"supervise": "completions"}, r"data\.supervise"),
        ({"thinking": "remove"}, r"data\.thinking"),
        ({"max_length": "long"}, r"data\.max_length"),
        ({"push_to_hub": True}, "hub_model_id: expected ORG/NAME"),
        ({"push_to_hub": True, "hub_model_id": "a/b/c"}, "hub_model_id: expected a name such as ORG/NAME"),
        ({"hub_model_id": "a/b", "lr_scheduler_type": "cosine_with_min_lr"}, r"train\.lr_scheduler_type"),
    ],
    ids=str,
)
def test_an_option_s_value_is_checked_as_in_a_config_file(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        arguments(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_smoothing_factor": 0.9}, r'0\.0 .* got 0\.9; set recipe=\{"label_smoothing": \.\.\.\}'),
        ({"neftune_noise_alpha": 5}, "None .* got 5; leave it out"),
        ({"train_sampling_strategy": "group_by_length"}, "'random' .* got 'group_by_length'; leave it out"),
        ({"per_device_eval_batch_size": 4}, r'8 .* got 4; set cache=\{"batch_size": \.\.\.\}'),
        ({"average_tokens_across_devices": False}, "True .* got False; leave it out"),
        ({"bf16_full_eval": True}, "False .* got True; set bf16"),
        ({"fp16_full_eval": True}, "False .* got True; set fp16"),
        ({"torch_compile": True}, "False .* got True; leave it out"),
        ({"use_liger_kernel": True}, "False .* got True; leave it out"),
        ({"remove_unused_columns": True}, "False .* got True; leave it out"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_of_transformers_that_does_nothing_here_is_refused(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^{next(iter(options))}: expected {said}"):
        arguments(tmp_path, **options)
