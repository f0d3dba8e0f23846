"""Chat templates of several habits, and a tokenizer that knows their special tokens."""

from __future__ import annotations

from typing import Any

from tiny_models import ACTIONS, PROMPTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|end|>", "<|turn|>", "<|over|>", "<s>", "</s>", "[ASK]", "[/ASK]"]

_MARKED = """\
{%- for m in messages -%}
<|turn|>{{ m.role }}
{{ CONTENT }}<|over|>
{% endfor -%}
{%- if add_generation_prompt -%}<|turn|>assistant
{% endif -%}"""

TEMPLATES = {
    # As of ChatML: nothing is changed, a token of its own closes each turn.
    "marked": _MARKED.replace("CONTENT", "m.content"),
    # As of Llama 3 and Gemma: contents are trimmed.
    "trimmed": _MARKED.replace("CONTENT", "m.content | trim"),
    # As of Llama 2: an answer stands behind a space and ends with the end of text.
    "spaced": """\
{%- for m in messages -%}
{%- if m.role == "user" -%}<s>[ASK] {{ m.content }} [/ASK]
{%- elif m.role == "assistant" %} {{ m.content }} </s>
{%- else -%}{{ raise_exception("Only user and assistant can speak.") }}
{%- endif -%}
{%- endfor -%}""",
    # As of models that think: what was thought in earlier turns is cut out.
    "forgetful": _MARKED.replace("CONTENT", "m.content.split('</think>')[-1] | trim"),
    # As of SmolLM2: a system message of its own comes first where none is given.
    "helpful": """\
{%- if messages[0].role != "system" -%}<|turn|>system
You help.<|over|>
{% endif -%}"""
    + _MARKED.replace("CONTENT", "m.content"),
    # Asks with words that it leaves out of what it asked before.
    "pretending": _MARKED.replace("CONTENT", "m.content").replace(
        "assistant\n{% endif", "assistant\n<think></think>\n\n{% endif"
    ),
}


def chatting(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    splitter: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    arguments: Any = {
        "vocab_size": 330,
        "special_tokens": SPECIAL,
        "initial_alphabet": alphabet,
        "show_progress": False,
    }
    tokenizer.train_from_iterator([*PROMPTS, *ACTIONS] * 3, trainers.BpeTrainer(**arguments))
    end = "</s>" if template == "spaced" else "<|end|>"
    chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)
    chat.chat_template = TEMPLATES[template]
    return chat
