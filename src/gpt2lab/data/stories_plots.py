"""The plots of the stories, in the notation of `stories_notation.py`: one rule a plot, and the rules that they share.

A plot finds ``hero kind trait adult home site love`` filled, and must fill ``friend``, of whom the ending speaks.
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
    "new_thing": "{.a:look} {colour:colour} {thing:toy}",
    "new_box": "{.a:look} {colour:colour} {box:box}",
    "near": "(by|near|close to|not far from)",
    "beside": "(under|behind|next to|in front of) {.a:look} {:furniture}",
    "ran": "(ran|walked|went|hurried|raced|skipped|marched|rushed)",
    "sat": "(sat|stood|lay|slept)",
    "very": "(very|so|really|rather|quite|terribly)",
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
        More than anything, {hero} loved {love.doing:deed}.
        | {hero} loved {love.doing:deed}, (rain or shine|every day|all year long|even in winter).
        | What {hero} liked best was {love.doing:deed}.
    """,
    "detail": """
        In {hero.his} room stood {.a:look} {:hue} {:furniture}, {.a:look} {:furniture} and {.a:look} {:furniture}.
        | For breakfast, {hero.he} (always|often|mostly) had {.a:food}, {.a:food} and <some> {:drink}.
        | Outside were {:number} {:tree} trees, {:number} {:crowd} and {.a:look} {:hue} {:building}.
        | {hero.His} coat was {:hue}, {hero.his} hat was {:hue}, and {hero.his} socks were {:hue} or {:hue}.
        | {hero.He} had {:number} brothers, who (always|often|mostly) talked about {:topic}, {:topic} or {:topic}.
        | {hero.He} had a box full of {:hue} {:goods}, {:hue} {:goods} and {:number} {:goods}.
    """,
    "sights": """
        The (road|path|way) went past {.a:look} {:building}, {:number} {:tree} trees and {:number} {:crowd}.
        | On the (road|path|way) were {:number} {:crowd}, {:number} {:crowd} and {.a:look} {:hue} {:furniture}.
        | It was {:weather} and {:weather}, and {:number} {:crowd} <sat> <beside>.
    """,
    "meal": """
        (They|Both|The two) had {.a:food}, {.a:food}, {.a:food} and <some> {:drink}.
        | (They|Both|The two) talked {:say} about {:topic}, {:topic} and {:topic}.
    """,
    "ending": """
        From that (day|time) on, {hero} and {friend} {love.did}, in {:weather} and in {:weather} weather.
        | After that, {friend} often came to the {home}, and they talked about {:topic} and {:topic}.
        | The next {:weather} {:time}, {hero} and {friend} {love.did} and had {.a:food} and {.a:food}.
        | In the evening, {hero.his} {adult} made {.a:food} and {.a:food} and asked {:say} about {friend}.
        | That night, {hero} dreamed of {friend}, of {:topic}, of {:topic} and of {:number} {:hue} {:crowd}.
        (Everyone|Everybody|Each child) <near> {site} said that {hero} was a <very> {trait} {kind}.
        | And {hero.his} {adult} was (proud of|happy with|glad about) such {trait.a} {kind}.
        | "You are {trait.a} {kind}," {hero.his} {adult} said {:say}, and {hero} (smiled|laughed|nodded).
        | If you go to {site}, you may still (meet|see|find) the {trait} {kind} <beside>.
    """,
}

