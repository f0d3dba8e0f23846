"""Pages about runs: reports of how they learned, and the inspector of what each token earned."""

from poad.pages.compare import (
    names,
    pairs_table,
    results_table,
    settings_table,
    versions_table,
    world_of,
)
from poad.pages.inspector import (
    Inspection,
    data_of,
    describe_episodes,
    inspector_page,
    page_of_data,
)
from poad.pages.report import (
    live_data,
    live_page,
    report_page,
    sample_page,
    write_page,
    write_report,
)
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
    "data_of",
    "describe_episodes",
    "inspect_in_terminal",
    "inspector_page",
    "judge",
    "kinds",
    "live_data",
    "live_page",
    "names",
    "page_of_data",
    "pairs_table",
    "read_episodes",
    "report_page",
    "results_table",
    "sample_page",
    "settings_table",
    "versions_table",
    "world_of",
    "write_page",
    "write_report",
]
