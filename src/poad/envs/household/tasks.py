"""The household's tasks as data: two houses, and the words for each task."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from poad.envs.household.rules import Action, Fact, Fixture, House

_ROOM_SLOTS: Final = tuple(
    Action("enter", room) for room in ("living room", "kitchen", "bathroom", "bedroom")
)
_ROOM_FACTS: Final = tuple(
    Fact("in", room) for room in ("kitchen", "bathroom", "bedroom", "living room")
)

CHORE: Final = House(
    items=("item",),
    fixtures={"appliance": Fixture("appliance", "kitchen", "container")},
    slots=(
        *_ROOM_SLOTS,  # 0-3
        Action("approach", "item"),
        Action("approach", "appliance"),
        Action("grab", "item"),
        Action("put", "item", onto="appliance"),
        Action("activate", "appliance"),
        Action("deactivate", "appliance"),
    ),
    observed=(
        *_ROOM_FACTS,
        *(Fact("see", "item"), Fact("near", "item"), Fact("hold", "item")),
        *(Fact("see", "appliance"), Fact("near", "appliance"), Fact("active", "appliance")),
        Fact("placed", "item", "appliance"),
    ),
    # Columns: the rooms; the item is seen, near, held; the appliance seen, near, open, filled.
    goal=("1000 0?? ????",),
    offers={
        "0100 ??? ????": (0, 1, 3),
        "0010 ??? ????": (0, 1, 2),
        "0001 ??? ????": (1, 2, 3),
        "1000 0?? ????": (0, 2, 3),
        "1000 1?1 ?1??": (0, 2, 3, 4, 7, 8, 9),
        "1000 1?1 ?0??": (0, 2, 3, 4, 5),
        "1000 110 ?0??": (0, 2, 3, 5, 6),
        "1000 100 ?1??": (0, 2, 3, 4, 8, 9),
        "1000 100 ?0??": (0, 2, 3, 4, 5),
        "1000 110 ?1??": (0, 2, 3, 8, 9),  # the item is inside; taking it out is not offered
    },
)
"""Shut an item into an appliance. All chores share this house."""

EVENING: Final = House(
    items=("chips", "milk"),
    fixtures={
        "table": Fixture("table", "living room", "surface"),
        "tv": Fixture("tv", "living room", "switch"),
        "sofa": Fixture("sofa", "living room", "seat", faces="tv"),
    },
    slots=(
        *_ROOM_SLOTS,  # 0-3
        *(Action("approach", thing) for thing in ("chips", "milk", "table", "tv", "sofa")),  # 4-8
        *(Action("grab", item) for item in ("chips", "milk")),  # 9, 10
        *(Action("put", item, onto="table") for item in ("chips", "milk")),  # 11, 12
        *(Action("activate", "tv"), Action("deactivate", "tv")),  # 13, 14
        *(Action("sit", "sofa"), Action("stand", "sofa")),  # 15, 16
    ),
    observed=(
        *_ROOM_FACTS,
        *(Fact("see", "chips"), Fact("near", "chips"), Fact("hold", "chips")),
        Fact("placed", "chips", "table"),
        *(Fact("see", "milk"), Fact("near", "milk"), Fact("hold", "milk")),
        Fact("placed", "milk", "table"),
        *(Fact("see", "tv"), Fact("near", "tv"), Fact("facing", "tv"), Fact("active", "tv")),
        *(Fact("see", "sofa"), Fact("near", "sofa"), Fact("seated", "sofa")),
        *(Fact("see", "table"), Fact("near", "table")),
    ),
    # Columns: the rooms; chips and milk are seen, near, held, on the table; the TV is seen, near,
    # faced, on; the sofa seen, near, sat on; the table seen, near.
    goal=(
        "0001 ?1?? ?1?? ??11 ??1 ??",
        "0001 ?1?? ???1 ??11 ??1 ??",
        "0001 ???1 ?1?? ??11 ??1 ??",
        "0001 ???1 ???1 ??11 ??1 ??",
    ),
    offers={
        "0100 ???? ???? ???? ??? ??": (0, 1, 3),
        "0010 ???? ???? ???? ??? ??": (0, 1, 2),
        "1000 1?1? 1?1? ???? ??? ??": (0, 2, 3),
        "1000 1?1? 110? ???? ??? ??": (0, 2, 3, 10),
        "1000 1?1? 100? ???? ??? ??": (0, 2, 3, 5),
        "1000 110? 1?1? ???? ??? ??": (0, 2, 3, 9),
        "1000 100? 1?1? ???? ??? ??": (0, 2, 3, 4),
        "1000 110? 110? ???? ??? ??": (0, 2, 3, 9, 10),
        "1000 110? 100? ???? ??? ??": (0, 2, 3, 5, 9),
        "1000 100? 110? ???? ??? ??": (0, 2, 3, 4, 10),
        "1000 100? 100? ???? ??? ??": (0, 2, 3, 4, 5),
        "1000 1?1? 0??? ???? ??? ??": (0, 2, 3),
        "1000 0??? 1?1? ???? ??? ??": (0, 2, 3),
        "1000 110? 0??? ???? ??? ??": (0, 2, 3, 9),
        "1000 100? 0??? ???? ??? ??": (0, 2, 3, 5),  # as published: offers the absent milk
        "1000 0??? 110? ???? ??? ??": (0, 2, 3, 10),
        "1000 0??? 100? ???? ??? ??": (0, 2, 3, 4),  # as published: offers the absent chips
        "1000 0??? 0??? ???? ??? ??": (0, 2, 3),
        "0001 ???? ???? ?0?? ?0? ?0": (1, 2, 3, 6, 7, 8),
        "0001 ??1? ??1? ???? ??? ?1": (1, 2, 3, 7, 8, 11, 12),
        "0001 ??1? ??00 ???? ??? ?1": (1, 2, 3, 7, 8, 11),
        "0001 ??00 ??1? ???? ??? ?1": (1, 2, 3, 7, 8, 12),
        "0001 ??1? ??01 ???? ??? ?1": (1, 2, 3, 7, 8),
        "0001 ??01 ??1? ???? ??? ?1": (1, 2, 3, 7, 8),
        "0001 ??0? ??0? ???? ??? ?1": (1, 2, 3),
        "0001 ???? ???? ?1?0 ??? ??": (1, 2, 3, 6, 8, 13, 14),
        "0001 ???? ???? ?1?1 ??? ??": (1, 2, 3, 6, 8),
        "0001 ???? ???? ???1 ?10 ??": (1, 2, 3, 6, 7, 15, 16),
        "0001 ???? ???? ???0 ?10 ??": (1, 2, 3, 6, 7),
        "0001 ???? ???? ???? ?11 ??": (1, 2, 3),
    },
)
"""Watch TV from the sofa, with chips and milk at hand."""


@dataclass(frozen=True, eq=False)
class Task:
    """A house with its words."""

    house: House
    goal: str
    """The first sentence of every prompt."""
    words: Mapping[str, str]
    """The word for each item and fixture."""
    style: Literal["chore", "evening", "sparse evening"]
    """The form of the prompts, described in `poad.envs.household.text`."""


def _chore(verb: str, item: str, appliance: str) -> Task:
    goal = f"{verb} the {item} in the {appliance}."
    return Task(CHORE, goal, {"item": item, "appliance": appliance}, "chore")


_ENTERTAINMENT: Final = Task(
    EVENING,
    "Watch TV on the sofa with the chips and the milk.",
    {"chips": "chips", "milk": "milk", "table": "coffee table", "tv": "TV", "sofa": "sofa"},
    "evening",
)

TASKS: Final[Mapping[str, Task]] = {
    "food_preparation": _chore("Heat up", "pancake", "microwave"),
    "cheese": _chore("Heat up", "cheese", "microwave"),
    "hamburger": _chore("Heat up", "hamburger", "microwave"),
    "apple_pie": _chore("Heat up", "apple pie", "microwave"),
    "pizza": _chore("Heat up", "pizza", "microwave"),
    "washing_plate": _chore("Wash", "dishes", "dishwasher"),
    "laundry": _chore("Wash", "clothes", "washing machine"),
    "entertainment": _ENTERTAINMENT,
    "entertainment_sparse_text": replace(_ENTERTAINMENT, style="sparse evening"),
    "entertainment_all_actions": replace(
        _ENTERTAINMENT, house=replace(EVENING, offers={"?" * 21: tuple(range(17))})
    ),
}
