"""A class whose methods are the tools of an agent, which writes its calls as JSON."""

import asyncio
import inspect
import json
from collections.abc import Mapping
from typing import Any, Final, Literal

from poad.adapters.packages import function_named
from poad.adapters.schemas import tool_schema, wrong_with
from poad.envs import FreeText, Grammar, TextAdapter
from poad.errors import ConfigError, beginning, did_you_mean

NO_TOOLS: Final = ("reset", "get_reward")
"""Public methods that are no tools. Neither is any method that begins with an underscore."""
LONGEST: Final = 4_000
"""Characters of a tool's answer that the agent sees."""


class ToolsWorld(TextAdapter):
    """A class whose methods are tools: the agent calls them by writing JSON.

    `tools:module:Class` takes the shape that TRL calls an environment factory. Every public method
    of the class is a tool, except `reset` and `get_reward`. What a tool takes is read from its
    signature, and what it is good for from its docstring.

    ### Observation
    The first text is what `reset` returns, if it is text, followed by the list of the tools. Later
    texts are what the tools return: text as it is, and everything else as JSON. If a tool raises an
    exception, the agent reads it. The agent needs its earlier turns to go on from there, so train
    with `prompt.history=episode`.

    ### Actions
    An action is one call, such as `{"name": "add", "arguments": {"a": 1, "b": 2}}`. The agent can
    write nothing else, by `info["action_grammar"]`, unless `grammar` is false. Then any other text
    changes nothing, and the agent reads what was wrong with it.

    ### Rewards
    `get_reward()` is read when the episode ends. With `reward=step` it is read after each action,
    and the reward is what the action has added to it.

    ### Episode end
    An episode ends when an attribute or property `done` of the object is true, or after
    `max_steps` calls. It is a success if the object's attribute `success` is true, or, without
    one, if the last reward is positive.

    ### Arguments
    * `reward`: `end` or `step`, see above.
    * `prompt`: a text that the episode begins with, before what `reset` returns.
    * `list_tools`: false leaves out the list of the tools, for prompts that have one already.
    * `grammar`: false lets the agent write any text, and so it has to learn how calls are written.
    * `max_steps`: cut episodes off after so many actions, 10 by default.
    * Any other argument is passed to the class.
    """

    free_text = FreeText(stop=("\n",), max_tokens=128)

    def __init__(
        self,
        cls: str,
        /,
        *,
        reward: Literal["end", "step"] = "end",
        prompt: str = "",
        list_tools: bool = True,
        grammar: bool = True,
        max_steps: int | None = 10,
        **arguments: Any,
    ) -> None:
        super().__init__(max_steps)
        if reward not in ("end", "step"):
            raise ConfigError(f"reward must be end or step, not {reward!r}.")
        self._by_step, self._prompt, self._lists = reward == "step", prompt, list_tools
        found = function_named(cls, "tools:")
        self.world = found(**arguments)
        methods = inspect.getmembers(type(self.world), inspect.isfunction)
        schemas = [
            tool_schema(method)
            for name, method in methods
            if name not in NO_TOOLS and not name.startswith("_")
        ]
        if not schemas:
            raise ConfigError(
                f"tools:{cls} has no tools. A tool is a public method of the class, other than "
                f"{' and '.join(NO_TOOLS)}."
            )
        self.schemas = {each["function"]["name"]: each for each in schemas}
        self._offer = Grammar.of({"tools": [*self.schemas.values()]}) if grammar else None
        self._rewarded = 0.0

    @property
    def inner(self) -> object:
        """The object whose methods are called."""
        return self.world

    def begin(self, seed: int) -> tuple[str, Grammar | None]:
        """Reset the object, by the seed if it takes one."""
        said: object = None
        if (reset := getattr(self.world, "reset", None)) is not None:
            takes_seed = "seed" in inspect.signature(reset).parameters
            said = _result(reset(seed=seed) if takes_seed else reset())
        task = "\n\n".join(filter(None, (self._prompt, said if isinstance(said, str) else None)))
        self.goal = task or None
        self._rewarded = self._total() if self._by_step else 0.0
        shown = "\n\n".join(filter(None, (task, self._list() if self._lists else "")))
        return shown or "Go.", self._offer

    def act(self, action: str) -> tuple[str, Grammar | None, float, bool, bool | None]:
        """Make the call that an action is."""
        call = self._call_in(action)
        failed = isinstance(call, str)
        if isinstance(call, str):
            self.invalid, text = True, f"That is no call of a tool: {call}."
        else:
            text, failed = self._called(*call)
        self.info["measures"] = {"failed_calls": float(failed)}
        done = self._says("done") or False
        reward = 0.0
        if self._by_step or done or self.is_last_step:
            total = self._total()
            reward, self._rewarded = total - self._rewarded, total
        return text, self._offer, reward, done, self._says("success")

    def _says(self, name: str) -> bool | None:
        """Read an attribute of the object as True or False; None if there is no such attribute."""
        value = getattr(self.world, name, None)
        return None if value is None or callable(value) else bool(value)

    def _list(self) -> str:
        """List the tools, a line each, and say how to call one."""
        lines = ["You have these tools:"]
        for name, schema in self.schemas.items():
            body = schema["function"]
            parameters = body["parameters"]["properties"]
            named = ", ".join(_told(*each) for each in parameters.items())
            lines.append(f"- {name}({named}): {body['description'] or 'no description'}")
            for parameter, each in parameters.items():
                if "description" in each:
                    lines.append(f"  {parameter}: {each['description']}")
        lines.append(
            'Call one of them in a line of JSON: {"name": "TOOL", "arguments": {"NAME": VALUE}}'
        )
        return "\n".join(lines)

    def _call_in(self, action: str) -> tuple[str, dict[str, Any]] | str:
        """Read a call: the tool's name and its arguments, or what is wrong with it."""
        try:
            call = json.loads(action)
        except (ValueError, RecursionError) as error:
            return f"it is no JSON ({error})"
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return 'it must be an object with "name" and "arguments"'
        name, arguments = call["name"], call.get("arguments", {})
        if extra := call.keys() - {"name", "arguments"}:
            return f'it must hold "name" and "arguments" alone, without {sorted(extra)[0]!r}'
        if name not in self.schemas:
            near = did_you_mean(name, self.schemas)
            return f"there is no tool {name!r}. {near}There are {', '.join(self.schemas)}"
        if not isinstance(arguments, dict):
            return '"arguments" must be an object'
        schema = self.schemas[name]["function"]["parameters"]
        return wrong_with(arguments, schema, name) or (name, arguments)

    def _called(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """Call a tool; return what the agent reads, and whether the tool raised an exception."""
        try:
            value = _result(getattr(self.world, name)(**arguments))
        except Exception as error:
            return _shown(f"{name} failed: {type(error).__name__}: {error}"), True
        return _shown(value if isinstance(value, str) else json.dumps(value, default=str)), False

    def _total(self) -> float:
        get_reward = getattr(self.world, "get_reward", None)
        if get_reward is None:
            raise ConfigError(
                f"{type(self.world).__name__} has no method get_reward. Add one that returns the "
                "reward of the episode so far, a number."
            )
        return float(_result(get_reward()))


def _shown(text: str) -> str:
    """Make what a tool says fit for a prompt. JSON can hold halves of characters."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return beginning(text, LONGEST) if text.strip() else "(no text)"


def _told(name: str, schema: Mapping[str, Any]) -> str:
    """Show a parameter as in ``name: type = default``."""
    if "enum" in schema:
        kind = " | ".join(json.dumps(value) for value in schema["enum"])
    else:
        kinds = [each.get("type", "any") for each in schema.get("anyOf", [schema])]
        kind = " | ".join(kinds)
    default = f" = {json.dumps(schema['default'])}" if "default" in schema else ""
    return f"{name}: {kind}{default}"


def _result(value: Any) -> Any:
    """Wait for the result of an asynchronous method; any other is there already."""
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:
    return await value
