"""docs/families.md, the table of supported architectures, says what their tiny models show.

Write it anew with: python tests/models/test_families.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))

from tiny import ARCHITECTURES, tiny_model  # noqa: E402

from semalign.errors import ConfigError  # noqa: E402
from semalign.models.decoder import Decoder, linear_names  # noqa: E402
from semalign.models.layouts import PROJECTIONS  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
BEGIN = "| model type |"


def is_there(decoder: Decoder, interface: str) -> bool:
    """Whether a layer with attention has the interface."""
    layer = decoder.num_layers
    try:
        decoder.out_projection(layer) if interface == "head" else decoder.sublayer(layer, interface)
    except ConfigError:
        return False
    return True


def line(kind: str) -> str:
    """What a tiny model of the type shows."""
    decoder = Decoder(tiny_model(kind, layers=4, wide=True), None)
    parts = [name for name in ("attn", "mlp", "head") if is_there(decoder, name)]
    are_all = all(decoder.has_heads(n) for n in range(1, 5)) or "head" not in parts
    built = "experts" if decoder.shape.experts else "dense"
    built += "" if are_all else ", attention in some layers"
    names = linear_names(decoder)
    lora = "all seven" if names == sorted(PROJECTIONS) else ", ".join(f"`{name}`" for name in names)
    interfaces = "all" if len(parts) == 3 else "`block`, `delta`, `output`"
    return f"| `{kind}` | {type(decoder.model).__name__} | {built} | {interfaces} | {lora} |"


def table() -> str:
    """All types."""
    head = f"{BEGIN} class | layers | `recipe.interface` | what LoRA adapts |"
    return "\n".join([head, "|---|---|---|---|---|", *(line(kind) for kind in ARCHITECTURES)])


def test_the_page_has_the_table_of_the_models() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert table() in text, "run: python tests/models/test_families.py"


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split("\n\n", 1)[1]
    PAGE.write_text(f"{before}{table()}\n\n{after}", encoding="utf-8")
