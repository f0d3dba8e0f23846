"""What the programmer reads, and how what it writes becomes a program. Strings in, strings out.

The prompt is the beginning of a Python module: what the data are, what is wanted, and an opened
function whose body the agent writes. It is short on purpose: every token of it costs a language
model time. After a failure the last attempt and its error come first, so that the prompt still ends
exactly as the first one did.
"""

import string
from typing import Final, Literal, TypeAlias

CHARACTERS: Final = "\n" + string.digits + string.ascii_letters + string.punctuation + " "
"""The characters of a prompt; others are shown as question marks."""
MAX_BODY: Final = 600
"""How many characters of the last attempt are shown."""
MAX_ERROR: Final = 160
"""How many characters of its error are shown."""
MAX_NAME: Final = 60
"""How many characters of a data set's name are shown."""

OPENING: Final = "def build_model(x_train, y_train):\n"
CLOSING: Final = "    return model\n"
INDENT: Final = "    "
STOPS: Final = ("\n    return model", "\ndef ", "\nclass ", "\nif ", "\nprint(", "\n#", "\n```")
"""What models write when the body is over."""

Marking: TypeAlias = Literal["none", "code-llama", "starcoder", "qwen"]
MARKINGS: Final[dict[str, tuple[str, str, str]]] = {
    "none": ("", "", ""),
    "code-llama": ("", "<FILL_ME>", ""),
    "starcoder": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "qwen": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
}
"""What models with fill-in-the-middle tokens read before, between and after the text around the
gap. CodeLlama's tokenizer puts its own tokens in the place of "<FILL_ME>"; CodeGemma reads "qwen".
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
    """Tell the task and open the function; the agent's text reads on from here.

    Args:
        name: the data set's name in words.
        rows: of the whole table; a program is trained on one half and scored on the other.
        features: how many columns `x_train` has.
        classes: how many classes `y_train` has.
        previous: the last attempt's body as it was written, and its error.
        fill_in_the_middle: a key of `MARKINGS`; other than "none", the prompt also shows how the
            function ends.
    """
    before, between, after = MARKINGS[fill_in_the_middle]
    told = "".join(
        [
            "" if previous is None else _attempt(*previous),
            f"# Data: {_line(name, MAX_NAME)}; {rows} rows, {features} features, "
            f"{classes} classes.\n",
            "# Fit a scikit-learn classifier `model` with a high ROC-AUC.\n",
            OPENING,
        ]
    )
    return before + told + between + (CLOSING if between else "") + after


def program(body: str) -> str:
    """Give the whole source of a module that defines `build_model`, around a body as written.

    Who strips what the agent wrote takes away the first line's indentation; it is given back.
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
    """Only `CHARACTERS`, and nothing that a tokenizer would take for one of the markings."""
    text = "".join(c if c in CHARACTERS else "?" for c in text.expandtabs(len(INDENT)))
    for marks in MARKINGS.values():
        for mark in filter(None, marks):
            text = text.replace(mark, "?")
    return text
