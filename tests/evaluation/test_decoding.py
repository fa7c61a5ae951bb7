"""Batched generation equals one-by-one greedy decoding and leaves the model as it was."""

import copy
import functools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from tiny import ARCHITECTURES, tiny_model, tiny_tokenizer
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from semalign import embedded
from semalign.config import SamplingConfig
from semalign.data import encode_prompt
from semalign.errors import DataError, SemAlignError
from semalign.evaluation import decoding as module
from semalign.evaluation.decoding import answers, continuations, generate, in_order
from semalign.run.journal import Journal


@pytest.fixture(scope="module")
def pair() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    folder = embedded.model_path("student")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def greedy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: list[dict[str, str]], most: int
) -> str:
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    new: list[int] = []
    with torch.no_grad():
        while len(new) < most:
            token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
    return str(tokenizer.decode(new, skip_special_tokens=True))


def shapes_read(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Fills with the shape of every batch of tokens that the model reads from now on."""
    sizes: list[tuple[int, ...]] = []
    forward = model.forward

    @functools.wraps(forward)
    def counting(*arguments: object, **options: object) -> object:
        sizes.append(tuple(options["input_ids"].shape))
        return forward(*arguments, **options)

    monkeypatch.setattr(model, "forward", counting)
    return sizes


def test_equals_plain_greedy_decoding(pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = pair
    prompts = [row["messages"][:1] for row in embedded.rows("validation")[::20]]
    wanted = [greedy(model, tokenizer, prompt, 12) for prompt in prompts]
    assert generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=4) == wanted
    assert generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=100) == wanted
    assert len(set(wanted)) > 3


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_rows_that_end_leave_the_batch_and_change_no_other(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_model(kind, layers=3, wide=False, seed=1), tiny_tokenizer()
    prompts = [[{"role": "user", "content": "blue and green " * n}] for n in (1, 4, 2, 6, 3, 5)]
    ids = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    tokens = [
        model.generate(torch.tensor([row]), max_new_tokens=40, do_sample=False)[0, len(row) :].tolist()
        for row in ids
    ]
    ends_at = {t: [row.index(t) if t in row else len(row) for row in tokens] for t in set().union(*tokens)}
    model.generation_config.eos_token_id = max(ends_at, key=lambda t: len({n // 3 for n in ends_at[t]}))
    whole = answers(model, tokenizer, prompts, 40, 6)
    sizes = shapes_read(model, monkeypatch)
    monkeypatch.setattr(module, "STEPS_BETWEEN_LEAVINGS", 3)
    assert answers(model, tokenizer, prompts, 40, 6) == whole
    rows = [rows for rows, _ in sizes]
    assert rows[-1] < rows[0] and rows == sorted(rows, reverse=True), "the batch only shrinks"
    assert {length for _, length in sizes[1:]} == {1}, "no token is read twice"


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_row_is_read_once_and_continued_as_if_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(kind, layers=3, wide=False, seed=1), tiny_tokenizer()
    prompts = [[{"role": "user", "content": "blue and green " * n}] for n in (4, 1, 2)]
    rows = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    alone = answers(model, tokenizer, prompts, 12, 1)
    sizes = shapes_read(model, monkeypatch)
    # Greedy, so that each sample is known.
    monkeypatch.setattr(module, "NUCLEUS", module.GREEDY)
    found = continuations(model, tokenizer, rows, 4, max_new_tokens=12, seed=0)
    assert found == [[text] * 4 for text in alone]
    assert sizes == [(3, max(map(len, rows)) - 1), *[(12, 1)] * (len(sizes) - 1)]


def test_continuations_are_drawn_from_what_holds_nine_tenths() -> None:
    model, tokenizer = tiny_model("llama", layers=3, wide=False, seed=1), tiny_tokenizer()
    row = encode_prompt([{"role": "user", "content": "blue and green"}], tokenizer)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 4  # a few tokens hold most of the probability
    state = torch.get_rng_state()
    [found] = continuations(model, tokenizer, [row], 600, max_new_tokens=1, seed=3)
    assert [found] == continuations(model, tokenizer, [row], 600, max_new_tokens=1, seed=3)
    assert [found] != continuations(model, tokenizer, [row], 600, max_new_tokens=1, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        shares, tokens = model(torch.tensor([row])).logits[0, -1].softmax(-1).sort(descending=True)
    kept = int((shares.cumsum(0) < 0.9).sum()) + 1
    assert 1 < kept < 50, "the case says something"
    expected: Counter[str] = Counter()
    for token, share in zip(tokens[:kept], shares[:kept] / shares[:kept].sum(), strict=True):
        expected[tokenizer.decode(token)] += float(share)
    counts = Counter(text for text, _ in found)
    assert set(counts) <= set(expected)
    for text, share in expected.items():
        assert counts[text] / 600 == pytest.approx(share, abs=0.08)


DRAWN = SamplingConfig(temperature=1.0, top_k=20)


def test_several_answers_a_prompt_stand_one_after_the_other_and_are_told_by_the_seed(
    pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
) -> None:
    model, tokenizer = pair
    prompts = [row["messages"][:1] for row in embedded.rows("validation")[:60:20]]
    greedy_ones = answers(model, tokenizer, prompts, 24, 2, samples=3)
    assert greedy_ones == [one for one in answers(model, tokenizer, prompts, 24, 8) for _ in range(3)]
    state = torch.get_rng_state()
    found = answers(model, tokenizer, prompts, 24, 6, samples=4, sampling=DRAWN, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == answers(model, tokenizer, prompts, 24, 6, samples=4, sampling=DRAWN, seed=1)
    assert found != answers(model, tokenizer, prompts, 24, 6, samples=4, sampling=DRAWN, seed=2)
    assert len(found) == 12 and max(len(set(found[n : n + 4])) for n in (0, 4, 8)) > 1
    cold = SamplingConfig(temperature=1e-4)
    assert answers(model, tokenizer, prompts, 24, 6, samples=3, sampling=cold) == greedy_ones


def test_leaves_no_state(pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = pair
    model.train()
    settings, side = copy.deepcopy(model.generation_config.to_dict()), tokenizer.padding_side
    generate(model, tokenizer, [[{"role": "user", "content": "2 + 2"}]], max_new_tokens=3)
    assert model.training
    assert model.generation_config.to_dict() == settings and tokenizer.padding_side == side
    model.eval()


def test_shipped_settings_do_not_bend_greedy_decoding(
    pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
) -> None:
    model, tokenizer = pair
    prompts = [row["messages"][:1] for row in embedded.rows("validation")[::40]]
    plain = generate(model, tokenizer, prompts, max_new_tokens=12)
    kept = copy.deepcopy(model.generation_config)
    model.generation_config.repetition_penalty, model.generation_config.no_repeat_ngram_size = 3.0, 1
    try:
        assert generate(model, tokenizer, prompts, max_new_tokens=12) == plain
        assert model.generation_config.repetition_penalty == 3.0
    finally:
        model.generation_config = kept


def test_no_prompts(pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    assert generate(*pair, [], max_new_tokens=3) == []


def test_continuous_batching_is_greedy_too(pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> None:
    model, tokenizer = pair
    prompts = [row["messages"][:1] for row in embedded.rows("validation")[::20]]
    found = generate(model, tokenizer, prompts, max_new_tokens=12, engine="continuous")
    assert len(found) == len(prompts) and len(set(found)) > 3
    for prompt, text in zip(prompts, found, strict=True):
        start = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(start + text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        first = len(tokenizer(start, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(ids).logits[0, first - 1 : -1]
        chosen = logits.gather(1, ids[0, first:, None])[:, 0]
        # All but the likeliest token: attention is computed in another order.
        assert float((logits.max(1).values - chosen).max()) < 0.05, text


def test_continuous_batching_leaves_half_of_the_free_memory_to_others(
    pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = pair
    seen, own = [], psutil.Process().memory_info().rss
    memory = SimpleNamespace(total=own + 100 * 2**30, available=2 * 2**30)
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: memory)

    def stopping(*_: object, continuous_batching_config: object, **__: object) -> object:
        seen.append(continuous_batching_config.max_memory_percent * 100)
        return {}

    monkeypatch.setattr(model, "generate_batch", stopping)
    with pytest.raises(SemAlignError, match="expected 1 answers, got 0"):
        generate(model, tokenizer, [[{"role": "user", "content": "2 + 2"}]], engine="continuous")
    assert seen == [pytest.approx(1.0, rel=0.02)]


def test_rows_that_may_pass_the_models_positions_are_answered_alone(
    pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = pair
    prompts = [[{"role": "user", "content": "blue " * n}] for n in (1, 2, 3, 4, 5, 6)]
    lengths = sorted(len(encode_prompt(prompt, tokenizer)) for prompt in prompts)
    wanted = answers(model, tokenizer, prompts, 4, 6)
    monkeypatch.setattr(model.config, "max_position_embeddings", lengths[3] + 4)
    sizes = shapes_read(model, monkeypatch)
    assert answers(model, tokenizer, prompts, 4, 6) == wanted
    assert {size[0] for size in sizes if size[1] > 1} == {4, 1}


def test_answers_are_cut_off_at_the_last_learned_position(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("gpt2", layers=2, wide=False, seed=1), tiny_tokenizer()
    prompts = [[{"role": "user", "content": "blue and green " * n}] for n in (1, 2, 3)]
    rows = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    limit = max(map(len, rows)) + 5
    # The positions beyond, which a model of so many does not have, must never be asked for.
    short = tiny_model("gpt2", layers=2, wide=False, seed=1)
    short.transformer.wpe = torch.nn.Embedding.from_pretrained(model.transformer.wpe.weight[:limit])
    short.config.n_positions = limit
    for batch_size in (1, 3):
        found = answers(short, tokenizer, prompts, 64, batch_size)
        for prompt, row, answer in zip(prompts, rows, found, strict=True):
            assert answer == answers(model, tokenizer, [prompt], limit - len(row), 1)[0] and not answer[1]
    assert answers(short, tokenizer, prompts, 3, 3) == answers(model, tokenizer, prompts, 3, 3)
    monkeypatch.setattr(module, "NUCLEUS", module.GREEDY)
    assert continuations(short, tokenizer, rows[2:], 2, max_new_tokens=64, seed=0) == [[found[2]] * 2]
    short.config.n_positions = len(rows[2])
    with pytest.raises(DataError, match=f"{len(rows[2])} tokens, but the model has {len(rows[2])} positions"):
        answers(short, tokenizer, prompts, 64, 3)


def test_a_prompt_is_its_turns_or_a_row_with_tools(
    pair: tuple[LlamaForCausalLM, PreTrainedTokenizerFast],
) -> None:
    model, tokenizer = pair
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = "{% if tools %}{{ tools[0].name }}{% endif %}" + tokenizer.chat_template
    turns = [{"role": "user", "content": "blue and green"}]
    rows = [turns, {"messages": turns}, {"messages": turns, "tools": [{"name": "sky"}]}]
    ids = [tokenizer.decode(encode_prompt(row, tokenizer)) for row in rows]
    assert ids[0] == ids[1] and ids[2] == "sky" + ids[0]
    assert len(generate(model, tokenizer, rows, max_new_tokens=3)) == 3


def test_answers_that_are_kept_are_gone_on_with_in_batches_of_another_size(tmp_path: Path) -> None:
    def written(numbers: list[int]) -> list[tuple[str, bool]]:
        asked.append(numbers)
        return [(f"{n}.{k}", n % 2 == 0) for n in numbers for k in range(2)]

    asked: list[list[int]] = []
    expected = [(f"{n}.{k}", n % 2 == 0) for n in range(5) for k in range(2)]
    journal = Journal(tmp_path / "part", {}, list[list[str | bool]])
    assert in_order([[3, 1], [0, 4], [2]], 2, written, journal) == expected
    whole = (tmp_path / "part").read_text().splitlines(keepends=True)
    for kept, batches, left in (
        (1, [[3, 1, 0], [4, 2]], [[0], [4, 2]]),
        (2, [[3], [1], [0], [4], [2]], [[2]]),
        (3, [[3, 1, 0, 4, 2]], []),
    ):
        asked.clear()
        (tmp_path / "part").write_text("".join(whole[: kept + 1]))
        again = Journal(tmp_path / "part", {}, list[list[str | bool]])
        assert in_order(batches, 2, written, again) == expected
        assert asked == left


def base_tokenizer() -> PreTrainedTokenizerFast:
    """As a base model's: its end token is not the one with which its chat template ends an answer."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<s>"
    return tokenizer


def test_an_answer_ends_where_the_chat_template_ends_one() -> None:
    tokenizer, model = base_tokenizer(), tiny_model("llama", layers=2, wide=False)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert module.ends_in(None, tokenizer) == [tokenizer.eos_token_id, end]
    assert {tokenizer.eos_token_id, end} <= set(module.ends_of(model, tokenizer))
    tokenizer.chat_template = None
    assert module.ends_in(None, tokenizer) == [tokenizer.eos_token_id]


def test_control_tokens_within_an_answer_are_told() -> None:
    tokenizer = tiny_tokenizer()
    end, user = tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>"])
    five = tokenizer("five", add_special_tokens=False)["input_ids"]
    assert module.until_end([*five, end, *five], {end}, tokenizer) == ("five", True)
    assert module.until_end([*five, user, *five, end], {end}, tokenizer) == ("five<|user|>five", True)
