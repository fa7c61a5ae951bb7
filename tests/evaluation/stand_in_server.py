"""A server of the OpenAI protocol over transformers, for tests: python stand_in_server.py FOLDER PORT [FAULT].

Decodes greedily; of what is drawn it keeps to the seed alone. FAULT is no-ids (answers in text alone), refuses (an error for every
request), or dies (ends before it serves). A number is the share of requests that fail with 503, at random.
"""

from __future__ import annotations

import json
import random
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

FOLDER, PORT, FAULT = sys.argv[1], int(sys.argv[2]), "".join(sys.argv[3:])
if FAULT == "dies":
    print("first line\nRuntimeError: no such device\n")
    sys.exit(7)

SHARE = float(FAULT) if FAULT.replace(".", "").isdigit() else 0.0
LUCK = random.Random(0)
BARE = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
if not FAULT or SHARE:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    torch.set_num_threads(1)
    MODEL = AutoModelForCausalLM.from_pretrained(FOLDER)
    TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)


def told(ids: list[int], count: int) -> list[dict[int, float]]:
    """Log-probabilities of the likeliest tokens and of the row's own, by position; the first is empty."""
    with torch.no_grad():
        logp = MODEL(torch.tensor([ids])).logits[0].float().log_softmax(1)
    found: list[dict[int, float]] = [{}]
    for place in range(1, len(ids)):
        top = logp[place - 1].topk(count)
        found.append(dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
        found[-1][ids[place]] = float(logp[place - 1, ids[place]])
    return found


def text_of(token: int) -> str:
    return str(TOKENIZER.decode([token]))


def prompt_logprobs(body: dict[str, Any]) -> dict[str, Any]:
    """As vLLM answers."""
    assert body["model"] == FOLDER and body["max_tokens"] == 1 and body["temperature"] == 0
    entries = [
        {str(i): {"logprob": p, "rank": 1, "decoded_token": text_of(i)} for i, p in one.items()} or None
        for one in told(body["prompt"], body["prompt_logprobs"])
    ]
    return {"choices": [{"text": "", "prompt_logprobs": entries}]}


def generated(body: dict[str, Any]) -> dict[str, Any]:
    """As SGLang answers."""
    assert body["return_logprob"] and body["logprob_start_len"] == 0 and body["return_text_in_logprobs"]
    ids, count = body["input_ids"], body["top_logprobs_num"]
    every = told(ids, count)
    own = [[one.get(i), i, text_of(i)] for one, i in zip(every, ids, strict=True)]
    others = [
        [[p, i, text_of(i)] for i, p in sorted(one.items(), key=lambda e: -e[1])[:count]] or None
        for one in every
    ]
    return {"text": "", "meta_info": {"input_token_logprobs": own, "input_top_logprobs": others}}


def completion(body: dict[str, Any]) -> dict[str, Any]:
    assert body["model"] == FOLDER and body["return_token_ids"] and BARE.items() <= body.items()
    ids = torch.tensor([body["prompt"]])
    is_drawn = body["temperature"] > 0
    assert is_drawn == ("seed" in body) and (is_drawn or (body["top_p"], body["top_k"]) == (1.0, -1))
    torch.manual_seed(body.get("seed", 0))
    settings = GenerationConfig(
        do_sample=is_drawn,
        max_new_tokens=body["max_tokens"],
        eos_token_id=body["stop_token_ids"],
        pad_token_id=0,
        **({"temperature": body["temperature"], "top_k": max(0, body["top_k"])} if is_drawn else {}),
    )
    MODEL.generation_config = settings
    new = MODEL.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :].tolist()
    reason = "stop" if new[-1] in body["stop_token_ids"] else "length"
    return {"choices": [{"text": "", "finish_reason": reason, "token_ids": new}]}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": FOLDER}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if FAULT == "refuses":
            self.reply(400, {"error": {"message": "no such option"}})
        elif FAULT == "no-ids":
            self.reply(200, {"choices": [{"text": "said", "finish_reason": "stop"}]})
        elif LUCK.random() < SHARE:
            self.reply(503, {"error": "busy"})
        elif self.path == "/generate":
            self.reply(200, generated(body))
        elif "prompt_logprobs" in body:
            self.reply(200, prompt_logprobs(body))
        else:
            self.reply(200, completion(body))

    def reply(self, code: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
