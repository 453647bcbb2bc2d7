"""The plots of the stories, in the notation of `notation.py`: one rule a plot, and the rules that they share.

When a plot begins, the slots ``hero kind trait adult home site love`` are filled; the plot must fill ``friend``, whom
the ending mentions.
"""

from __future__ import annotations

SHARED: dict[str, str] = {
    "story": """
        <opening>
        <home>
        <love>
        <detail>

        <lost>
        | <broken>
        | <errand>
        | <quarrel>
        | <courage>
        | <rescue>
        | <treasure>
        | <market>
        | <present>

        <ending>
    """,
    # parts of a sentence
    "girl": "{kind:girl_kind} (named|called) {hero:girl}",
    "boy": "{kind:boy_kind} (named|called) {hero:boy}",
    "critter": "{kind:critter} (named|called) ({hero:girl}|{hero:boy})",
    "grown_up": "({adult:female}|{adult:male})",
    "friend": "({friend:girl}|{friend:boy})",
    "new_thing": "{.a:look} {color:color} {thing:toy}",
    "new_box": "{.a:look} {color:color} {box:box}",
    "near": "(by|near|close to|not far from)",
    "beside": "(under|behind|next to|in front of) {.a:look} {:furniture}",
    "ran": "(ran|walked|went|hurried|raced|skipped|marched|rushed)",
    "sat": "(sat|stood|lay|slept)",
    "very": "(very|most|really|rather|truly|terribly)",
    "some": "(some|a cup of|a glass of|a bottle of)",
    "soon": "(Soon|Then|After a while|Before long|A little later|At last)",
    # sentences
    "opening": """
        (Once upon a time|Long ago|Many years ago|Once), there (was|lived) {trait.a:trait} (<girl>|<boy>|<critter>).
        | This is (a|the) story (of|about) {trait.a:trait} (<girl>|<boy>|<critter>).
        | Have you heard (of|about) the {trait:trait} (<girl>|<boy>|<critter>)?
    """,
    "home": """
        {hero.He} lived with {hero.his} <grown_up> in {.a:look} {home:home} <near> {site:site}.
        | {hero.His} <grown_up> had {.a:look} {home:home} <near> {site:site}.
    """,
    "love": """
        More than anything, {hero} loved {:wonder}, {:topic} and {love.doing:deed}.
        | {hero} loved {:topic}, {:wonder} and {love.doing:deed}, (rain or shine|all year long|even in winter).
        | What {hero}, or {hero.short} for short, liked best were {:wonder}, {:topic} and {love.doing:deed}.
    """,
    "detail": """
        In {hero.his} room stood {.a:look} {:hue} {:furniture} and {.a:look} {:furniture} made of {:stuff}.
        | For breakfast, {hero.he} (always|often|mostly) had {.a:savory}, {.a:sweet} and <some> {:drink}.
        | Outside were {:number} {:tree} trees, {:number} {:birds} and {.a:look} {:hue} {:building}.
        | {hero.His} coat was made of {:hue} {:stuff}, and {hero.his} hat was {.a:look} one with {:goods} on it.
        | {hero.He} had {:number} brothers, who (always|often|mostly) talked about {:topic}, {:wonder} or {:insects}.
        | Under {hero.his} bed was {.a:look} drawer full of {:hue} {:goods} and {:number} {:hue} {:papers}.
    """,
    "sights": """
        The (road|path|way) went past {.a:look} {:building}, {:number} {:tree} trees and {:number} {:birds}.
        | On the (road|path|way) were {:number} {:birds}, {:number} {:insects} and {.a:look} {:hue} {:furniture}.
        | The {:time} was {:weather}, and {:number} {:birds} <sat> <beside>.
    """,
    "meal": """
        (They|Both|The two) had {.a:savory}, {.a:sweet} and <some> {:drink}.
        | (They|Both|The two) talked {:say} about {:wonder}, {:topic} and {:number} {:insects}.
    """,
    "ending": """
        From that (day|time) on, {hero} and {friend} {love.did} every {:weather} {:time}.
        | After that, {friend} often came on {:weather} days, and they talked about {:topic} and {:wonder}.
        | The next {:weather} {:time}, {friend} came again, and they {love.did} and had {.a:savory} and {.a:sweet}.
        | In the evening, {hero.he} had {.a:savory} and {.a:sweet} and talked {:say} about {friend}.
        | That night, {hero.he} dreamed of {friend}, of {:topic}, of {:wonder} and of {:number} {:hue} {:birds}.
        From the {:building} to the {:number} {:tree} trees, everyone said that {hero.he} was a <very> {trait} {kind}.
        | The story of the {kind} was told to me {:say} on {.a:weather} {:time}.
        | "You are {trait.a} {kind}," {hero.his} {adult} said {:say}, and {hero.he} (smiled|laughed|nodded).
        | If you go to {site}, you may still (meet|see|find) the {kind} <beside>.
    """,
}

