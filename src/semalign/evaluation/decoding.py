"""Answers to chats, greedy or sampled, and continuations of rows, for any causal language model of the transformers library."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from rich.progress import Progress
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import configuration_utils

from semalign.config import SERVER, Engine, SamplingConfig
from semalign.data import encode_prompt
from semalign.data.tokens import end_of_answer
from semalign.errors import DataError, ModelError
from semalign.evaluation.prefill import groups_of, prefill
from semalign.evaluation.room import with_room
from semalign.evaluation.sampling import settings_of, token_by_token
from semalign.evaluation.server import served_answers
from semalign.models.layouts import positions_of
from semalign.run.journal import Journal
from semalign.run.meter import free_memory, resident

STEPS_BETWEEN_LEAVINGS = 16
Prompt = dict[str, Any] | Sequence[dict[str, Any]]
GREEDY, NUCLEUS = SamplingConfig(), SamplingConfig(temperature=1.0, top_p=0.9)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 64,
    progress: bool = False,
    engine: Engine = "padded",
) -> list[str]:
    """The model's greedy continuation of each chat, in the order of ``prompts``: its turns, or a row with them and its tools.

    Batches hold prompts of similar length, padded on the left; a row that has reached an end token leaves its batch, and one whose
    answer may pass the model's positions has a batch of its own; where positions are learned, its answer is cut off at the last. With
    `continuous` transformers puts the next prompt where one has ended, without padding; with `server` a program such as vLLM serves a
    copy of the model. Where two tokens are all but equally likely, the engines may differ.
    The model's mode and generation settings are as before afterwards.
    """
    found = answers(model, tokenizer, prompts, max_new_tokens, batch_size, progress, engine)
    return [text for text, _ in found]


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: int,
    progress: bool = False,
    engine: Engine = "padded",
    *,
    server: str = SERVER,
    samples: int = 1,
    sampling: SamplingConfig = GREEDY,
    seed: int = 0,
    journal: Journal | None = None,
) -> list[tuple[str, bool]]:
    """As `generate`, with whether each answer came to its end or was cut off at ``max_new_tokens``.

    There are `samples` answers a prompt, one after the other. Drawn ones depend on the seed and on which prompts are asked together;
    the caller's random state stays as it is. A batch holds at most ``batch_size`` answers, or those of one prompt; a server has so many
    requests at once.

    Args:
        server: the command of engine `server`, with {folder} and {port} in it.
        journal: keeps each batch's answers, so that the next try with the same arguments goes on after them.

    Raises:
        DataError: a prompt leaves an answer no position.
    """
    encoded = [encode_prompt(prompt, tokenizer, f"prompt {n}") for n, prompt in enumerate(prompts, 1)]
    places_left(model, encoded, max_new_tokens)
    limit = positions_of(model.config.get_text_config())
    batches = batches_of(list(map(len, encoded)), max(1, batch_size // samples), max_new_tokens, limit)
    if engine != "padded":
        batches = [list(range(len(encoded)))]
    order = [n for batch in batches for n in batch]
    with (
        _plain(model, tokenizer, max_new_tokens, sampling) as settings,
        Progress(disable=not progress, transient=True) as bar,
    ):
        task = bar.add_task("generate", total=len(encoded))

        def write(batch: list[int]) -> list[tuple[str, bool]]:
            rows = [encoded[n] for n in batch]
            settings.max_new_tokens = places_left(model, rows, max_new_tokens)
            bar.advance(task, len(batch))
            # A seed of the batch, so that a try which goes on after some batches draws the same.
            with drawn_from(seed + order.index(batch[0]), model.device):
                if engine == "padded":
                    return _generate_batch(model, tokenizer, rows, samples)
                every = [row for row in rows for _ in range(samples)]
                if engine == "continuous":
                    return _generate_continuously(model, tokenizer, every, settings)
                found = served_answers(model, tokenizer, every, settings, server, batch_size)
                return texts_of(found, settings, tokenizer)

        return in_order(batches, samples, write, journal)


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    count: int,
    *,
    max_new_tokens: int,
    seed: int,
) -> list[list[tuple[str, bool]]]:
    """For each row of token ids ``count`` samples of what follows it, each with whether it came to its end.

    Drawn at temperature 1 from the likeliest tokens that hold 90% of the probability (nucleus sampling, arXiv 1904.09751).
    All are one batch, each row is read once; the caller's random state stays as it is.
    """
    most = places_left(model, rows, max_new_tokens)
    with drawn_from(seed, model.device), _plain(model, tokenizer, most, NUCLEUS):
        found = _generate_batch(model, tokenizer, [list(row) for row in rows], count)
    return [found[start : start + count] for start in range(0, len(found), count)]


def learned_positions(model: PreTrainedModel) -> int | None:
    """How many positions a model has an embedding for; None for one that can read on, as all with a rotary embedding can."""
    config = model.config.get_text_config()
    return None if getattr(config, "rope_parameters", None) else positions_of(config)


def places_left(model: PreTrainedModel, rows: Sequence[Sequence[int]], most: int) -> int:
    """How many tokens can follow the longest of some rows, ``most`` or fewer.

    Raises:
        DataError: a row leaves none.
    """
    limit, longest = learned_positions(model), max(map(len, rows), default=0)
    if limit is None:
        return most
    if longest >= limit:
        raise DataError(
            f"A prompt has {longest} tokens, but the model has {limit} positions, so expected fewer than {limit}; shorten the prompt, or "
            "take a model with more."
        )
    return min(most, limit - longest)


def batches_of(
    lengths: Sequence[int], size: int, max_new_tokens: int, positions: int | None
) -> list[list[int]]:
    """Numbers of prompts in batches of like length; those whose answers may pass a model's positions are alone.

    Beyond its positions a model may choose its rotary frequencies by the longest row of a batch.
    """
    order = sorted(range(len(lengths)), key=lambda n: (lengths[n], n))
    alone = [n for n in order if positions is not None and lengths[n] + max_new_tokens > positions]
    others = order[: len(order) - len(alone)]
    return [others[start : start + size] for start in range(0, len(others), size)] + [[n] for n in alone]


def in_order(
    batches: Sequence[list[int]],
    samples: int,
    write: Callable[[list[int]], list[tuple[str, bool]]],
    journal: Journal | None = None,
) -> list[tuple[str, bool]]:
    """The ``samples`` answers to each prompt in the order of the prompts, whichever batch wrote them.

    Args:
        journal: holds the answers to the first prompts, in batches of any size, and gets those to the others.
    """
    places = [n * samples + k for batch in batches for n in batch for k in range(samples)]
    told = [] if journal is None else [(text, ended) for batch in journal.values for text, ended in batch]
    found = dict(zip(places, told, strict=False))
    for batch in batches:
        left = [n for n in batch if n * samples not in found]
        if not left:
            continue
        answered = write(left)
        if journal is not None:
            journal.add([answered])
        found |= zip([n * samples + k for n in left for k in range(samples)], answered, strict=True)
    return [found[place] for place in range(len(found))]


def padded_on_the_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of rows that end together (B, T)."""
    longest = max(map(len, rows))
    ids_BT = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for number, row in enumerate(rows):
        ids_BT[number, longest - len(row) :] = torch.tensor(row)
        mask_BT[number, longest - len(row) :] = 1
    return ids_BT, mask_BT


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's, the chat template's, and those of the model's own settings, ascending."""
    return ends_in(model.generation_config, tokenizer)


