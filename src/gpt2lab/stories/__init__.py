"""The embedded corpus: short children's stories of known entropy.

Reading order:

1. ``grammar``: a graph whose random walks write texts of exactly known probability, and the notation compiled to it.
2. ``lexicon.toml`` and ``plots.toml``: the words and the plots.
3. ``corpus``: generating stories, parsing texts, and their entropy.
"""
