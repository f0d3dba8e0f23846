"""The service desk as a Gymnasium environment."""

import string
from typing import Any, Final, Literal, get_args

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

from poad.envs.registry import FreeText
from poad.envs.tooldesk import rules, tasks, text
from poad.envs.tooldesk.calls import Malformed, Toolbox
from poad.envs.tooldesk.desk import CHANGES, LOOKUPS, Call
from poad.envs.tooldesk.families import Fact
from poad.envs.tooldesk.rules import Move
from poad.envs.tooldesk.scene import MOST_CUSTOMERS
from poad.envs.tooldesk.text import SHOW_TOOLS, Notes, ShowTools
from poad.errors import ConfigError

Reward = Literal["final", "steps"]
Arguments = Literal["finite", "open"]

CHARACTERS: Final = string.ascii_letters + string.digits + string.punctuation + " \n"
MOST_DISTRACTORS: Final = len(LOOKUPS) + len(CHANGES)
UNFIT: Final = 0.2
"""The share of tasks that no tool fits, if names are masked."""


class ToolDeskEnv(gymnasium.Env[str, str]):
    """A service desk, where an agent serves requests by calling tools.

    ## Description
    The desk is a small database of customers, orders and tickets. A request comes in, such as
    "Cancel the lamp of Mara from Ulm. Answer with the reference." The agent looks up what it needs
    (Mara is C3, her lamp is O5, its price is 4), makes the change, and answers with what the change
    returned. It is not told ids, prices or references before it looks them up.

    There are seven tools for looking up, five for changes and two that end the episode. Each has 1
    to 8 parameters. Most of them are distractors in any given task. Look-ups read the database, and
    changes change it. What cannot be done is an error: an order that was shipped cannot be
    redirected. A change that the request does not ask for is a mistake and ends the episode. An
    answer is right only if a call has returned what it tells, so a lucky guess is none.

    Requests come in families. A solution takes 2 calls (`stock`, `status`, `redirect`), 3
    (`arrival`, `language`, `close`, `undo`), 4 (`home`) or 5 (`cancel`, `complaint`). The held-out
    families combine the same tools in other ways: `named_status`, `named_redirect`, `named_close`
    and `two_changes` take 4 or 5 calls, `refund` 5 and `named_complaint` 6. These are the fewest
    calls for an agent that knows only what it was told. The seed draws the family, the records,
    the wording, and everything else that is random. The world is our own, and not a published
    benchmark.

    ## Actions
    An action is one call in JSON, with the arguments in the order of the tool's parameters:
    `{"name": "get_order", "arguments": {"order_id": "O5"}}`. The argument of an answer has the name
    of what the request asks for: `{"name": "answer", "arguments": {"status": "shipped"}}`.

    `poad/ToolDesk-v0` does not list actions. `info["action_grammar"]` describes them instead:
    `{"tools": [...]}` in the shape of function-calling interfaces, with a JSON schema for the
    parameters of each tool. All arguments have finitely many values: ids, words such as names and
    cities, whole numbers from 1 to 9, and truth values. `open_ticket` alone admits 25,920 calls,
    and 311,040 with `customers=16`. The prompt determines the grammar.

    The world reads any JSON of a call, also with other spaces or another order of keys, in a code
    fence or in `<tool_call>` tags, and with numbers or truth values written as strings. Any other
    text takes a step and changes nothing. The next prompt says what is wrong with it, and
    `info["invalid_action"]` holds it.

    ## Observation
    The observation is a prompt of a few lines, which an action continues after a space. It states
    the goal, the fields of the records that were found, and what the last call led to. Nothing has
    to be remembered, except that only the 8 newest records are kept. `info["goal"]` is the goal,
    and `info["family"]` the family. `env.unwrapped.solution()` gives the actions of a shortest
    solution.

    Chat models get the tools through their template, and a small model with masked choices can
    learn their names, so prompts do not describe them by default. `show_tools` changes that.

    ## Rewards
    With `reward="final"`, the reward is 1 for the right answer after all changes that the request
    asks for, and 0 otherwise.

    With `reward="steps"`, each call is also paid for what it achieves, in the manner of StepTool
    (arXiv 2410.07745). The flow of data decides about that, not a judge:

    * 0.05 if it *succeeded*. A look-up succeeds if it is the first to return an id or a field that
      the solution needs and the goal does not tell. A change succeeds if the request asks for it,
      and an answer if it is right. A mistaken change of the right kind gets the share of its right
      arguments, and ends the episode.
    * 0.05 for each *contribution* that it uses. An earlier call contributes when what it returned
      is an argument of a call that succeeds. This is paid at the time of use, once for each id or
      field, so neither a repeated call nor a look-up without use earns it.

    The best policy still solves the task. Everything is paid at most once, all of it together is
    below the 1 of the answer, and a shortest solution collects all of it.

    ## Episode end
    The episode is `terminated` by `answer`, by `decline`, and by a mistaken change. It is
    `truncated` after `max_steps` calls. A step after the end or before the first reset raises
    `gymnasium.error.ResetNeeded`.

    After a step, `info` also holds `"duration"`, which is 1, `"measures"` with `valid` (1 for a
    call), `succeeded` (from 0 to 1) and `contributed` (the number of contributions that the call
    uses for the first time), and `"sources"`: the numbers of the earlier calls whose results a
    successful call uses, counted from 1. Both are there with either kind of reward. At the end of
    an episode it holds `"episode"`: the return `r` (the sum of the rewards), the number of calls
    `l`, and `success`. An agent that draws a tool uniformly, and then each of its arguments,
    succeeds in 0.05 to 0.4 % of the episodes that ask for information, and in less than 0.1 % of
    those that ask for a change.

    ## Masks, and tasks that no tool fits
    An agent can learn tools by heart, without reading what they do. Hammer (arXiv 2410.04587) finds
    that out with other names. With `masked=True`, the names of tools and parameters are random
    strings in each episode, and the tools are shuffled. The same seed gives the same task.

    In the share `unfit` of the episodes no tool fits: one that the request takes is missing, or the
    request is for something else. Then it is right to call `decline`, and nothing else.

    ## Arguments
    * `families`: "train" (the default), "unseen", "all", or names of families with commas between.
    * `reward`: "final" (the default) or "steps".
    * `masked`: True to mask names and shuffle the tools, False by default.
    * `unfit`: the share of tasks that no tool fits. None, the default, means 0, and 0.2 with
      `masked`.
    * `distractors`: how many tools there are at most that the task does not take, all by default.
    * `customers`: the number of customers, from 2 to 16, 4 by default. There are two more orders
      than customers, and as many tickets.
    * `arguments`: "finite" (the default), or "open" to let ids, names, items, cities and answers
      be any strings. Then unknown ones are errors of the desk.
    * `show_tools`: "none", "names" or "full" (with parameters and descriptions) in the prompt.
      "auto", the default, means "full" with `masked`, else "names" if tools may be missing (with
      `unfit` or fewer `distractors`), else "none". So the prompt tells what may be called.
    * `max_steps`: the limit in calls, 10 by default.
    """

    free_text = FreeText(max_tokens=128)

    def __init__(
        self,
        families: str = "train",
        reward: Reward = "final",
        masked: bool = False,
        unfit: float | None = None,
        distractors: int = MOST_DISTRACTORS,
        customers: int = 4,
        arguments: Arguments = "finite",
        show_tools: ShowTools = "auto",
        max_steps: int = 10,
    ) -> None:
        self.families = tasks.named(families)
        choices = {
            "reward": (reward, get_args(Reward)),
            "arguments": (arguments, get_args(Arguments)),
            "show_tools": (show_tools, SHOW_TOOLS),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        unfit = (UNFIT if masked else 0.0) if unfit is None else unfit
        if not 0 <= unfit <= 1:
            raise ConfigError(f"unfit must be a share from 0 to 1, got {unfit}.")
        if distractors < 0:
            raise ConfigError(f"distractors must not be negative, got {distractors}.")
        if not 2 <= customers <= MOST_CUSTOMERS:
            raise ConfigError(f"customers must be from 2 to {MOST_CUSTOMERS}, got {customers}.")
        if max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, got {max_steps}.")
        if show_tools == "auto":
            missing = unfit or distractors < MOST_DISTRACTORS
            show_tools = "full" if masked else "names" if missing else "none"
        self.max_steps, self._unfit, self._customers = max_steps, unfit, customers
        self._distractors, self._masked, self._opened = distractors, masked, arguments == "open"
        self._show_tools: ShowTools = show_tools
        self._stepwise = reward == "steps"
        self.observation_space = Text(max_length=8192, charset=CHARACTERS)
        self.action_space = Text(max_length=4096, min_length=0, charset=CHARACTERS)
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode. The seed draws the task, and the masks if there are any."""
        super().reset(seed=seed)
        rng = self.np_random
        family = self.families[int(rng.integers(len(self.families)))]
        fits = rng.random() >= self._unfit
        self.task = tasks.draw_task(rng, family, self._customers)
        if not fits:
            self.task = tasks.draw_unfit(rng, self.task)
        self.toolbox = Toolbox(self.task, self._distractors, self._masked, self._opened, rng)
        self.state = rules.start(self.task)
        """The hidden state, for tests."""
        self._notes, self._origins = Notes(), dict[Fact, int]()
        self._steps, self._return, self._running = 0, 0.0, True
        return self._prompt(""), self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out a call. If the text is none, `info["invalid_action"]` holds it."""
        if not self._running:
            raise ResetNeeded("No episode is running; call reset() before step().")
        self._steps += 1
        info = self._info()
        try:
            call = self.toolbox.read(action)
        except Malformed as fault:
            info |= {"invalid_action": action, "sources": ()}
            info["measures"] = {"valid": 0.0, "succeeded": 0.0, "contributed": 0.0}
            reward, last = 0.0, text.clean(f"that was no call. {fault}")
        else:
            move = rules.advance(self.task, self.state, call)
            reward = float(move.state.success) + (move.pay if self._stepwise else 0.0)
            last = self._take(call, move)
            info["sources"] = tuple(sorted({self._origins[fact] for fact in move.flow}))
            paid = {"succeeded": move.succeeded, "contributed": float(move.contributed)}
            info["measures"] = {"valid": 1.0, **paid}
        self._return += reward
        over = self.state.over
        truncated = not over and self._steps >= self.max_steps
        self._running = not (over or truncated)
        if not self._running:
            success = self.state.success
            info["episode"] = {"r": self._return, "l": self._steps, "success": success}
        return self._prompt(last), reward, over, truncated, info

    def solution(self) -> tuple[str, ...]:
        """Return the actions of a shortest solution of the current task, from its beginning."""
        return tuple(map(self.toolbox.write, self.task.plan))

    def _take(self, call: Call, move: Move) -> str:
        """Take over what a call led to, and tell it."""
        for fact in move.state.found - self.state.found:
            self._origins[fact] = self._steps
        self.state = move.state
        self._notes.add(move.outcome.rows)
        name = self.toolbox.shown[call.tool].name
        return text.told(name, call.arguments, move.outcome.rows, move.outcome.error)

    def _prompt(self, last: str) -> str:
        tools = text.listed(tuple(self.toolbox.shown.values()), self._show_tools)
        if self.state.over:
            return "The request is closed."
        return text.prompt(self.task.goal, tools, self._notes, last)

    def _info(self) -> dict[str, Any]:
        return {
            "action_grammar": self.toolbox.grammar,
            "goal": self.task.goal,
            "family": self.task.family,
            "duration": 1,
        }
