"""The words of the stories, in pools: the words of a pool are equally probable and interchangeable in every plot.

Within a pool no word is a prefix of another, so that a reader knows where a word ends.
"""

from __future__ import annotations

import re

from gpt2lab.stories.grammar import Word

_SHE = {"he": "she", "him": "her", "his": "her", "He": "She", "His": "Her"}
_HE = {"he": "he", "him": "him", "his": "his", "He": "He", "His": "His"}


def _plain(words: str) -> tuple[Word, ...]:
    """Words separated by spaces; ``a``: with the article, ``A``: the same capitalized, ``s``: the plural."""
    return tuple(_noun(word) for word in words.split())


def _noun(word: str, **forms: str) -> Word:
    a = f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
    return Word({"": word, "a": a, "A": a.capitalize(), "s": word + ("es" if word.endswith("ch") else "s"), **forms})


def _with(items: str) -> tuple[Word, ...]:
    """``dog: said barked, ...``: nouns, each with a form of its own, here ``said``."""
    pairs = (re.split(r": (\w+) ", item) for item in _items(items))
    return tuple(_noun(word, **{form: own}) for word, form, own in pairs)


def _people(words: str, pronouns: dict[str, str]) -> tuple[Word, ...]:
    """``Lily/Lil``: a name and its ``short`` form."""
    pairs = (word.split("/") for word in words.split())
    return tuple(Word({"": name, "short": short[0] if short else name, **pronouns}) for name, *short in pairs)


def _deeds(items: str) -> tuple[Word, ...]:
    """``fly/flew/flying kites, ...``: the plain form, ``did`` and ``doing``."""
    deeds = []
    for item in _items(items):
        verb, rest = item.split(" ", 1)
        do, did, doing = verb.split("/")
        deeds.append(Word({"": f"{do} {rest}", "did": f"{did} {rest}", "doing": f"{doing} {rest}"}))
    return tuple(deeds)


def _phrases(items: str) -> tuple[Word, ...]:
    """``the river, ...``: phrases; ``A``: at the start of a sentence."""
    return tuple(Word({"": text, "A": text[0].upper() + text[1:]}) for text in _items(items))


def _items(items: str) -> list[str]:
    """Split a list at its commas."""
    return [item.strip() for item in items.split(",")]


POOLS: dict[str, tuple[Word, ...]] = {
    # Words that stories refer back to. No other pool contains them, so that the last one mentioned is the one meant.
    "girl": _people("Lily/Lil Mia/Mimi Anna/Annie Sara/Sally Emma/Emmy Rose/Rosie", _SHE),
    "boy": _people("Tom/Tommy Ben/Benny Max/Maxie Sam/Sammy Jack/Jacky Leo/Lee", _HE),
    "female": _people("mother grandmother", _SHE),
    "male": _people("father grandfather", _HE),
    "girl_kind": _plain("girl"),
    "boy_kind": _plain("boy"),
    "critter": _plain("rabbit bear fox mouse hedgehog squirrel otter owl"),
    "trait": _plain("kind brave clever gentle shy lively patient polite"),
    "home": _plain("cottage hut cabin farmhouse castle tent treehouse barn"),
    "site": _phrases("the river, the forest, the sea, the lake, the park, the hill, the school, the bridge"),
    "deed": _deeds("""
        fly/flew/flying kites, paint/painted/painting pictures, sing/sang/singing songs,
        climb/climbed/climbing trees, bake/baked/baking bread, count/counted/counting stars,
        ride/rode/riding bikes, read/read/reading books
    """),
    "color": _with("""
        red: like a tomato, blue: like the sky, green: like grass, yellow: like the sun, purple: like a grape,
        orange: like a fire, pink: like a pig, white: like snow
    """),
    "toy": _with("""
        ball: can bounce, kite: can fly, doll: can blink, drum: can boom, boat: can float, train: can whistle,
        robot: can talk, car: can race
    """),
    "box": _plain("box sack jar bag suitcase chest bucket basket"),
    "fruit": _plain("apple pear banana plum melon carrot pumpkin lemon"),
    "animal": _with("""
        dog: said barked, cat: said meowed, goat: said bleated, hen: said clucked, horse: said neighed,
        donkey: said brayed, parrot: said squawked, duck: said quacked
    """),
    "baby": _with("""
        kitten: said mewed, puppy: said yapped, lamb: said cried, owlet: said hooted, chick: said peeped,
        piglet: said squealed, calf: said mooed, foal: said whinnied
    """),
    "hideout": _phrases("""
        under the bed, behind the sofa, under the stairs, in the closet, behind the curtain,
        on the top shelf, inside the oven, in the attic, in the tall grass, in the hollow tree,
        behind the shed, next to the well
    """),
    "fear": _phrases("the dark, loud thunder, deep water, high places, spiders, ghosts, wolves, strangers"),
    "tool": _phrases("""
        a pot of glue, a roll of tape, a ball of string, a hammer, a needle and thread, a pair of pliers,
        a box of nails, a brush
    """),
    # Words that are not mentioned again.
    "look": _plain(
        "little tiny big shiny wooden old new pretty striped round painted heavy funny strange lovely dusty"
    ),
    "build": _plain("small young hungry sleepy tired thin noisy fluffy wet dirty lonely busy lazy strong quick plump"),
    "hue": _plain("black brown gray golden silver crimson turquoise beige"),
    "number": _plain("two three four five six seven eight nine"),
    "sweet": _plain("cookie pancake muffin cupcake biscuit waffle tart pudding donut brownie candy cake"),
    "savory": _plain("sandwich pie bun pretzel dumpling omelet salad cracker roll sausage pizza taco"),
    "drink": _plain("milk tea juice water cocoa lemonade"),
    "furniture": _plain("table chair lamp clock mirror carpet cupboard bench stove piano picture rug"),
    "building": _plain("tower bakery stable windmill palace garage temple library"),
    "tree": _plain("cherry pine oak maple willow birch fir elm"),
    "insects": _plain("beetles bees ants moths crickets ladybugs snails worms"),
    "birds": _plain("crows sparrows pigeons swallows robins gulls larks finches"),
    "goods": _plain("coins marbles feathers buttons beads stones shells keys"),
    "papers": _plain("ribbons pencils stamps candles stickers postcards crayons cards"),
    "stuff": _plain("wood paper cloth clay wool straw cardboard leather"),
    "wonder": _plain(
        """dragons pirates giants fairies dinosaurs snowmen clowns
        elephants wizards robbers kings whales monsters sailors"""
    ),
    "topic": _phrases("""
        the moon, the weather, the stars, the summer, the winter, the world, dreams, faraway lands, music,
        birthdays, magic, ships, riddles, planets
    """),
    "mood": _plain("sad upset angry worried gloomy unhappy cross nervous"),
    "joy": _plain("happy glad proud thankful delighted excited pleased relieved"),
    "say": _plain(
        """softly loudly slowly quickly quietly gently calmly politely
        shyly kindly warmly eagerly firmly clearly seriously sweetly"""
    ),
    "move": _plain("carefully happily merrily silently swiftly bravely proudly lightly"),
    "time": _plain("day morning afternoon evening"),
    "weather": _plain("sunny rainy windy cloudy snowy foggy warm cold"),
}
