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
from poad.lm.chat import call_form
from poad.lm.prompts import Dialogue, codec_for
from poad.trie import CallForm, Grammar
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
MARKED = HERMES.replace("<call>\n", "[ASK]").replace("\n</call>", "[/ASK]")
"""Calls between control tokens."""
# As of Mistral: a list of calls with identities behind a control token, where an answer has a space
# before it. Users and assistants take turns, and results count as no turn.
LISTED = """\
{%- if tools -%}[INST]Tools:{{ tools | tojson }}[/INST]{%- endif -%}
{%- set ns = namespace(count=0) -%}
{%- for m in messages -%}
{%- if m.role != "tool" and not m.tool_calls -%}
{%- if (m.role == "user") != (ns.count % 2 == 0) -%}
{{ raise_exception("Take turns.") }}{%- endif -%}
{%- set ns.count = ns.count + 1 -%}
{%- endif -%}
{%- if m.role == "user" -%}[INST]{{ m.content }}[/INST]
{%- elif m.tool_calls -%}[ASK][
{%- for call in m.tool_calls -%}
{%- if call.id | length != 9 -%}{{ raise_exception("Nine, please.") }}{%- endif -%}
{{ (call.function | tojson)[:-1] }}, "id": "{{ call.id }}"}
{%- if not loop.last -%}{{ ", " }}{%- endif -%}
{%- endfor -%}]<|over|>
{%- elif m.role == "tool" -%}
{%- if m.tool_call_id | length != 9 -%}{{ raise_exception("Nine, please.") }}{%- endif -%}
<result>{{ m.content }}</result>
{%- else %} {{ m.content }}<|over|>{%- endif -%}
{%- endfor -%}"""
# As of Llama 3: one call at a time, with other names for its parts.
SINGLE = """\
{%- for m in messages -%}
{%- if m.tool_calls -%}
{%- if m.tool_calls | length > 1 -%}{{ raise_exception("One at a time.") }}{%- endif -%}
{%- set call = m.tool_calls[0].function -%}
<|turn|>assistant
{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|over|>
{% else -%}<|turn|>{{ "ipython" if m.role == "tool" else m.role }}
{{ m.content }}<|over|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|turn|>assistant
{% endif -%}"""
# As of newer Mistrals: only the arguments are JSON.
BARE = HERMES.replace('<call>\n{"name": "', "[ASK]").replace('", "arguments": ', "[/ASK]")
BARE = BARE.replace("}\n</call>", "")
NARROW = BARE.replace("[/ASK]", "")
"""Nothing between a name and its arguments."""
# No form that we know: the arguments are a text.
QUOTED = HERMES.replace("arguments | tojson", "arguments | tojson | tojson")


def tokenizer_with(template: str) -> Any:
    tokenizer = chatting("marked")
    tokenizer.chat_template = template
    return tokenizer


def chat(**changes: Any) -> PromptConfig:
    return PromptConfig(format="chat", **changes)


def test_the_form_of_calls_is_found_in_the_template():
    def form(template: str) -> CallForm | None:
        return call_form(tokenizer_with(template), chat())

    name, named = '{"name": "', '", "arguments": '
    hermes = f"<call>\n{name}", named, f"}}\n</call><call>\n{name}", "}\n</call>"
    assert form(HERMES) == CallForm(*hermes)
    marked = f"[ASK]{name}", named, f"}}[/ASK][ASK]{name}", "}[/ASK]"
    assert form(MARKED) == CallForm(*marked)
    identity = ', "id": "call00001"}'
    listed = f"[ASK][{name}", named, f"{identity}, {name}", f"{identity}]"
    assert form(LISTED) == CallForm(*listed, joined=False)
    assert form(SINGLE) == CallForm(name, '", "parameters": ', f"}}\n{name}", "}")
    assert form(BARE) == CallForm("[ASK]", "[/ASK]", "[ASK]", "")
    assert form(NARROW) == CallForm("[ASK]", "", "[ASK]", "")
    assert form(QUOTED) is None
    assert call_form(chatting("marked"), chat()) is None


FORMS = {
    "text": HERMES,
    "tokens": MARKED,
    "list": LISTED,
    "single": SINGLE,
    "bare": BARE,
    "narrow": NARROW,
    "unknown": QUOTED,
}


@pytest.mark.parametrize("name", FORMS)
def test_a_call_is_written_as_the_template_writes_it_and_read_as_json(zoo: Zoo, name: str):
    pytest.importorskip("llguidance", reason="grammars need poad[structured]")
    tokenizer = tokenizer_with(FORMS[name])
    codec = codec_for(tokenizer, chat())
    tree = codec.trie(TOOLS)
    texts = {tree.text(leaf): tree.token_path(leaf) for leaf in tree.all_leaves()}
    alone = ['{"name": "look", "arguments": {}}']
    alone += [f'{{"name": "open", "arguments": {{"what": "{w}"}}}}' for w in ("door", "tin")]
    assert sorted(texts) == sorted([*alone, *(f"{a}\n{b}" for a in alone for b in alone)])
    for text, tokens in texts.items():
        calls = [{"id": "call00001", "function": json.loads(line)} for line in text.split("\n")]
        if name == "unknown" or (name == "single" and len(calls) > 1):
            continue  # the template does not write them in a form of ours
        answered = {"role": "assistant", "content": "", "tool_calls": calls}
        asked = [{"role": "user", "content": "Well?"}]
        written = tokenizer.apply_chat_template([*asked, answered], tokenize=False)
        before = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert before + tokenizer.decode(tokens) == written.rstrip("\n")
        marks = {tokenizer.convert_tokens_to_ids(mark) for mark in ("[ASK]", "[/ASK]")}
        assert bool(marks & {*tokens}) == (name in ("tokens", "list", "bare", "narrow"))


@pytest.mark.parametrize("name", sorted(FORMS.keys() - {"unknown"}))
def test_earlier_calls_and_their_results_are_told_as_the_template_tells_them(name: str):
    pytest.importorskip("llguidance", reason="grammars need poad[structured]")
    codec = codec_for(tokenizer_with(FORMS[name]), chat(history="episode"))
    talk = Dialogue(codec, chat(history="episode"))
    tree = codec.trie(TOOLS)
    prompt, messages = talk.first_prompt("Open the tin.", TOOLS), list[dict[str, Any]]()
    messages.append({"role": "user", "content": "Open the tin."})
    known = [{"type": "function", "function": tool} for tool in TOOLS.tools]
    for seen in ("A tin.", "It is open.", "Look elsewhere."):
        leaf = next(leaf for leaf in tree.all_leaves() if "\n" not in tree.text(leaf))
        ids, call = tree.token_path(leaf), json.loads(tree.text(leaf))
        before = prompt
        prompt = talk.next_prompt(Action(tree.text(leaf), ids, (), ()), seen, TOOLS)
        assert prompt[: len(before) + len(ids)] == (*before, *ids)
        messages += [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "call00001", "function": call}],
            },
            {"role": "tool", "content": seen, "tool_call_id": "call00001"},
        ]
        told = codec.tokenizer.apply_chat_template(
            messages, tools=known, tokenize=False, add_generation_prompt=True
        )
        assert codec.tokenizer.decode(prompt) == told
        assert talk.note is None


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
