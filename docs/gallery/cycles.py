"""Write texts in which only recall tells the next word: runs of a random cycle of words, JSON lines to a file.

    python docs/gallery/cycles.py FILE [WORDS]

Each text draws 4 to 60 of 64 made-up words, log-uniformly, in a random order. It reads them once around, and then in
runs of 4 to 15 from random places. The next word is always the one that followed the same word before, and where that
was depends on nothing but the text. WORDS (8,000,000) is the total length.
"""

import json
import math
import random
import string
import sys
from pathlib import Path

VOCABULARY, SHORTEST, LONGEST, LENGTH = 64, 4, 60, 1024


def text(words: list[str], chance: random.Random) -> str:
    """Return one text of at least LENGTH words."""
    n = int(math.exp(chance.uniform(math.log(SHORTEST), math.log(LONGEST))))
    cycle = chance.sample(words, n)
    said = list(cycle)
    while len(said) < LENGTH:
        start = chance.randrange(n)
        said += [cycle[(start + i) % n] for i in range(chance.randrange(4, 16))]
    return " " + " ".join(said)


def main() -> None:
    """Write the texts."""
    path, total = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8_000_000
    chance = random.Random(0)
    words = chance.sample([a + b for a in string.ascii_lowercase for b in string.ascii_lowercase], VOCABULARY)
    with Path(path).open("w", encoding="utf-8") as file:
        while total > 0:
            line = text(words, chance)
            file.write(json.dumps({"text": line}) + "\n")
            total -= line.count(" ")


if __name__ == "__main__":
    main()
