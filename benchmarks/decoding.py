"""How much sooner are prompts answered than by transformers' generate on the same padded batch?

    python benchmarks/decoding.py --quick
    python benchmarks/decoding.py --model DIR --rows gsm8k_items.jsonl --prompts 100 --max-new-tokens 320

Both sides are given the same prompts at once and decode greedily with the same end tokens. `share` is the time that the products of
the answers' tokens with the model's weights alone take, a whole batch a step, over that of our side: 1 means that everything else, attention,
cache, padding and rows that have ended, costs nothing.
"""

from pathlib import Path
from typing import Any

import torch
from common import arguments, finish, ratios, seconds

from semalign.config import DataConfig
from semalign.data import encode_prompt
from semalign.data.chat import prompt_row
from semalign.data.drawing import rows_named
from semalign.evaluation.decoding import answers, ends_of, padded_on_the_left
from semalign.models.loading import load


def main() -> None:
    """Parse, run, print."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="embedded:student", help="folder of a model")
    parser.add_argument("--rows", default="embedded:test", help="jsonl file whose prompts are answered")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    decoder = load(options.model, needs_layers=False)
    model: Any = decoder.model
    tokenizer: Any = decoder.tokenizer
    rows = [prompt_row(row) for row in rows_named(options.rows, DataConfig(options.rows))[: options.prompts]]
    encoded = [encode_prompt(row, tokenizer) for row in rows]
    ids, mask = (part.to(model.device) for part in padded_on_the_left(encoded, ends_of(model, tokenizer)[0]))
    found: list[tuple[str, bool]] = []

    def ours() -> None:
        found[:] = answers(model, tokenizer, rows, options.max_new_tokens, len(rows))

    @torch.inference_mode()
    def theirs() -> None:
        ends = ends_of(model, tokenizer)
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=options.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )

    weights = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    weights.append(model.get_output_embeddings().weight)
    inputs = [torch.ones(len(rows), w.shape[1], dtype=w.dtype, device=w.device) for w in weights]

    @torch.inference_mode()
    def products() -> None:
        for x, w in zip(inputs, weights, strict=True):
            torch.nn.functional.linear(x, w)

    ours()
    step = seconds(products)
    step()
    result = ratios(seconds(ours), seconds(theirs), options.repetitions)
    a_step = sorted(step() for _ in range(5))[2]
    written = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) + ended for text, ended in found]
    finish(
        options,
        {
            "model": Path(options.model).name,
            "prompts": len(rows),
            "tokens": sum(written),
            "ended": sum(ended for _, ended in found) / len(found),
            **result,
            "tokens_per_second": sum(written) / result["ours"],
            "share": a_step * sum(written) / len(rows) / result["ours"],
        },
    )


if __name__ == "__main__":
    main()
