"""Free writing by a vLLM server, over its OpenAI-compatible protocol.

Prompts go out as token ids, and token ids with log-probabilities come back, so no text is ever
tokenized again. Before each rollout the adapters go to the server as a directory in the layout of
PEFT. Each time, they have a new name and a new path: vLLM remembers what it has computed of prompts
by these two, so nothing of the old weights is used again.

Written against vLLM 0.33. docs/scaling.md says what has never run.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from safetensors import SafetensorError

from poad.agent.sampling import as_action
from poad.agent.settings import Acting
from poad.config import Config
from poad.errors import EngineError, beginning
from poad.lm import Decoder, LanguageModel, model_source, save_adapters
from poad.ranks import Ranks
from poad.turns import Action, TokenIds

_KEY = "VLLM_API_KEY"
"""The environment variable with the server's key, as vLLM itself calls it."""
_AT_ONCE = 256
"""Requests that wait at the same time; as many rows as vLLM computes together by default."""
_MOST_BIASES = 1024
"""Tokens whose logits a request may lower."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that the server's --max-lora-rank takes."""


class VllmEngine:
    """A vLLM server that serves the run's model, and is handed its adapters.

    Args:
        config: resolved; names the model, the server and its patience.
        model: the language model, with adapters.

    Raises:
        EngineError: no server answers, or it serves another model or takes no adapters; or it
            could not leave out what the model must not write.
    """

    def __init__(self, config: Config, model: LanguageModel) -> None:
        self._model, self._config, self._settings = model, config.model, config.vllm
        self._server = _Server(config.vllm.url.rstrip("/"), config.vllm.timeout)
        self._adapters: str | None = None
        self._folder: Path | None = None
        # Rows of the vocabulary without a token are -inf for the learner. This is the least that
        # the server takes: a factor of e^-100 at temperature 1, and of e^-20 at temperature 5.
        unwritable = model.codec.without_token(model.vocabulary)
        self._bias = {str(token): -100.0 for token in unwritable}
        if len(unwritable) > _MOST_BIASES:
            raise EngineError(
                f"{len(unwritable):,} rows of this model's vocabulary stand for no token, and a "
                f"vLLM server leaves out {_MOST_BIASES:,} at most; set acting.engine = own."
            )
        self._longest = self._check_server()

    def write(
        self,
        acting: Acting,
        prompts: Sequence[TokenIds],
        generators: Sequence[np.random.Generator],
        decoder: Decoder | None = None,
        /,
    ) -> Iterator[tuple[int, Action]]:
        """Write each row in a request with a seed of its own; see `poad.agent.Engine`."""
        requests = [
            self._request(acting, prompt, int(generator.integers(2**63)))
            for prompt, generator in zip(prompts, generators, strict=True)
        ]
        pool = ThreadPoolExecutor(min(len(requests), _AT_ONCE))
        try:
            waiting = {
                pool.submit(self._server.ask, "/v1/completions", request): i
                for i, request in enumerate(requests)
            }
            for done in as_completed(waiting):
                i = waiting[done]
                tokens, logprobs = self._read(done.result(), requests[i])
                yield i, as_action(self._model, acting, prompts[i], tokens, logprobs)
        finally:
            pool.shutdown(cancel_futures=True)

    def update(self, ranks: Ranks) -> None:
        """Hand the adapters over; rank 0 does so, and the others wait.

        Raises:
            EngineError: the server does not take them; on all ranks.
        """
        name = ranks.exchange("adapters", f"poad-{secrets.token_hex(6)}")[0]
        failed: EngineError | None = None
        if ranks.is_first:
            try:
                self._hand_over(name)
            except EngineError as error:
                failed = error
        told = ranks.exchange("handed over", failed and str(failed))[0]
        if told is not None:
            raise failed or EngineError(told)
        self._adapters = name

    def close(self) -> None:
        """Take the adapters back from the server, if it is there."""
        if self._folder is None:
            return
        self._take_back(self._adapters)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._adapters = self._folder = None

    def _check_server(self) -> int | None:
        """Return the number of tokens that the server's model reads at once, if it says so."""
        told = self._server.ask("/v1/models")
        try:
            bases = [card for card in told["data"] if card.get("parent") is None]
            served = {name for card in bases for name in (card["id"], card.get("root"))}
            lengths = [int(card["max_model_len"]) for card in bases if card.get("max_model_len")]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(
                f"{self._server.url} is no vLLM server: its /v1/models lists no models. Set "
                f"vllm.url. Start a server with\n  {self._command()}"
            ) from error
        if not served & {self._config.name, model_source(self._config.name)}:
            named = ", ".join(sorted(filter(None, served)))
            raise EngineError(
                f"The vLLM server at {self._server.url} serves {named}, and the run's model is "
                f"{self._config.name}. Start it with\n  {self._command()}"
            )
        # Without runtime updating there is no such address. With it, this is merely incomplete.
        if self._server.status("/v1/load_lora_adapter", {"lora_name": "", "lora_path": ""}) == 404:
            raise EngineError(
                f"The vLLM server at {self._server.url} takes no adapters while it runs. Start it "
                f"with\n  {self._command()}"
            )
        return min(lengths, default=None)

    def _command(self) -> str:
        """Return the command that starts a suitable server on this machine."""
        config, port = self._config, urlsplit(self._settings.url).port
        rank = next((r for r in _RANKS if r >= config.lora_rank), config.lora_rank)
        return (
            f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {model_source(config.name)} "
            f"--served-model-name {config.name} --enable-lora --max-lora-rank {rank} "
            f"--logprobs-mode processed_logprobs --generation-config vllm --dtype {config.dtype}"
            f"{f' --port {port}' if port else ''}"
        )

    def _request(self, acting: Acting, prompt: TokenIds, seed: int) -> dict[str, Any]:
        """Ask for one row: everything is said, so that no default of the server has a say."""
        length = len(prompt) + acting.max_action_tokens
        if self._longest is not None and length > self._longest:
            raise EngineError(
                f"A prompt of {len(prompt):,} tokens and an action of "
                f"{acting.max_action_tokens:,} do not fit the vLLM server's max_model_len of "
                f"{self._longest:,}. Start it with --max-model-len {length} or more, or use "
                "shorter prompts or actions."
            )
        assert self._adapters is not None, "the adapters have not been handed over"
        codec = self._model.codec
        return {
            "model": self._adapters,
            "prompt": [*prompt],
            "max_tokens": acting.max_action_tokens,
            "seed": seed,
            "temperature": acting.free_temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logit_bias": self._bias or None,
            # The end token is the one that the run knows. Stop texts only save tokens: what
            # follows one is dropped in any case.
            "ignore_eos": True,
            "stop_token_ids": [codec.end_id],
            "stop": [*acting.stop],
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "return_token_ids": True,
            "logprobs": 0,
        }

    def _read(
        self, told: Mapping[str, Any], request: Mapping[str, Any]
    ) -> tuple[list[int], list[float]]:
        """Read the tokens and log-probabilities of an answer."""
        where, most = f"The vLLM server at {self._server.url}", request["max_tokens"]
        try:
            choice = told["choices"][0]
            tokens = [int(token) for token in choice["token_ids"]]
            logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
            finish = choice["finish_reason"]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(
                f"{where} answers without token ids or log-probabilities. poad needs vLLM 0.10.2 "
                "or newer, which returns both."
            ) from error
        if len(logprobs) != len(tokens) or choice.get("prompt_token_ids") != request["prompt"]:
            raise EngineError(
                f"{where} answers with {len(logprobs)} log-probabilities for {len(tokens)} tokens, "
                "or for another prompt than it was asked about. poad was written against vLLM 0.33."
            )
        if not tokens or finish not in ("stop", "length"):
            raise EngineError(f"{where} broke an action off ({finish}); its log says why.")
        if finish == "length" and len(tokens) < most:
            raise EngineError(
                f"{where} ended an action after {len(tokens)} of {most} tokens, so its "
                "max_model_len is too short. Start it with a larger --max-model-len."
            )
        return tokens, logprobs

    def _hand_over(self, name: str) -> None:
        """Write the adapters where the server sees them, and let it load them."""
        try:
            if self._folder is None:
                self._folder = self._new_folder()
            save_adapters(self._model, self._folder / name, self._config.name)
        except (OSError, SafetensorError) as error:
            raise EngineError(
                f"Cannot write the adapters for the vLLM server: {error}. Set vllm.folder to a "
                "directory that both can read."
            ) from error
        path = {"lora_name": name, "lora_path": str(self._folder / name)}
        self._server.tell("/v1/load_lora_adapter", path)
        self._take_back(self._adapters)

    def _new_folder(self) -> Path:
        """Make a directory of this engine's own, which only this user can read."""
        parent = os.path.abspath(os.path.expanduser(self._settings.folder or tempfile.gettempdir()))
        os.makedirs(parent, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="poad-adapters-", dir=parent))

    def _take_back(self, name: str | None) -> None:
        """Let the server forget adapters that are out of date, and delete them."""
        if name is None or self._folder is None:
            return
        shutil.rmtree(self._folder / name, ignore_errors=True)
        with contextlib.suppress(EngineError):  # one that was started anew does not know them
            self._server.tell("/v1/unload_lora_adapter", {"lora_name": name})


