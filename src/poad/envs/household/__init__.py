"""Household tasks: `rules` (states), `tasks` (data), `text` (prompts) and `env` (Gymnasium)."""
