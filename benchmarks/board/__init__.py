"""How soon a board of a thousand runs is there: see __main__.py."""
