"""Two cooking tasks on a small grid: `rules` without words, `text` for the words, `env` to act."""
