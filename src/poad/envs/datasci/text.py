"""The prompts of data-science coding, and the program around an agent's text.

The prompt is the beginning of a Python module: a description of the data and the task, and the
first line of a function whose body the agent writes. It is short because every token costs
computation. After a failure, the last attempt and its error come first, so that the prompt still
ends exactly as the first one did.
"""

import string
from typing import Final, Literal, TypeAlias

CHARACTERS: Final = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
"""The characters of a prompt. Others appear as question marks."""
MAX_BODY: Final = 600
"""The largest number of characters of the last attempt in a prompt."""
MAX_ERROR: Final = 160
"""The largest number of characters of its error."""
MAX_NAME: Final = 60
"""The largest number of characters of a data set's name."""

OPENING: Final = "def build_model(x_train, y_train):\n"
CLOSING: Final = "    return model\n"
INDENT: Final = "    "
STOPS: Final = ("\n    return model", "\ndef ", "\nclass ", "\nif ", "\nprint(", "\n#", "\n```")
"""Strings that models write after the end of the body."""

Marking: TypeAlias = Literal["none", "code-llama", "starcoder", "qwen"]
MARKINGS: Final[dict[str, tuple[str, str, str]]] = {
    "none": ("", "", ""),
    "code-llama": ("", "<FILL_ME>", ""),
    "starcoder": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "qwen": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
}
"""The fill-in-the-middle tokens of models: before the prompt, at the gap, and at the end. The
tokenizer of CodeLlama replaces "<FILL_ME>" by tokens of its own. Use "qwen" for CodeGemma.
"""


def prompt(
    name: str,
    rows: int,
    features: int,
    classes: int,
    previous: tuple[str, str] | None = None,
    *,
    fill_in_the_middle: Marking = "none",
) -> str:
    """Write the prompt: the task, and the first line of the function that the agent continues.

    Args:
        name: the data set's name in words.
        rows: the number of rows of the whole table.
        features: the number of columns of `x_train`.
        classes: the number of classes in `y_train`.
        previous: the body of the last attempt as the agent wrote it, and its error.
        fill_in_the_middle: a key of `MARKINGS`. Unless it is "none", the prompt also contains the
            end of the function.
    """
    before, between, after = MARKINGS[fill_in_the_middle]
    start = "".join(
        [
            "" if previous is None else _attempt(*previous),
            f"# Data: {_line(name, MAX_NAME)}; {rows} rows, {features} features, "
            f"{classes} classes.\n",
            "# Fit a scikit-learn classifier `model` with a high ROC-AUC.\n",
            OPENING,
        ]
    )
    return before + start + between + (CLOSING if between else "") + after


def program(body: str) -> str:
    """Return the source of a module that defines `build_model`, from the body that the agent wrote.

    If the first line has no indentation, because the text was stripped, it gets one.
    """
    return OPENING + _indented(body) + "\n" + CLOSING


def _attempt(body: str, error: str) -> str:
    shown = _plain(_indented(body))
    if len(shown) > MAX_BODY:
        shown = shown[:MAX_BODY].rstrip() + " ..."
    return f"{OPENING}{shown}\n# {_line(error, MAX_ERROR)}\n"


def _indented(body: str) -> str:
    body = body.rstrip().lstrip("\r\n")
    return body if body[:1].isspace() else INDENT + body


def _line(text: str, limit: int) -> str:
    return _plain(" ".join(text.split()))[:limit].rstrip()


def _plain(text: str) -> str:
    """Replace all but `CHARACTERS`, and strings that a tokenizer would take for a marking."""
    text = "".join(c if c in CHARACTERS else "?" for c in text.expandtabs(len(INDENT)))
    for marks in MARKINGS.values():
        for mark in filter(None, marks):
            text = text.replace(mark, "?")
    return text
