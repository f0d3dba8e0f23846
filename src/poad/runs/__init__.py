"""Runs on disk: a directory per run, written whole or not at all."""

from poad.runs.files import append_line, plain, read_lines, take_lock, write_json, write_text
from poad.runs.provenance import PACKAGES, source_commit, source_hash, versions
from poad.runs.run import UNTRAINED, Run, check_new_run
from poad.runs.trackers import check_trackers

__all__ = [
    "PACKAGES",
    "UNTRAINED",
    "Run",
    "append_line",
    "check_new_run",
    "check_trackers",
    "plain",
    "read_lines",
    "source_commit",
    "source_hash",
    "take_lock",
    "versions",
    "write_json",
    "write_text",
]
