"""The words of the desk: prompts that need no memory.

A prompt tells the goal, what was found and done so far, and what the last call led to. Only the
fields of the newest records are kept, so that it stays short.
"""

from collections.abc import Sequence
from typing import Final, Literal, get_args

from poad.envs.tooldesk.calls import Shown
from poad.envs.tooldesk.desk import Row, Value

ShowTools = Literal["auto", "none", "names", "full"]
SHOW_TOOLS: Final = get_args(ShowTools)
MOST_NOTES: Final = 8
"""The number of records that a prompt tells of. No shortest solution meets more."""


class Notes:
    """What was found out so far: the fields of records, the record that was met last at the end."""

    def __init__(self) -> None:
        self._records: dict[str, dict[str, Value]] = {}

    def add(self, rows: Sequence[Row]) -> None:
        """Note what a call returned."""
        for row in rows:
            fields = self._records.pop(row.subject, {}) | dict(row.fields)
            self._records[row.subject] = fields
        for subject in list(self._records)[:-MOST_NOTES]:
            del self._records[subject]

    def __str__(self) -> str:
        told = (
            f"{subject}: {', '.join(f'{name} {value}' for name, value in fields.items())}"
            for subject, fields in self._records.items()
        )
        return "; ".join(told) or "nothing"


def prompt(goal: str, tools: str, notes: Notes, last: str) -> str:
    """Write a prompt. `tools` and `last` may be empty."""
    lines = [tools, f"Goal: {goal}", f"Found: {notes}", f"Last: {last}", "Call:"]
    return "\n".join(line for line in lines if line not in ("", "Last: "))


def listed(tools: Sequence[Shown], show: ShowTools) -> str:
    """List the tools as a prompt shows them."""
    if show == "names":
        return f"Tools: {', '.join(shown.name for shown in tools)}"
    return "\n".join(map(_described, tools)) if show == "full" else ""


def _described(shown: Shown) -> str:
    pairs = zip(shown.parameters, shown.tool.parameters, strict=True)
    parameters = ", ".join(f"{name}: {parameter.means}" for name, parameter in pairs)
    return f"{shown.name}({parameters}) {shown.tool.does}."


def told(name: str, arguments: Sequence[Value], rows: Sequence[Row], error: str) -> str:
    """Tell what a call led to."""
    call = " ".join([name, *map(_word, arguments)])
    gave = f"gave {' and '.join(row.subject for row in rows)}" if rows else f"failed. {error}"
    return clean(f"{call} {gave}")


def clean(text: str, limit: int = 200) -> str:
    """Keep the printable ASCII characters of a text, others become "?", and cut it off."""
    kept = "".join(each if " " <= each <= "~" else "?" for each in text[: limit + 1])
    return kept if len(kept) <= limit else f"{kept[: limit - 4]} ..."


def _word(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
