"""Pages about runs: the inspector, which shows what each token of an episode earned."""

from poad.pages.inspector import Inspection, describe_episodes, inspector_page, render
from poad.pages.serve import LocalServer
from poad.pages.terminal import inspect_in_terminal
from poad.pages.traces import TokenTrace, read_episodes
from poad.pages.views import Alternative, Dials, EpisodeView, TurnView, judge, kinds

__all__ = [
    "Alternative",
    "Dials",
    "EpisodeView",
    "Inspection",
    "LocalServer",
    "TokenTrace",
    "TurnView",
    "describe_episodes",
    "inspect_in_terminal",
    "inspector_page",
    "judge",
    "kinds",
    "read_episodes",
    "render",
]