class _Server:
    """An HTTP server that answers in JSON.

    Args:
        url: its address, without a slash at the end.
        timeout: seconds it may take for an answer.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self._timeout = url, timeout

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Ask for a path, by POST if there is a body; return the JSON of the answer.

        Raises:
            EngineError: there is no answer, it refuses, or it is no JSON.
        """
        try:
            return json.loads(self.tell(path, body))
        except ValueError as error:
            raise EngineError(f"{self.url}{path} answers without JSON. Set vllm.url.") from error

    def tell(self, path: str, body: Mapping[str, Any] | None) -> bytes:
        """Send a request like `ask`; return the answer as it is."""
        try:
            return self._open(path, body)
        except urllib.error.HTTPError as error:
            code, said = error.code, _message(error)
        raise EngineError(f"The vLLM server at {self.url} refuses {path} ({code}): {said}")

    def status(self, path: str, body: Mapping[str, Any]) -> int:
        """Return the status of the answer to a POST."""
        try:
            self._open(path, body)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        return 200

    def _open(self, path: str, body: Mapping[str, Any] | None) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(_KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data, headers)
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise EngineError(
                    f"The vLLM server at {self.url} has not answered {path} for "
                    f"{self._timeout:g} s. Set a larger vllm.timeout if it needs longer."
                ) from error
            raise EngineError(
                f"No vLLM server answers at {self.url} ({reason}). Start it, or set vllm.url; "
                "docs/scaling.md has the command."
            ) from error


def _message(error: urllib.error.HTTPError) -> str:
    """Return what an answer says of an error, in one line."""
    with error:
        text = error.read().decode(errors="replace")
    try:
        told = json.loads(text)
        text = str(told["error"]["message"] if "error" in told else told["detail"])
    except (ValueError, KeyError, TypeError):
        pass
    text = beginning(" ".join(text.split()), 300)
    return text if text.endswith((".", "!", "?")) else f"{text}."
