"""SemAlign: move knowledge from a larger language model into a smaller one through signals that are stored once.

    import semalign
    config = semalign.load_config("run.yaml")
    run = semalign.transfer(config)

Public names are loaded on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semalign.api import SemAlignConfig, SemAlignTrainer, cache_targets
    from semalign.config import TransferConfig
    from semalign.config.parsing import load_config
    from semalign.errors import SemAlignError
    from semalign.maths.bases import semantic_map
    from semalign.models.decoder import Decoder
    from semalign.models.loading import load
    from semalign.steps.attribute import attribute_layers
    from semalign.steps.pair import pair_layers
    from semalign.steps.pipeline import transfer

_WHERE = {
    "TransferConfig": "semalign.config",
    "SemAlignError": "semalign.errors",
    "semantic_map": "semalign.maths.bases",
    "Decoder": "semalign.models.decoder",
    "load": "semalign.models.loading",
    "transfer": "semalign.steps.pipeline",
    "attribute_layers": "semalign.steps.attribute",
    "pair_layers": "semalign.steps.pair",
    "SemAlignConfig": "semalign.api",
    "SemAlignTrainer": "semalign.api",
    "cache_targets": "semalign.api",
    "load_config": "semalign.config.parsing",
}
__all__ = [
    "Decoder",
    "SemAlignConfig",
    "SemAlignError",
    "SemAlignTrainer",
    "TransferConfig",
    "attribute_layers",
    "cache_targets",
    "load",
    "load_config",
    "pair_layers",
    "semantic_map",
    "transfer",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'semalign' has no attribute {name!r}; it offers {', '.join(_WHERE)}")
