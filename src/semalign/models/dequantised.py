"""The weights of a GGUF file as an ordinary model folder, kept from the first load on: dequantising takes up to minutes each time.

The folders lie in the user's cache, `$XDG_CACHE_HOME/semalign/dequantised` or `~/.cache/semalign/dequantised`. A name says which file it was
(its place, size and times), the type of the weights and transformers' version, so that a changed file is dequantised again.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from semalign.errors import CacheError
from semalign.run.digests import stamp_of
from semalign.run.files import hash_of, replacing_folder, saving

logger = logging.getLogger(__name__)


def kept_at(file: Path, dtype: str) -> Path:
    """Where the weights of a GGUF file are kept, or would be."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    place = hash_of([os.path.abspath(file), dtype])
    return (
        root / "semalign" / "dequantised" / f"{place}-{hash_of([stamp_of(file), transformers.__version__])}"
    )


def keep(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, file: Path, dtype: str) -> None:
    """Write model and tokenizer where `kept_at` finds them, in place of what an earlier state of the file left there.

    Where the disk has no room for it, nothing is kept, and that is said.
    """
    folder = kept_at(file, dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    try:
        with replacing_folder(folder) as part, saving(folder):
            if shutil.disk_usage(part).free < 2 * size:
                raise OSError(f"{size / 1e9:.1f} GB are too much for its disk")
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
    except CacheError as error:
        logger.warning("%s is dequantised in every command: %s", file, error)
        return
    for old in folder.parent.glob(f"{folder.name.split('-')[0]}-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    logger.warning(
        "%s: its weights are kept in %s for the next command, %.1f GB; keep_dequantised: false keeps nothing",
        file,
        folder,
        size / 1e9,
    )
