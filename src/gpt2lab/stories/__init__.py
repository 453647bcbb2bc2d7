"""The embedded corpus: short children's stories of known entropy.

Reading order:

1. ``grammar``: a graph whose random walks write texts of exactly known probability.
2. ``notation``: the language in which plots and words are written, compiled to that graph.
3. ``lexicon.toml`` and ``plots.toml``: the words and the plots.
4. ``corpus``: generating stories, parsing texts, and their entropy.
"""