PLOTS: dict[str, str] = SHARED | {
    "lost": """
        One {:time}, {hero.his} {adult} gave {hero.him} <new_thing>. It could {thing.can} <very> well.
        | On {hero.his} birthday, {hero.he} got <new_thing> as {color} as {color.like}.
        <soon>, it was gone. "Have you seen my {color} {thing}?" {hero.he} asked <friend> {:say}.
        | But one {:weather} {:time}, {hero.he} told <friend> {:say}, "I lost my {color} {thing}."
        They met {.a:build} {animal:animal}. "Look {hidden:hideout}," it {animal.said} {:say}.
        | {.A:build} {animal:animal} came along. "I saw it {hidden:hideout}," it {animal.said} {:say}.
        <sights>
        It was right! The {thing} was {hidden}, <beside>.
        | They <ran> {:move} and looked {hidden}, and there was the {thing}!
        {hero} was <very> {:joy} and gave it {.a:savory} and {.a:sweet}.
        | "You can play with it too," {hero.he} told {friend} {:say}.
    """,
    "broken": """
        It was {.a:weather} {:time}, and <friend> came with <new_thing> and {.a:savory}.
        | {hero.His} best friend was <friend>, and they played with <new_thing> that could {thing.can}.
        <meal>
        But {breaker:hero/friend} (dropped|kicked|threw|shook) the {thing}, and it would not {thing.can} any more.
        | Then {breaker:hero/friend} fell over {.a:look} {:furniture} and broke the {thing}.
        {breaker.He} was <very> {:mood} and hid it {hidden:hideout}, <beside>.
        "Where is it?" {other:hero/friend} asked {:say}. "I broke it. Look {hidden}," {breaker.he} said {:say}.
        {hero.His} {adult} mended it with {tool:tool} and some {:hue} {:stuff}.
        | With {tool:tool} and some {:hue} {:stuff}, {other} mended the {color} {thing} {:move}.
    """,
    "errand": """
        One {:weather} {:time}, {hero.he} asked {:say}, "Can we {wish:deed}?"
        | "I want to {wish:deed}," {hero.he} told {hero.his} {adult} one {:weather} {:time}.
        "Yes, but first bring this {fruit:fruit} to <friend>," {adult.he} said {:say}.
        | {adult.He} said {:say}, "Take this {fruit:fruit} to <friend> first."
        So {hero.he} put it in <new_box> and <ran> off {:move}.
        | {hero} found <new_box> <beside> and put it in there.
        <sights>
        <soon>, {friend} opened the {color} {box}. "What a fine {fruit}!" {friend.he} said {:say}.
        | {friend} was <very> {:joy} and gave {hero.him} {:number} {:hue} {:goods} and {:number} {:papers}.
        Then, back at home, they {wish.did} until (noon|night|dinner|bedtime).
        | Back at the {home}, they {wish.did} and had {.a:savory} and <some> {:drink}.
    """,
    "quarrel": """
        Together with <friend>, {hero.he} (found|saw|spotted) <new_thing> {found:hideout}, as {color} as {color.like}.
        | {hero.His} friend <friend> was with {hero.him} when they found <new_thing> {found:hideout}.
        "It is mine!" said {one:hero/friend}. "No, I saw it first!" {other:hero/friend} said {:say}.
        | {one:hero/friend} (took|grabbed|held) it {:move}, but {other:hero/friend} was <very> {:mood}.
        {hero.His} {adult} came with {.a:savory} and {.a:sweet}. "Play together!" {adult.he} said {:say}.
        | {hero.His} {adult} <sat> <beside> and told them {:say} to take turns.
        <soon>, {one} gave {other} the {thing}, {.a:savory} and {.a:sweet}.
        | Then they put the {color} {thing} back {found}, <beside>.
        <meal>
    """,
    "courage": """
        But {hero.he} was <very> (afraid|scared) of {fear:fear}.
        | There was one thing that {hero.he} did not like at all. It was {fear:fear}.
        "This will help you," {hero.his} friend <friend> said {:say} and gave {hero.him} <new_thing>.
        | {hero.He} told it {:say} to <friend>, who came back with <new_thing> that could {thing.can}.
        {hero.He} <ran> home {:move} and put the {thing} {keep:hideout}, <beside>.
        | {hero.He} (put|kept|left|hid) the {thing} {keep:hideout}, and then they talked about {:topic} and {:wonder}.
        One {:weather} {:time}, {.a:build} {baby:baby} was stuck <beside>.
        | One {:weather} {:time}, {hero.he} heard a cry. It was {.a:build} {:hue} {baby:baby}.
        {hero.He} thought of {fear} and felt <very> {:mood} and <very> {:mood}.
        | "Help me!" it {baby.said} {:say}, but {hero.he} thought of {fear}.
        {hero.He} (took|got|fetched) the {color} {thing}, which was still {keep}, and saved the {baby}.
        | The {thing} was still {keep}. With it, {hero.he} <ran> {:move} to help the {baby}.
    """,
    "rescue": """
        There was a (noise|cry|sound) {found:hideout} one {:weather} {:time}. It was {.a:build} {baby:baby}!
        | Who sat {found:hideout} and cried on {.a:weather} {:time}? It was {.a:build} {baby:baby}!
        "I lost my mother," it {baby.said} {:say}. "We were <near> {goal:site}."
        | "Where is your mother?" {hero} asked {:say}. "She is <near> {goal:site}."
        {hero.He} gave it {.a:savory} and <some> {:drink} and put it in <new_box>.
        | {hero.He} found <new_box> <beside> and put the {baby} in it {:move}.
        {hero.His} friend <friend> helped to carry it and talked {:say} about {:topic} and {:wonder}.
        | On the way, <friend> looked into the {box} and was <very> {:joy}.
        <sights>
        At {goal}, its mother was <very> {:joy}. "{hero} found me {found}," it {baby.said} {:say}.
        | The mother was at {goal}, <beside>, and the {baby} <ran> to her {:move}.
    """,
    "treasure": """
        "I found {.a:look} map!" {hero.his} friend <friend> said {:say} one {:weather} {:time}.
        | {.A:hue} letter from <friend> came on {.a:weather} {:time}.
        On it was written, "Bring <new_thing> to the {animal:animal} <near> {goal:site}."
        | "The {animal:animal} <near> {goal:site} wants <new_thing>," it said.
        <sights>
        At {goal}, {hero} gave it to the {animal}, who was <very> {:joy}.
        | "The {color} {thing}!" it {animal.said} {:say} when they came to {goal}.
        "Now look for {box.a:box} {hidden:hideout}," it {animal.said} {:say}.
        | It talked {:say} about {:topic} and about {box.a:box} {hidden:hideout}.
        {hidden.A}, in the {box}, were {:number} {:hue} {:goods} and {:number} {:hue} {:papers}.
        | {hero.He} opened it {:move}. In the {box} were {:number} {:goods}, {:number} {:papers} and {.a:savory}.
    """,
    "market": """
        Then came {.a:weather} {:time} when {hero.his} {adult} needed {a.a:fruit} and {b.a:fruit}.
        | "Please get {a.a:fruit} and {b.a:fruit}," {hero.his} {adult} said {:say} one {:weather} {:time}.
        {hero.He} took <new_box> and <ran> {:move} to the shop of <friend>.
        | {hero.He} found <new_box> and <ran> off to <friend>, who had a shop.
        "I need {a.a}, {b.a} and <some> {:drink}," {hero} said {:say}.
        | {friend} put {a.a} and {b.a} in the {box} and talked {:say} about {:topic}.
        <sights>
        On the way home, {.a:build} {animal:animal} <sat> {found:hideout} and {animal.said} {:say}.
        | {found.A:hideout} was {.a:build} {animal:animal}. "I am <very> hungry," it {animal.said} {:say}.
        {hero.He} opened the {box} {:move} and gave it the {gift:a/b}.
        | "You can have the {gift:a/b}," {hero} said {:say}. It was <very> {:joy}.
    """,
    "present": """
        It was the birthday of {hero.his} friend <friend>, and {:number} guests wanted to come.
        | {hero.His} friend <friend> was going to have {.a:weather} birthday with {:number} guests.
        "I wish I had {color.a:color} {thing:toy} that can {thing.can}," {friend.he} had said {:say}.
        | {friend.He} had always (wanted|dreamed of) {color.a:color} {thing:toy}.
        {hero} made one with {tool:tool} and some {color} paint and worked {:move} for {:number} days.
        | {hero.His} {adult} gave {hero.him} {tool:tool}, some {color} paint, {.a:savory} and {.a:sweet}.
        <soon>, {.a:build} {animal:animal} {animal.said} {:say} and <ran> away with the {thing}.
        | {hero.He} hid the {thing} <beside>, but {.a:build} {animal:animal} played with it {:move}.
        "It is for {friend}!" {hero.he} told the {animal} {:say} and got it back.
        | So {hero.he} gave it {.a:savory}, {.a:sweet} and {:number} {:goods} and got the {thing} back.
        At the party, {friend} got {:number} {:goods}, {.a:look} {:furniture} and then the {color} {thing}.
        | {friend} was <very> {:joy}. "Just what I wanted, {color.a} {thing}!" {friend.he} said {:say}.
    """,
}