PLOTS: dict[str, str] = SHARED | {
    "lost": """
        One {:time}, {hero.his} {adult} gave {hero.him} <new_thing>.
        | On {hero.his} birthday, {hero.he} got <new_thing>, {.a:food} and {.a:food}.
        But one {:weather} {:time}, it was gone. There was only {.a:look} {:hue} {:furniture}.
        | Then, one {:weather} {:time}, {hero.he} could not find it and felt <very> {:mood}.
        <soon>, <friend> came by. "Have you seen my {colour} {thing}?" {hero} asked {:say}.
        | "I lost my {colour} {thing}," {hero.he} told {hero.his} friend <friend> {:say}.
        They met {.a:build} {animal:animal}. "Look {hidden:hideout}," it said {:say}.
        | {.A:build} {animal:animal} came along. "I saw it {hidden:hideout}," it said {:say}.
        <sights>
        The {animal} was right! The {thing} was {hidden}, <beside>.
        | They <ran> {:move} and looked {hidden}, and there was the {thing}!
        {hero} was <very> {:joy} and gave {.a:food} to {friend} and {.a:food} to the {animal}.
        | "You can play with my {thing} too," {hero} told {friend} {:say}.
    """,
    "broken": """
        It was {.a:weather} {:time}, and <friend> came with <new_thing> and {.a:food}.
        | {hero.His} best friend was <friend>, and they played with <new_thing> made of {:stuff}.
        <meal>
        But {breaker:hero/friend} (dropped|kicked|threw|shook) the {thing}, and it broke in {:number} pieces.
        | Then {breaker:hero/friend} fell over {.a:look} {:furniture} and broke the {thing}.
        {breaker.He} was <very> {:mood} and hid it {hidden:hideout}, <beside>.
        "Where is the {thing}?" {other:hero/friend} asked {:say}. "I broke it. Look {hidden}," said {breaker}.
        | "I cannot find the {thing}," {other:hero/friend} said {:say}. {breaker} told {other.him} {:say}.
        {hero.His} {adult} found {tool:tool} and mended the {colour} {thing} {:move}.
        | With {tool:tool} and some {:hue} {:stuff}, {breaker} mended the {thing} {:move}.
        {other} was <very> {:joy} and (hugged|kissed|thanked) {breaker}.
        | {breaker} gave {other} {.a:food} and {.a:food} and {:number} {:hue} {:goods}.
    """,
    "errand": """
        One {:weather} {:time}, {hero.he} asked {:say}, "Can we {wish:deed}?"
        | "I want to {wish:deed}," {hero.he} told {hero.his} {adult} one {:weather} {:time}.
        "Yes, but first bring this {food:fruit} to <friend>," {adult.he} said {:say}.
        | {adult.He} said {:say}, "Take this {food:fruit} to <friend> first."
        So {hero} put it in <new_box> and <ran> off {:move}.
        | {hero} found <new_box> <beside> and put the {food} in it.
        <sights>
        {.A:build} {animal:animal} wanted the {food}. "It is for {friend}," {hero} told it {:say}.
        | There {.a:build} {animal:animal} asked {:say} for the {food}, but {hero} <ran> on.
        <soon>, {friend} opened the {colour} {box}. "A {box} full of {food.s}!" {friend.he} said {:say}.
        | {friend} was <very> {:joy} and gave {hero.him} {:number} {:hue} {:goods} for the {food}.
        Then {hero} and {hero.his} {adult} {wish.did} until (noon|night|dinner|bedtime).
        | Back at the {home}, they {wish.did}, and even the {animal} came, <very> {:joy}.
    """,
    "quarrel": """
        Together with <friend>, {hero.he} (found|saw|spotted) <new_thing> {found:hideout}, <beside>.
        | {hero.His} friend <friend> was with {hero.him} when they found <new_thing> {found:hideout}.
        "It is mine!" said {one:hero/friend}. "No, I saw it first!" {other:hero/friend} said {:say}.
        | {one:hero/friend} (took|grabbed|held) it {:move}, but {other:hero/friend} wanted it too.
        <soon>, {one} was <very> {:mood}, and {other} was <very> {:mood}.
        | "Give me the {thing}, {other}!" {one} said {:say}.
        {hero.His} {adult} <sat> <beside> with {.a:food} and heard them.
        | Then {hero.his} {adult} came with {.a:look} {:furniture} and {.a:food}.
        "{winner:friend/hero} goes first, and {loser:friend/hero} can have {.a:food}," {adult.he} said {:say}.
        | {adult.He} threw {.a:hue} coin, and {winner:friend/hero} won, so {loser:friend/hero} had to wait.
        <soon>, {winner} gave {loser} the {thing}, {.a:food} and {.a:food}.
        | Then they put the {colour} {thing} back {found} and had {.a:food} and <some> {:drink}.
        <meal>
    """,
    "courage": """
        But {hero.he} was <very> (afraid|scared) of {fear:fear}.
        | There was one thing that {hero.he} did not like at all. It was {fear:fear}.
        "This will help you," {hero.his} friend <friend> said {:say} and gave {hero.him} <new_thing>.
        | {hero.He} told it {:say} to <friend>, who came back with <new_thing> and {.a:food}.
        <meal>
        {hero} (put|kept|left|hid) the {thing} {keep:hideout}, <beside>.
        | Then {hero} <ran> home {:move} and put the {thing} {keep:hideout}.
        One {:weather} {:time}, {.a:build} {baby:baby} was stuck <beside>.
        | One {:weather} {:time}, {hero.he} heard a cry. It was {.a:build} {:hue} {baby:baby}.
        {hero} thought of {fear} and felt <very> {:mood} and <very> {:mood}.
        | "Help me!" the {baby} said {:say}, but {hero} thought of {fear}.
        {hero.He} (took|got|fetched) the {colour} {thing}, which was still {keep}, and saved the {baby}.
        | The {thing} was still {keep}. With it, {hero.he} <ran> {:move} to help the {baby}.
        "Are you not afraid of {fear}?" the {baby} asked {:say}, <very> {:joy}.
        | The {baby} was <very> {:joy} and got {.a:food}, {.a:food} and <some> {:drink}.
    """,
    "rescue": """
        There was a (noise|cry|sound) {found:hideout} one {:weather} {:time}. It was {.a:build} {baby:baby}!
        | Who sat {found:hideout} and cried on {.a:weather} {:time}? It was {.a:build} {baby:baby}!
        "I lost my mother," it said {:say}. "We were <near> {goal:site}."
        | "Where is your mother?" {hero} asked {:say}. "She is <near> {goal:site}."
        {hero.He} gave it {.a:food} and <some> {:drink} and put it in <new_box>.
        | {hero} found <new_box> <beside> and put the {baby} in it {:move}.
        {.A:build} {animal:animal} <sat> <beside>. "Go and ask <friend>," it said {:say}.
        | By {.a:look} {:tree} tree, {.a:build} {animal:animal} told them to ask <friend>.
        "Did the {animal} send you, {hero}?" {friend} asked {:say} and carried the {colour} {box}.
        | {friend} looked into the {box} and talked {:say} about {:topic} and {:topic}.
        <sights>
        At {goal}, its mother was <very> {:joy}. "{hero} found me {found}," the {baby} said {:say}.
        | The mother was <near> {goal}, <beside>, and the {baby} <ran> to her {:move}.
        She gave {:number} {:hue} {:goods} to {hero} and {.a:food} to {friend}.
        | "Keep the {colour} {box}," {hero} told the {baby} {:say} and <ran> home.
    """,
    "treasure": """
        "I found {.a:look} map!" {hero.his} friend <friend> said {:say} one {:weather} {:time}.
        | {.A:hue} letter from <friend> came on {.a:weather} {:time}.
        On it was written, "Bring <new_thing> to the {animal:animal} <near> {goal:site}."
        | "The {animal:animal} <near> {goal:site} wants <new_thing>," it said.
        {hero} found the {thing} {:move} <beside>, and they <ran> off.
        | So {friend} took the {colour} {thing}, {.a:food} and {.a:food} and <ran> off {:move}.
        <sights>
        At {goal}, {hero} gave the {thing} to the {animal}, who was <very> {:joy}.
        | "The {colour} {thing}!" the {animal} said {:say} when they came to {goal}.
        "Now look for {box.a:box} {hidden:hideout}," it told {friend} {:say}.
        | It talked {:say} about {:topic} and about {box.a:box} {hidden:hideout}.
        {hidden.A}, in the {box}, were {:number} {:hue} {:goods} and {:number} {:hue} {:goods}.
        | {hero} opened the {box} {:move}. In it were {:number} {:goods}, {:number} {:goods} and {.a:food}.
        They (shared|divided) everything and gave {.a:food} and {.a:food} to the {animal}.
        | {hero} and {friend} were <very> {:joy} and hid the {box} {hidden} again.
    """,
    "market": """
        Then came {.a:weather} {:time} when {hero.his} {adult} was (ill|weak|tired) and <very> hungry.
        | All were <very> hungry one {:weather} {:time}, and {hero.his} {adult} wanted to (cook|bake).
        "(Please|Go and|Could you) get {a.a:fruit} and {b.a:fruit}," {adult.he} said {:say}.
        | So {hero} was to get {a.a:fruit} and {b.a:fruit} for {adult.him}.
        {hero.He} took <new_box> and <ran> {:move} to the shop of <friend>.
        | {hero} found <new_box> and <ran> off to <friend>, who had a shop.
        "I need {a.a}, {b.a} and <some> {:drink}," {hero} said {:say}.
        | {friend} put {a.a} and {b.a} in the {box} and talked {:say} about {:topic}.
        <sights>
        On the way home, {.a:build} {animal:animal} <sat> {found:hideout}, <very> {:mood}.
        | {found.A:hideout} was {.a:build} {animal:animal}. "I am <very> hungry," it said {:say}.
        {hero} opened the {colour} {box} {:move} and gave it the {gift:a/b}.
        | "You can have the {gift:a/b}," {hero} said {:say}. It was <very> {:joy}.
        "Where is the {gift}?" {hero.his} {adult} asked {:say}. "I gave it to {animal.a} {found}."
        | <soon>, {friend} came with {:number} {gift.s}, {.a:food} and <some> {:drink}.
    """,
    "present": """
        It was the birthday of {hero.his} friend <friend>, and {:number} guests wanted to come.
        | {hero.His} friend <friend> was going to have {.a:weather} birthday with {:number} guests.
        "I wish I had {colour.a:colour} {thing:toy}," {friend.he} had said {:say}.
        | {friend} had always (wanted|dreamed of) {colour.a:colour} {thing:toy}.
        {hero} (wanted|had) to make one of {:stuff} and looked for some <beside>.
        | "I can make one of {:stuff}," {hero.he} thought and took {.a:look} {:furniture} to work on.
        With {tool:tool} and {colour} paint, {hero.he} worked {:move} for {:number} days.
        | {hero.His} {adult} gave {hero.him} {tool:tool}, some {colour} paint, {.a:food} and {.a:food}.
        <soon>, {.a:build} {animal:animal} <ran> {:move} away with the {thing}.
        | {hero} hid the {thing} <beside>, but {.a:build} {animal:animal} played with it {:move}.
        "The {thing} is for {friend}!" {hero} told the {animal} {:say} and got it back.
        | So {hero} gave the {animal} {.a:food}, {.a:food} and {:number} {:goods} and got the {thing} back.
        At the party, {friend} got {:number} {:goods}, {.a:look} {:furniture} and then the {colour} {thing}.
        | "I made it with {tool}," {hero} told {friend} {:say}.
        | {friend} was <very> {:joy}. "Just what I wanted, {colour.a} {thing}!" {friend.he} said {:say}.
    """,
}
