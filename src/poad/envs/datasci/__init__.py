"""Data-science coding: an agent writes programs for a table, and a sandbox runs and scores them.

`text` holds the words, `datasets` the tables, `scoring` the verdicts and `env` the turns. `sandbox`
and what it uses (`client`, `isolation`, `worker`, `selftest`) run programs that nobody has read.
"""

from poad.envs.datasci.datasets import load
from poad.envs.datasci.sandbox import Isolation, Job, Sandbox, layers
from poad.envs.datasci.scoring import Judge
from poad.envs.datasci.text import program, prompt

__all__ = ["Isolation", "Job", "Judge", "Sandbox", "layers", "load", "program", "prompt"]
