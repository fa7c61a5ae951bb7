"""Every option of a run, once: a file a group, a frozen dataclass in it, the docstring under a field as its help.

`TransferConfig` is the whole. Each dataclass checks its own fields; `parsing` reads YAML and the command line's arguments into it,
`options` are the commands, and `plain` gives a config back as nested plain values.
"""

from semalign.config.data import UNTIL_CACHED, DataConfig, Supervise
from semalign.config.evaluation import SERVER, Engine, EvaluationConfig
from semalign.config.layers import AttributionConfig, CacheConfig, PairingConfig
from semalign.config.models import ModelConfig, ServerConfig
from semalign.config.sampling import SamplingConfig
from semalign.config.training import (
    Interface,
    MapName,
    OptimiserConfig,
    RecipeConfig,
    RecipeFields,
    TrainConfig,
)
from semalign.config.transfer import (
    TransferConfig,
    by_name,
    completed,
    decisive,
    differences,
    plain,
    resolve_path,
    to_dict,
    without_names,
)
from semalign.config.values import check_labels

__all__ = [
    "SERVER",
    "UNTIL_CACHED",
    "AttributionConfig",
    "CacheConfig",
    "DataConfig",
    "Engine",
    "EvaluationConfig",
    "Interface",
    "MapName",
    "ModelConfig",
    "OptimiserConfig",
    "PairingConfig",
    "RecipeConfig",
    "RecipeFields",
    "SamplingConfig",
    "ServerConfig",
    "Supervise",
    "TrainConfig",
    "TransferConfig",
    "by_name",
    "check_labels",
    "completed",
    "decisive",
    "differences",
    "plain",
    "resolve_path",
    "to_dict",
    "without_names",
]
