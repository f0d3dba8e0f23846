"""The household's prompts: the bits of an observation become a prompt and the offered actions.

Both are functions of the bits alone. They are short because every token costs computation.

A chore's prompt hides two things, as the published one does. When the agent is near both item and
appliance with empty hands, it mentions neither, nor that the item is inside. When the agent is away
from both, an item in the open appliance reads like one next to it.

An evening's prompt states everything that the agent observes, except that it is still near an item
that it has just put down. A sparse evening's prompt also leaves out the TV and the contents of the
table in most states, so that near the sofa it does not determine the offered actions.
"""

from functools import cache
from hashlib import sha256

from poad.envs.household.rules import ROOMS, Action, Fact, State, observe, offered
from poad.envs.household.tasks import Task
from poad.envs.text_world import View

ALONE = (
    *("go to the {}", "take the {}", "open the {}", "close the {}", "turn on the {}"),
    *("turn off the {}", "sit down on the {}", "stand up from the {}"),
)
"""Phrases with one noun, in the words of the household's actions."""
PAIRED = ("put the {} into the {}", "put the {} on the {}", "go from the {} to the {}")
"""Phrases with two nouns."""


def view(task: Task, state: State, distractors: int = 0) -> View:
    """Describe a state, and add distractors to the offered actions."""
    return _view(task, observe(task.house, state), distractors)


@cache
def slot_strings(task: Task) -> tuple[str, ...]:
    """Return the wording of each slot's action, which is the same in all states."""
    return tuple(_action(task, action) for action in task.house.slots)


@cache
def distractor_pool(task: Task) -> tuple[str, ...]:
    """List all phrases about the task's nouns that sound like an action but are not one."""
    nouns = (*ROOMS, *task.words.values())
    alone = [phrase.format(noun) for phrase in ALONE for noun in nouns]
    paired = [p.format(a, b) for p in PAIRED for a in nouns for b in nouns if a != b]
    return tuple(phrase for phrase in alone + paired if phrase not in slot_strings(task))


@cache
def _view(task: Task, bits: tuple[int, ...], distractors: int) -> View:
    describe = _describe_chore if task.style == "chore" else _describe_evening
    true = frozenset(fact for fact, bit in zip(task.house.observed, bits, strict=True) if bit)
    prompt = " ".join([task.goal, *describe(task, true), "Next, you should"])
    actions = [slot_strings(task)[slot] for slot in offered(task.house, bits)]
    if distractors:
        actions += _distract(task, prompt)[:distractors]
    return View(prompt, tuple(actions))


def _distract(task: Task, prompt: str) -> list[str]:
    """Shuffle the pool by hashes of the prompt, which do not depend on a random generator."""
    pool = distractor_pool(task)
    return sorted(pool, key=lambda phrase: sha256((prompt + phrase).encode()).digest())


def _action(task: Task, action: Action) -> str:
    fixtures, name = task.house.fixtures, task.words.get(action.thing, action.thing)
    opens = action.thing in fixtures and fixtures[action.thing].kind == "container"
    match action.verb:
        case "enter" | "approach":
            return f"go to the {name}"
        case "grab":
            return f"take the {name}"
        case "put":
            into = "into" if fixtures[action.onto].kind == "container" else "on"
            return f"put the {name} {into} the {task.words[action.onto]}"
        case "activate":
            return f"{'open' if opens else 'turn on'} the {name}"
        case "deactivate":
            return f"{'close' if opens else 'turn off'} the {name}"
        case "sit":
            return f"sit down on the {name}"
        case "stand":
            return f"stand up from the {name}"


def _describe_chore(task: Task, true: frozenset[Fact]) -> list[str]:
    item, appliance = task.words["item"], task.words["appliance"]
    held, seen = Fact("hold", "item") in true, Fact("see", "item") in true
    near_item, near_appliance = Fact("near", "item") in true, Fact("near", "appliance") in true
    rooms = "There are a kitchen, a bathroom, a bedroom and a living room."
    hand = f"You hold {f'the {item}' if held else 'nothing'}."
    if Fact("in", "kitchen") not in true:
        return [rooms, _where(task, true, []), hand]
    quiet = near_item and near_appliance and not held
    at = ["appliance"] if near_appliance else ["item"] if near_item and not held else []
    door = "open" if Fact("active", "appliance") in true else "shut"
    see = f"You see the {item} and the {door} {appliance}."
    if not seen:
        see = f"You see the shut {appliance} with the {item} in it."
    if quiet:
        return [rooms, _where(task, true, []), see]
    return [rooms, _where(task, true, at), see, hand]


def _describe_evening(task: Task, true: frozenset[Fact]) -> list[str]:
    house = task.house
    held = [item for item in house.items if Fact("hold", item) in true]
    hands = f"You hold {_list(task, held) or 'nothing'}."
    if Fact("in", "living room") in true:
        at = [name for name in house.fixtures if Fact("near", name) in true]
        return [_where(task, true, at), *_describe_living_room(task, true), hands]
    # Outside the kitchen the agent sees only the items that it holds.
    in_kitchen = Fact("in", "kitchen") in true
    seen = [item for item in house.items if in_kitchen and Fact("see", item) in true]
    at = [item for item in seen if Fact("near", item) in true and item not in held]
    see = f"You see {_list(task, seen)}."
    return [_where(task, true, at), *([see] if seen else []), hands]


def _describe_living_room(task: Task, true: frozenset[Fact]) -> list[str]:
    house = task.house
    held = any(Fact("hold", item) in true for item in house.items)
    on_table = [item for item in house.items if Fact("placed", item, "table") in true]
    near_sofa = Fact("near", "sofa") in true
    sits = near_sofa and Fact("seated", "sofa") in true
    mention_tv = mention_table = True
    if task.style == "sparse evening":
        near_any = any(Fact("near", name) in true for name in house.fixtures)
        mention_tv = Fact("near", "tv") in true or (near_sofa and (held or sits))
        mention_table = near_any and held
    sentences = []
    if on_table and mention_table:
        sentences.append(f"The {task.words['table']} holds {_list(task, on_table)}.")
    if mention_tv:
        power = "on" if Fact("active", "tv") in true else "off"
        sentences.append(f"The {task.words['tv']} is {power}.")
    return [*sentences, f"You sit on the {task.words['sofa']}."] if sits else sentences


def _where(task: Task, true: frozenset[Fact], at: list[str]) -> str:
    room = next(room for room in ROOMS if Fact("in", room) in true)
    return f"You are in the {room}{f' at {_list(task, at)}' if at else ''}."


def _list(task: Task, things: list[str]) -> str:
    return " and ".join(f"the {task.words[thing]}" for thing in things)
