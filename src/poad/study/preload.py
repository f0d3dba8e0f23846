"""What the runs of a study load, once, in the server that they are forked from.

The hash of poad's source is taken here, too: whoever edits a file meanwhile does not change what a
forked run executes, so its versions must not say so.
"""

from __future__ import annotations

from importlib import import_module

from poad.runs import source_hash

for name in ("poad.workflows.train", "poad.workflows.generalize"):
    import_module(name)
source_hash()
