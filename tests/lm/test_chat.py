"""Tools in conversations: how a template tells of them, how calls are written, what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chats import chatting
from tiny_models import PROMPTS, Zoo

from poad.agent.policy import Policy
from poad.agent.settings import Acting
from poad.config import PromptConfig
from poad.lm.chat import call_border
from poad.lm.prompts import Dialogue, codec_for
from poad.trie import Border, Grammar
from poad.turns import Action

TOOLS = Grammar.of(
    {
        "tools": [
            {"name": "look", "description": "See what is there."},
            {
                "name": "open",
                "parameters": {
                    "type": "object",
                    "properties": {"what": {"enum": ["door", "tin"]}},
                    "required": ["what"],
                },
            },
        ],
        "calls": 2,
    }
)

# As of Hermes and Qwen: calls between marks, results as what the user says.
HERMES = """\
{%- if tools -%}<|turn|>system
Tools:{% for tool in tools %} {{ tool.function | tojson }}{% endfor %}<|over|>
{% endif -%}
{%- for m in messages -%}
{%- if m.role == "tool" -%}<|turn|>user
<result>{{ m.content }}</result><|over|>
{% elif m.tool_calls -%}<|turn|>assistant
{% for call in m.tool_calls -%}
{%- if not loop.first %}
{% endif -%}
<call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</call>{% endfor %}<|over|>
{% else -%}<|turn|>{{ m.role }}
{{ m.content }}<|over|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|turn|>assistant
{% endif -%}"""
# As of Mistral: a control token before a list of calls, which is another form of calls.
LISTED = (
    HERMES.replace("<call>\n{", "[ASK][{")
    .replace("}\n</call>", "}]")
    .replace('"arguments"', '"parameters"')
)
MARKED = HERMES.replace("<call>\n", "[ASK]").replace("\n</call>", "[/ASK]")
"""Calls between control tokens."""


def tokenizer_with(template: str) -> Any:
    tokenizer = chatting("marked")
    tokenizer.chat_template = template
    return tokenizer


def chat(**changes: Any) -> PromptConfig:
    return PromptConfig(format="chat", **changes)


def test_what_stands_around_calls_is_found_in_the_template():
    border = call_border(tokenizer_with(HERMES), chat())
    assert border == Border("<call>\n", "\n</call><call>\n", "\n</call>")
    assert call_border(tokenizer_with(MARKED), chat()) == Border("[ASK]", "[/ASK][ASK]", "[/ASK]")
    assert call_border(tokenizer_with(LISTED), chat()) is None
    assert call_border(chatting("marked"), chat()) is None


@pytest.mark.parametrize("template", [HERMES, MARKED, LISTED], ids=["text", "tokens", "unknown"])
def test_a_call_is_written_as_the_template_writes_it_and_read_as_json(zoo: Zoo, template: str):
    pytest.importorskip("llguidance", reason="grammars need poad[structured]")
    tokenizer = tokenizer_with(template)
    codec = codec_for(tokenizer, chat())
    tree = codec.trie(TOOLS)
    texts = {tree.text(leaf): tree.token_path(leaf) for leaf in tree.all_leaves()}
    alone = ['{"name": "look", "arguments": {}}']
    alone += [f'{{"name": "open", "arguments": {{"what": "{w}"}}}}' for w in ("door", "tin")]
    assert sorted(texts) == sorted([*alone, *(f"{a}\n{b}" for a in alone for b in alone)])
    for text, tokens in texts.items():
        calls = [{"function": json.loads(line)} for line in text.split("\n")]
        answered = {"role": "assistant", "content": "", "tool_calls": calls}
        asked = [{"role": "user", "content": "Well?"}]
        written = tokenizer.apply_chat_template([*asked, answered], tokenize=False)
        before = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        if template is not LISTED:  # whose calls are of another form, so they are written bare
            assert before + tokenizer.decode(tokens) + "\n" == written
            marks = {tokenizer.convert_tokens_to_ids(mark) for mark in ("[ASK]", "[/ASK]")}
            assert bool(marks & {*tokens}) == (template is MARKED)


def test_tools_are_told_and_results_come_back_in_their_role():
    codec = codec_for(tokenizer_with(HERMES), chat(history="episode"))
    talk = Dialogue(codec, chat(history="episode", examples=(("Ex?", "Ample."),)))
    decode = codec.tokenizer.decode
    first = talk.first_prompt("Open the tin.", TOOLS)
    text = decode(first)
    assert text.startswith("<|turn|>system\nTools:")
    assert '"name": "open"' in text
    assert "<result>" not in text
    assert text.endswith("<|turn|>user\nOpen the tin.<|over|>\n<|turn|>assistant\n")
    call = '<call>\n{"name": "look", "arguments": {}}\n</call>'
    ids = (*codec.continuation(call), codec.end_id)
    after = talk.next_prompt(Action("look", ids, (), ()), "A tin.", TOOLS)
    assert after[: len(first) + len(ids)] == (*first, *ids)
    assert decode(after).endswith(
        f"{call}<|over|>\n<|turn|>user\n<result>A tin.</result><|over|>\n<|turn|>assistant\n"
    )
    assert talk.note is None


def test_without_tools_nothing_changes():
    codec = codec_for(tokenizer_with(HERMES), chat())
    talk = Dialogue(codec, chat())
    plain = talk.first_prompt("Well?", ("look", "open"))
    assert "Tools" not in codec.tokenizer.decode(plain)
    talk.first_prompt("Well?", TOOLS)
    assert talk.first_prompt("Well?", ("look", "open")) == plain


@pytest.mark.parametrize("thinking", [0, 4])
def test_an_agent_calls_tools_in_a_chat(zoo: Zoo, thinking: int):
    import numpy as np

    from poad.turns import Observation

    model = zoo.load(tokenizer="bytes")
    config = PromptConfig(thinking=thinking)
    policy = Policy(model, Acting(max_action_tokens=12), config)
    actions = policy.act([Observation(PROMPTS[0], TOOLS)] * 6, np.random.default_rng(0))
    for action in actions:
        lines = [json.loads(line) for line in action.text.split("\n")]
        assert 1 <= len(lines) <= 2
        assert {line["name"] for line in lines} <= {"look", "open"}
