"""A service desk with tools.

`desk` has the records and the tools. `scene`, `families` and `tasks` draw requests. `rules` says
what a call comes to. `calls` and `text` have the words, and `env` is the Gymnasium environment.
"""
