"""A server of the OpenAI protocol over transformers, for tests: python stand_in_server.py FOLDER PORT [FAULT].

Decodes greedily; of what is drawn it keeps to the seed alone. FAULT is no-ids (answers in text alone), refuses (an error for every
request), or dies (ends before it serves).
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

FOLDER, PORT, FAULT = sys.argv[1], int(sys.argv[2]), "".join(sys.argv[3:])
if FAULT == "dies":
    print("first line\nRuntimeError: no such device\n")
    sys.exit(7)

BARE = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
if not FAULT:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.set_num_threads(1)
    MODEL = AutoModelForCausalLM.from_pretrained(FOLDER)


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
        else:
            self.reply(200, completion(body))

    def reply(self, code: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