def ends_in(
    settings: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, *, template: bool = True
) -> list[int]:
    """The tokens that end an answer: the tokenizer's, the chat template's, and those of generation settings, ascending."""
    of_model = settings.eos_token_id if settings else None
    ends = [
        *(tokenizer.eos_token_id, end_of_answer(tokenizer) if template else None),
        *(of_model if isinstance(of_model, list) else [of_model]),
    ]
    return sorted({int(n) for n in ends if n is not None})


@contextmanager
def drawn_from(seed: int, device: torch.device) -> Iterator[None]:
    """Draws from a seed, without a trace in the caller's random state."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _plain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    sampling: SamplingConfig = GREEDY,
) -> Iterator[GenerationConfig]:
    """Evaluation mode and bare settings, greedy unless told.

    The model's own settings are put aside, not overridden one by one: a shipped repetition penalty or temperature
    would otherwise fill every field left open here. Its end tokens are kept, for chat models end turns in many ways.
    """
    settings, was_training = model.generation_config, model.training
    known_ends = ends_of(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(known_ends), 0)
    model.generation_config = settings_of(sampling, max_new_tokens, known_ends, pad)
    model.eval()
    try:
        yield model.generation_config
    finally:
        model.generation_config = settings
        model.train(was_training)


def texts_of(
    found: Sequence[tuple[list[int], bool]], settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, bool]]:
    """A server's token ids as texts; an answer has come to its end where its ids or the server say so."""
    ends = set(settings.eos_token_id or [])
    told = [(until_end(ids, ends, tokenizer), was_stopped) for ids, was_stopped in found]
    return [(text, has_ended or was_stopped) for (text, has_ended), was_stopped in told]


