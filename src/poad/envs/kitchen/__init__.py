"""Two cooking tasks on a small grid: `rules` (states), `text` (prompts) and `env` (Gymnasium)."""
