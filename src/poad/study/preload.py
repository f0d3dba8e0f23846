"""Modules that the runs of a study share, loaded once in the server they are forked from.

The hash of poad's source is computed here as well. An edit during a study does not change the code
that forked runs execute, so it must not change their recorded versions.
"""

from __future__ import annotations

from importlib import import_module

from poad.runs import source_hash

for name in ("poad.workflows.train", "poad.workflows.generalize"):
    import_module(name)
source_hash()
