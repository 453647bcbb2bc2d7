"""The words of the stories, in pools of equal chance: each pool's words can stand for one another in every plot.

Within a pool no word is the beginning of another, so that a reader knows where a word ends.
"""

from __future__ import annotations

from gpt2lab.data.stories_grammar import Word

_SHE = {"he": "she", "him": "her", "his": "her", "himself": "herself", "He": "She", "His": "Her"}
_HE = {"he": "he", "him": "him", "his": "his", "himself": "himself", "He": "He", "His": "His"}


def _plain(words: str) -> tuple[Word, ...]:
    """Words separated by blanks, with ``a``: behind the article, ``A``: as a sentence begins, ``s``: the plural."""
    return tuple(_noun(word) for word in words.split())


def _noun(word: str) -> Word:
    a = f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
    return Word({"": word, "a": a, "A": a.capitalize(), "s": word + ("es" if word.endswith(("ch", "sh")) else "s")})


def _people(words: str, pronouns: dict[str, str]) -> tuple[Word, ...]:
    return tuple(Word({"": word, **pronouns}) for word in words.split())


def _deeds(lines: str) -> tuple[Word, ...]:
    """``fly/flew/flying kites``: the plain form, ``did`` and ``doing``."""
    deeds = []
    for line in lines.strip().splitlines():
        verb, rest = line.strip().split(" ", 1)
        do, did, doing = verb.split("/")
        deeds.append(Word({"": f"{do} {rest}", "did": f"{did} {rest}", "doing": f"{doing} {rest}"}))
    return tuple(deeds)


def _phrases(lines: str) -> tuple[Word, ...]:
    """One a line, with ``A``: as a sentence begins."""
    texts = [line.strip() for line in lines.strip().splitlines()]
    return tuple(Word({"": text, "A": text[0].upper() + text[1:]}) for text in texts)


POOLS: dict[str, tuple[Word, ...]] = {
    "girl": _people(
        """Lily Mia Anna Sara Emma Zoe Ruby Lucy Nora Ella Rose Ivy
        Maya Clara Alice Molly Daisy Jane Kate Grace Tess Hazel""",
        _SHE,
    ),
    "boy": _people(
        """Tom Ben Max Sam Jack Leo Finn Oscar Hugo Noah Adam Luke
        Peter Felix Toby Jonas Dan Charlie George Harry Simon Paul""",
        _HE,
    ),
    "female": _people("mother grandmother aunt", _SHE),
    "male": _people("father grandfather uncle", _HE),
    "girl_kind": _plain("girl"),
    "boy_kind": _plain("boy"),
    "critter": _plain("rabbit bear fox mouse duckling frog hedgehog squirrel kitten puppy lamb owl otter pony"),
    "trait": _plain(
        "kind brave clever cheerful curious gentle shy lively quiet friendly patient polite playful honest careful merry"
    ),
    "colour": _plain("red blue green yellow purple orange pink white black brown silver golden"),
    "look": _plain(
        "little tiny big shiny wooden old new pretty striped round painted heavy funny strange lovely dusty"
    ),
    "build": _plain("little tiny big young funny strange lovely hungry sleepy tired thin noisy fluffy wet dirty shy"),
    "toy": _plain(
        """ball kite doll drum boat train robot puppet car truck wagon
        whistle trumpet scooter rocket crown bell lantern umbrella flute sled"""
    ),
    "animal": _plain("bird cat dog goat hen goose sheep turtle pig cow horse donkey rooster parrot monkey lizard"),
    "baby": _plain("chick kitten puppy lamb duckling bunny piglet mouse owl squirrel turtle hedgehog"),
    "food": _plain(
        "apple pear cookie sandwich pancake muffin banana carrot peach cupcake biscuit plum melon pie waffle bun"
    ),
    "drink": _phrases("""
        milk
        tea
        juice
        water
        cocoa
        lemonade
    """),
    "furniture": _plain("table chair lamp clock mirror carpet cupboard bench stove piano picture rug"),
    "tree": _plain("apple cherry pine oak plum willow birch lemon"),
    "number": _plain("two three four five six seven eight nine"),
    "home": _plain("cottage hut cabin farmhouse castle tent treehouse barn"),
    "site": _phrases("""
        the river
        the forest
        the sea
        the lake
        the park
        the market
        the hill
        the old mill
        the meadow
        the school
        the bridge
        the church
        the harbor
        the pond
    """),
    "indoors": _phrases("""
        under the bed
        behind the sofa
        under the stairs
        in the closet
        behind the curtain
        in the kitchen
        on the top shelf
        inside the oven
        in the attic
        in the cellar
        behind the door
        beside the stove
        in the bathtub
        under the pillow
        on the windowsill
        between two books
    """),
    "outdoors": _phrases("""
        in the garden
        on the roof
        next to the well
        beside the fence
        in the tall grass
        under the apple tree
        behind the shed
        behind the rock
        in the sand
        between the roses
        in the hollow tree
        on the swing
        by the gate
        in the ditch
        under the wagon
        on the wall
    """),
    "deed": _deeds("""
        fly/flew/flying kites
        paint/painted/painting pictures
        sing/sang/singing songs
        climb/climbed/climbing trees
        bake/baked/baking bread
        catch/caught/catching frogs
        pick/picked/picking flowers
        tell/told/telling jokes
        count/counted/counting stars
        build/built/building towers
        ride/rode/riding bikes
        play/played/playing chess
        collect/collected/collecting shells
        read/read/reading books
        jump/jumped/jumping in puddles
        dance/danced/dancing in the rain
    """),
    "topic": _phrases("""
        the moon
        the weather
        the stars
        the summer
        the winter
        the king
        their dreams
        faraway lands
        dragons
        trains
        pirates
        fish
        butterflies
        music
        birthdays
        magic
        ships
        giants
        fairies
        dinosaurs
        snowmen
        clowns
        elephants
        islands
    """),
    "mood": _plain("sad upset angry worried lonely gloomy unhappy cross"),
    "joy": _plain("happy glad proud cheerful thankful delighted excited pleased"),
    "say": _plain(
        """softly loudly slowly quickly quietly gently calmly politely
        shyly kindly warmly eagerly firmly clearly seriously sweetly"""
    ),
    "move": _plain("slowly quickly quietly carefully happily merrily silently swiftly bravely proudly lightly calmly"),
    "time": _plain("day morning afternoon evening"),
    "weather": _plain("sunny rainy windy cloudy snowy foggy warm cold"),
    "tool": _phrases("""
        a pot of glue
        a roll of tape
        a ball of string
        a hammer
        a needle and thread
        a pair of pliers
        a box of nails
        a brush
    """),
    "fear": _phrases("""
        the dark
        loud thunder
        deep water
        high places
        big dogs
        spiders
        ghosts
        wolves
        bees
        strangers
    """),
    "stuff": _plain("wood paper cloth clay wool straw cardboard leather"),
    "box": _plain("box sack jar bag suitcase chest bucket basket"),
}
