"""Data-science coding: an agent writes programs for a table, and a sandbox runs them.

`env` is the Gymnasium environment, `text` has its prompts, `datasets` the tables, and `scoring` the
scores of programs. `sandbox` runs the untrusted programs, with the help of `client`, `confinement`,
`worker` and `selftest`.
"""

from poad.envs.datasci.datasets import load
from poad.envs.datasci.sandbox import Isolation, Job, Sandbox, layers
from poad.envs.datasci.scoring import Scorer
from poad.envs.datasci.text import program, prompt

__all__ = ["Isolation", "Job", "Sandbox", "Scorer", "layers", "load", "program", "prompt"]
