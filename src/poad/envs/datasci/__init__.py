"""Data-science coding: an agent writes programs, which are run in a sandbox and scored.

`text` for the words, `datasets` for the tables, `judge` for the score, `env` to act; `sandbox` and
its neighbours run what nobody has read.
"""
