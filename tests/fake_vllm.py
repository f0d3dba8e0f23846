"""A vLLM server on loopback: the part of the protocol of vLLM 0.33 that poad speaks.

It loads the base model and the adapters that it is handed with transformers and PEFT, and samples
with them token by token. Of poad it knows nothing, and a field that vLLM does not know is refused.
What it says can be falsified by `Lies`.
"""

from __future__ import annotations

import copy
import json
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

KNOWN = {
    *("model", "prompt", "max_tokens", "seed", "temperature", "top_p", "top_k", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "ignore_eos"),
    *("stop_token_ids", "stop", "include_stop_str_in_output", "skip_special_tokens"),
    *("spaces_between_special_tokens", "return_token_ids", "logprobs"),
}
"""Fields of vLLM's `CompletionRequest` that this server heeds, or checks."""
NEUTRAL = dict(
    **dict.fromkeys(("min_p", "presence_penalty", "frequency_penalty"), 0.0),
    **dict.fromkeys(("top_p", "repetition_penalty"), 1.0),
    top_k=0,
    ignore_eos=True,
    logprobs=0,
)
"""Fields that must have these values, since nothing else is written here."""


@dataclass
class Lies:
    """What a server of another kind, age or mood does; all of it may change while it runs."""

    updates: bool = True
    """Whether adapters may be loaded while it runs."""
    ignores_loads: bool = False
    """Say that adapters were loaded, and go on with those that were loaded first."""
    text: str | None = None
    """Answer with this text instead of what was written."""
    without: str | None = None
    """Leave a field of the choice out."""
    finish: str | None = None
    """Give this as the reason why an action ended."""
    plain: bytes | None = None
    """Answer everything with this."""
    patience: int | None = None
    """Hang up on every request behind so many completions."""
    delay: float = 0.0
    """Seconds before each completion."""


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeVllm:
    """What the server knows and was asked."""

    def __init__(self, model: Path, name: str, longest: int, lies: Lies) -> None:
        self.model, self.name, self.longest, self.lies = model, name, longest, lies
        self.base: Any = AutoModelForCausalLM.from_pretrained(model).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.adapters: dict[str, Any] = {}
        self.paths: dict[str, str] = {}
        """By name: where each adapter came from, those that were unloaded included."""
        self.asked: list[dict[str, Any]] = []
        """Completion requests, as they came."""
        self.lock = threading.Lock()
        self.url = ""

    def models(self) -> dict[str, Any]:
        card = {"id": self.name, "root": str(self.model), "max_model_len": self.longest}
        loaded = [{"id": n, "root": self.paths[n], "parent": self.name} for n in self.adapters]
        return {"object": "list", "data": [card | {"parent": None}, *loaded]}

    def load(self, body: dict[str, Any]) -> str:
        name, path = body["lora_name"], body["lora_path"]
        if not self.lies.updates:
            raise Refused(404, "Not Found")
        if not name or not path:
            raise Refused(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            raise Refused(400, f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_config.json").is_file():
            raise Refused(404, f"Loading lora {name} failed: No adapter found for {path}")
        if self.lies.ignores_loads and self.adapters:
            self.adapters[name] = next(iter(self.adapters.values()))
        else:
            with warnings.catch_warnings():  # peft still uses a deprecated name of transformers
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
                model = PeftModel.from_pretrained(copy.deepcopy(self.base), path)
            self.adapters[name] = model.eval()
        self.paths[name] = path
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: dict[str, Any]) -> str:
        if self.adapters.pop(body["lora_name"], None) is None:
            raise Refused(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        return f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        if unknown := body.keys() - KNOWN:
            raise Refused(400, f"no such fields: {unknown}")
        if changed := [name for name, value in NEUTRAL.items() if body[name] != value]:
            raise Refused(400, f"this server only takes {NEUTRAL}, not other {changed}")
        prompt, room = body["prompt"], self.longest - len(body["prompt"])
        if not all(type(token) is int for token in prompt):
            raise Refused(400, "the prompt must be token ids")
        if room < 1:
            raise Refused(400, f"This model's maximum context length is {self.longest} tokens.")
        if body["model"] not in self.adapters:
            raise Refused(404, f"The model `{body['model']}` does not exist.")
        model = self.adapters[body["model"]]
        generator = torch.Generator().manual_seed(body["seed"])
        tokens, logprobs, finish = list[int](), list[float](), "length"
        while len(tokens) < min(body["max_tokens"], room):
            logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
            for token, bias in (body["logit_bias"] or {}).items():
                logits[int(token)] += bias
            processed = (logits / body["temperature"]).log_softmax(-1)
            tokens.append(int(torch.multinomial(processed.exp(), 1, generator=generator)))
            logprobs.append(float(processed[tokens[-1]]))
            if tokens[-1] in body["stop_token_ids"] or self.stops(body, tokens):
                finish = "stop"
                break
        text = self.decode(body, tokens) if self.lies.text is None else self.lies.text
        choice = {
            "index": 0,
            "text": text,
            "token_ids": tokens,
            "prompt_token_ids": prompt,
            "logprobs": {"token_logprobs": logprobs, "tokens": [text] * len(tokens)},
            "finish_reason": self.lies.finish or finish,
        }
        choice = {key: value for key, value in choice.items() if key != self.lies.without}
        return {"object": "text_completion", "model": body["model"], "choices": [choice]}

    def decode(self, body: dict[str, Any], tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=body["skip_special_tokens"])

    def stops(self, body: dict[str, Any], tokens: list[int]) -> bool:
        text = self.decode(body, tokens)
        return any(stop in text for stop in body["stop"])


def handler_of(server: FakeVllm) -> type[BaseHTTPRequestHandler]:
    """The requests of one server."""
    posts = {
        "/v1/completions": server.complete,
        "/v1/load_lora_adapter": server.load,
        "/v1/unload_lora_adapter": server.unload,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, server.models())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/completions":
                server.asked.append(body | {"key": self.headers["Authorization"]})
                time.sleep(server.lies.delay)
            if server.lies.patience is not None and len(server.asked) > server.lies.patience:
                return  # without an answer
            try:
                with server.lock:
                    self.reply(200, posts[self.path](body))
            except Refused as error:
                what = {"message": str(error), "type": "BadRequestError", "code": error.status}
                self.reply(error.status, {"error": what})

        def reply(self, status: int, content: Any) -> None:
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            data = data if server.lies.plain is None else server.lies.plain
            with suppress(ConnectionError):  # of a client that has lost its patience
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def serving(
    model: Path, name: str | None = None, longest: int = 256, lies: Lies | None = None
) -> Iterator[FakeVllm]:
    """Serve the model of a directory, by its name, in a thread."""
    server = FakeVllm(model, name or str(model), longest, lies or Lies())
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
