"""Life at home: `rules` without words, `tasks` as rows of data, `text` for the words, `env`."""