def _generate_continuously(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], settings: GenerationConfig
) -> list[tuple[str, bool]]:
    options = _memory_limit() if model.device.type == "cpu" else {}
    found = list(model.generate_batch(rows, generation_config=settings, **options).values())
    failed = next((output.error for output in found if output.error), None)
    if failed or len(found) < len(rows):
        raise ModelError(
            f"continuous batching: expected {len(rows)} answers, got {len(found)} ({failed or 'its thread ended'}); set "
            "evaluation.engine: padded."
        )
    ends = set(settings.eos_token_id or [])
    return [until_end(output.generated_tokens, ends, tokenizer) for output in found]


def _memory_limit() -> dict[str, Any]:
    """Half of what is free: left alone, transformers counts what other processes hold as free and takes it for its cache."""
    limited = getattr(configuration_utils, "ContinuousBatchingConfig", None)
    if limited is None:
        return {}
    memory = psutil.virtual_memory()
    counted_as_free = memory.total - resident()
    return {
        "continuous_batching_config": limited(max_memory_percent=0.5 * memory.available / counted_as_free)
    }


def until_end(ids: list[int], ends: set[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """Token ids as text up to the first end token, and whether there is one; control tokens within it are written out."""
    stop = next((n for n, token in enumerate(ids) if token in ends), len(ids))
    return str(tokenizer.decode(ids[:stop], skip_special_tokens=False)), stop < len(ids)


@torch.inference_mode()
def _generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    count: int = 1,
) -> list[tuple[str, bool]]:
    """Continue each row of a batch ``count`` times with the settings that the model holds now; whether each reached an end token.

    Rows that have ended leave the batch, so that the longest answer does not cost as much for all rows as for itself.
    """
    assert model.generation_config is not None
    ids, mask = padded_on_the_left(rows, int(model.generation_config.pad_token_id or 0))
    ids, mask = ids.to(model.device), mask.to(model.device)
    generator: Any = model
    takes_cache = "past_key_values" in inspect.signature(generator.forward).parameters
    ends = set(model.generation_config.eos_token_id or [])
    found: list[list[int]] = [[] for _ in range(len(rows) * count)]
    going_on, left, cache = list(range(len(found))), int(model.generation_config.max_new_tokens or 0), None
    groups = groups_of(generator, mask)
    if takes_cache and ids.shape[1] > 1 and (count > 1 or len(groups) > 1):
        cache = prefill(generator, ids, mask, groups)
        if count > 1:
            # A row that is continued in several ways is read once. Unlike batch_repeat_interleave, caches of linear attention know this.
            cache.reorder_cache(torch.arange(len(rows), device=ids.device).repeat_interleave(count))
    ids, mask = ids.repeat_interleave(count, 0), mask.repeat_interleave(count, 0)
    while going_on and left > 0:
        output = generator.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=min(STEPS_BETWEEN_LEAVINGS, left),
            return_dict_in_generate=True,
            custom_generate=token_by_token,
            **({} if cache is None else {"past_key_values": cache}),
        )
        new = output.sequences[:, ids.shape[1] :]
        left -= new.shape[1]
        for number, tokens in zip(going_on, new.tolist(), strict=True):
            found[number] += tokens
        places = [n for n, number in enumerate(going_on) if ends.isdisjoint(found[number])]
        kept = torch.tensor(places, dtype=torch.long, device=ids.device)
        ids, mask = output.sequences[kept], torch.cat([mask[kept], mask.new_ones(len(kept), new.shape[1])], 1)
        # A model that takes no cache reads its rows again.
        cache = output.get("past_key_values") if takes_cache else None
        if cache is not None and len(places) < len(going_on):
            cache.reorder_cache(kept)
            # The heap is full of holes between the larger tensors of the rows before.
            free_memory(collect=False)
        cache = with_room(cache)
        going_on = [going_on[n] for n in places]
    return [until_end(tokens, ends, tokenizer) for tokens in found]
