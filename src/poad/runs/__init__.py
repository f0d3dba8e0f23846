"""Runs on disk: a directory per run, its records and checkpoints, all written atomically."""

from poad.runs.codec import decode, encode, plain, stored
from poad.runs.files import (
    append_line,
    atomic_directory,
    read_lines,
    take_lock,
    write_json,
    write_text,
)
from poad.runs.history import read_json, read_summary, read_world_errors, write_sealed
from poad.runs.place import check_new_run, is_unborn
from poad.runs.provenance import PACKAGES, source_commit, source_hash, versions
from poad.runs.records import (
    EpisodeRecord,
    Evaluation,
    Generalization,
    LogprobDrift,
    Mode,
    RunSummary,
    TurnRecord,
    UnseenEvaluation,
    Versions,
    WorldErrorRecord,
    summarize,
)
from poad.runs.run import UNTRAINED, Run, add_world_error, show_page
from poad.runs.seals import MAY_CHANGE
from poad.runs.trackers import check_trackers

__all__ = [
    "MAY_CHANGE",
    "PACKAGES",
    "UNTRAINED",
    "EpisodeRecord",
    "Evaluation",
    "Generalization",
    "LogprobDrift",
    "Mode",
    "Run",
    "RunSummary",
    "TurnRecord",
    "UnseenEvaluation",
    "Versions",
    "WorldErrorRecord",
    "add_world_error",
    "append_line",
    "atomic_directory",
    "check_new_run",
    "check_trackers",
    "decode",
    "encode",
    "is_unborn",
    "plain",
    "read_json",
    "read_lines",
    "read_summary",
    "read_world_errors",
    "show_page",
    "source_commit",
    "source_hash",
    "stored",
    "summarize",
    "take_lock",
    "versions",
    "write_json",
    "write_sealed",
    "write_text",
]
