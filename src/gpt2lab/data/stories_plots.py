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
    "new_thing": "{look.a:look} {colour:colour} {thing:toy}",
    "new_box": "{look.a:look} {colour:colour} {box:box}",
    "near": "(by|near|close to|not far from)",
    "beside": "(under|behind|next to|in front of) {.a:look} {:furniture}",
    "ran": "(ran|walked|went|hurried|raced|skipped|marched|rushed)",
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
        | {hero.His} <grown_up> had {.a:look} {home:home} <near> {site:site}, and there they lived.
        | In {.a:look} {home:home} <near> {site:site}, {hero.he} lived with {hero.his} <grown_up>.
    """,
    "love": """
        More than anything, {hero} loved {love.doing:deed}.
        | {hero} loved {love.doing:deed}, (rain or shine|every day|all year long|even in winter).
        | What {hero} liked best was {love.doing:deed}.
        | Every {:time}, {hero.he} {love.did:deed}.
    """,
    "detail": """
        In {hero.his} room stood {.a:look} {:furniture} and {.a:look} {:colour} {:furniture}.
        | For breakfast, {hero.he} (always|often|mostly) had {.a:food}, {.a:food} and <some> {:drink}.
        | Outside grew {:number} {:tree} trees, and {.a:build} {:animal} (often|always|sometimes) slept {:outdoors}.
        | {hero.His} coat was {:colour}, {hero.his} hat was {:colour}, and {hero.his} socks were {:colour} or {:colour}.
        | {hero.He} had {:number} brothers, who (always|often|mostly) talked about {:topic} or {:topic}.
        | There was {.a:look} {:furniture} {:indoors}, and on it lay {.a:look} {:colour} {:toy}.
    """,
    "ending": """
        From that (day|time) on, {hero} and {friend} {love.did} together.
        | After that, {friend} often came to the {home}, and they talked about {:topic} and {:topic}.
        | The next {:weather} {:time}, {hero} and {friend} {love.did} <near> {site}.
        | In the evening, {hero} and {hero.his} {adult} had {.a:food} and <some> {:drink} and talked about {friend}.
        | That night, {hero} dreamed of {friend}, of {:topic} and of {.a:build} {:colour} {:animal}.
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
        | {hero.His} best toy was <new_thing> made of {:stuff}.
        But one {:weather} {:time}, it was gone. {hero} looked {first:indoors} and {second:outdoors}.
        | Then, on {.a:weather} {:time}, it was gone. {first.A:indoors} was only {.a:look} {:furniture}.
        | "Where is it?" {hero} said {:say} one {:time}. {first.A:indoors} was only {.a:food}.
        <soon>, {hero.he} met <friend>, who was <very> {:joy} and had {.a:look} {:toy}.
        | {hero.His} friend <friend> came by with {.a:food} and asked {:say} what was wrong.
        "Have you seen my {colour} {thing}?" {hero} asked {:say}.
        | "I lost my {look} {thing}," {hero} said {:say}. "It is {colour}."
        | "Did you look {first}?" {friend} asked {:say}. "Yes, and {:indoors} too!"
        They met {.a:build} {animal:animal}. "There is something {colour} {hidden:outdoors}," it said {:say}.
        | {.A:build} {animal:animal} came along. "I saw a {thing} {hidden:outdoors}," it said {:say}.
        They <ran> there {:move}, and {hidden} was the {colour} {thing}!
        | The {animal} was right! The {look} {thing} was {hidden}, next to {.a:look} {:furniture}.
        {hero} was <very> {:joy} and gave {.a:food} to {friend} and {.a:food} to the {animal}.
        | "You can play with my {thing} too," {hero} told {friend} {:say}.
        | Since then, {hero} keeps the {colour} {thing} {:indoors}, <beside>.
    """,
    "broken": """
        It was {.a:weather} {:time}, and <friend> came with <new_thing> and {.a:food}.
        | {hero.His} best friend was <friend>, and they played with <new_thing> made of {:stuff}.
        | Next door, in {.a:look} {:home}, lived <friend>, who had <new_thing>.
        {breaker:hero/friend} (dropped|kicked|threw|shook) it, and it broke in {:number} pieces.
        | But {breaker:hero/friend} fell over {.a:look} {:furniture} and broke it.
        <soon>, {breaker.he} (hid|put) the pieces {hidden:indoors}, <beside>.
        | {breaker.He} was <very> {:mood} and hid it {hidden:indoors}.
        {other:hero/friend} came back from {:site}. "Where is the {thing}?" {other.he} asked {:say}.
        | "I cannot find the {colour} {thing}," {other:hero/friend} said {:say}.
        {breaker} felt <very> {:mood}. "I broke it," {breaker.he} said {:say}. "It is {hidden}."
        | "I broke it. Look {hidden}," {breaker} said {:say}. "I am <very> sorry."
        {hero.His} {adult} (had|brought|found) {tool:tool} and mended the {look} {thing} {:move}.
        | With {tool:tool} and some {:colour} {:stuff}, {breaker} mended the {thing} {:move}.
        {other} was <very> {:joy} and (hugged|kissed|thanked) {breaker}.
        | {breaker} gave {other} {.a:food} and {.a:food}, and both were <very> {:joy}.
        | "Now the {colour} {thing} is even (better|stronger|prettier)," {other} said {:say}.
    """,
    "errand": """
        One {:weather} {:time}, {hero.he} asked {:say}, "Can we {wish:deed}?"
        | "I want to {wish:deed}," {hero.he} told {hero.his} {adult} one {:weather} {:time}.
        "Yes, but first bring this {food:food} to <friend>," {adult.he} said {:say}.
        | {hero.His} {adult} said {:say}, "Take this {food:food} to <friend> <near> {:site} first."
        So {hero} put it in <new_box> and <ran> off {:move}.
        | {hero} found <new_box> {:indoors} for the {food}.
        On the way, {hero.he} met {.a:build} {animal:animal}. "What is in the {box}?" it asked {:say}.
        | By {.a:look} {:tree} tree sat {.a:build} {animal:animal}. "I want your {food}!" it said {:say}.
        "It is for {friend}," {hero} said {:say} and <ran> on.
        | But {hero} held the {colour} {box} {:move} and only talked about {:topic}.
        <soon>, {hero.he} saw {friend}, who (lived|sat|stood) <beside>.
        | "A {colour} {box} full of {food.s}!" {friend} said {:say} and was <very> {:joy}.
        {friend.He} gave {hero.him} {.a:look} {:colour} {thing:toy}.
        | "Take this {thing:toy}, {hero}," {friend.he} said {:say}. "It is made of {:stuff}."
        On the way back, the {animal} was {:mood} and {:mood}, so {hero} showed it the {thing}.
        | {hero.His} {adult} kept {adult.his} word, and they {wish.did} until (noon|night|dinner|bedtime).
        | At the {home}, they {wish.did} and then had {.a:food} and <some> {:drink}.
    """,
    "quarrel": """
        Together with <friend>, {hero} (found|saw|spotted) <new_thing> {found:outdoors}.
        | {hero.His} friend <friend> was with {hero.him} when they found <new_thing> {found:outdoors}.
        "It is mine!" said {one:hero/friend}. "No, I saw it first!" {other:hero/friend} said {:say}.
        | {one:hero/friend} (took|grabbed|held) it, but {other:hero/friend} wanted it too.
        "Give me the {colour} {thing}, {other}!" said {one}. "Never!" {other} said {:say}.
        | Soon {other} was <very> {:mood}, and {one} was <very> {:mood}.
        {hero.His} {adult} (was|sat|stood) {:outdoors} with {.a:food} and heard the noise.
        | Then {hero.his} {adult} came with {.a:look} {:furniture} and {.a:food}.
        "{winner:friend/hero} goes first, and {loser:friend/hero} can have {.a:food}," {adult.he} said {:say}.
        | {adult.He} threw {.a:colour} coin, and {winner:friend/hero} won, so {loser:friend/hero} had to wait.
        So {winner} took the {look} {thing} and <ran> {:move} to {:site}.
        | {winner} played {:move} with it, and {loser} watched {.a:build} {:colour} {:animal}.
        <soon>, {winner.he} felt <very> {:mood}. "Your turn, {loser}," {winner.he} said {:say}.
        | {loser} was <very> {:joy} when {winner} brought the {thing} and {.a:food}.
        | Then they put the {colour} {thing} back {found}, for {one} and for {other}.
    """,
    "courage": """
        But {hero.he} was <very> (afraid|scared) of {fear:fear}.
        | There was one thing that {hero.he} did not like at all. It was {fear:fear}.
        One {:time}, {hero.his} friend <friend> (brought|gave|showed|sent) {hero.him} <new_thing>.
        | {hero.He} told it {:say} to <friend>, who came back with <new_thing>.
        "Hold this {thing} when you think of {fear}," {friend.he} said {:say}.
        | "This {look} {thing} will help you," {friend} said {:say}. "It is made of {:stuff}."
        {hero} (put|kept|left|hid) it {keep:indoors}, <beside>.
        | {hero.He} thanked {friend} with {.a:food} and put it {keep:indoors}.
        Then, one {:weather} {:time}, {.a:build} {baby:baby} was stuck {:outdoors}.
        | One {:weather} {:time}, {hero.he} heard a cry. {.A:outdoors} was {.a:build} {baby:baby}.
        {hero} wanted to help, but {hero.he} thought of {fear} and felt <very> {:mood}.
        | "Help me!" it said {:say}, but {hero} thought of {fear}.
        {hero.He} (took|got|fetched) the {colour} {thing}, which was still {keep}, and saved the {baby}.
        | The {look} {thing} was still {keep}. With it, {hero.he} <ran> {:move} to help the {baby}.
        "Thank you," the {baby} said {:say}. "Are you not afraid of {fear}?"
        | The {baby} was <very> {:joy} and got {.a:food} and <some> {:drink}.
        | <soon>, {hero} told {friend} about the {baby} and the {colour} {thing}.
    """,
    "rescue": """
        There was a (noise|cry|sound) {found:outdoors} one {:weather} {:time}. It was {.a:build} {baby:baby}!
        | Who sat {found:outdoors} and cried on {.a:weather} {:time}? It was {.a:build} {baby:baby}!
        "I lost my mother," it said {:say}. "We were <near> {goal:site}."
        | "Where is your mother?" {hero} asked {:say}. "She is <near> {goal:site}."
        It was <very> {:mood}, so {hero} gave it {food.a:food} and <some> {:drink}.
        | {hero} gave the {baby} {food.a:food} and talked {:say} about {:topic}.
        {hero.He} put it in <new_box> and <ran> off {:move}.
        | {hero.He} found <new_box> {:indoors} and put the {baby} in it.
        First they met {.a:build} {animal:animal}. "Go and ask <friend>," it said {:say}.
        | By {.a:look} {:tree} tree, {.a:build} {animal:animal} told them to ask <friend>.
        "Did the {animal} send you, {hero}?" {friend} asked {:say} and carried the {colour} {box}.
        | {friend} looked into the {look} {box} and talked about {:topic} and {:topic}.
        <soon>, they <ran> to {goal}, and the mother of the {baby} was there, <beside>.
        | At {goal}, its mother was <very> {:joy}. "{hero} found me {found}," the {baby} said {:say}.
        | The mother was waiting at {goal}. "{hero} gave me {food.a}," the {baby} told her {:say}.
        She gave {.a:look} {:colour} {:toy} to {hero} and {.a:food} to {friend}.
        | "Keep the {colour} {box}," {hero} told the {baby} {:say} and <ran> home.
    """,
    "treasure": """
        "I found {.a:look} map!" {hero.his} friend <friend> said {:say} one {:weather} {:time}.
        | {.A:colour} letter from <friend> came to the {home} on {.a:weather} {:time}.
        "(Look|Go and look|Search) {first:indoors} and take what is {colour:colour}," it said.
        | It said, "There is (something|a thing) {colour:colour} {first:indoors}."
        So they looked {:move} {first} and (found|saw|got) {look.a:look} {colour} {thing:toy}.
        | {first.A} was {look.a:look} {colour} {thing:toy}, <beside>.
        On it was written, "Show the {thing} to the {animal:animal} <near> {goal:site}."
        | "Now we must bring it to the {animal:animal} <near> {goal:site}," {friend} said {:say}.
        They <ran> to {goal}, and {carrier:hero/friend} carried the {colour} {thing} {:move}.
        | {carrier:hero/friend} put the {look} {thing} in {.a:look} {:furniture}, and they <ran> off.
        "Good. Now look for {box.a:box} {second:outdoors}," the {animal} told {carrier} {:say}.
        | The {animal} at {goal} was <very> {:joy} and showed them {box.a:box} {second:outdoors}.
        In the {box} were {:number} {:colour} coins and {:number} {:colour} {.s:toy}.
        | {finder:friend/hero} opened it {:move}. In it were {:number} {.s:toy} and {:number} {.s:food}.
        They (shared|divided) everything and gave {.a:food} to the {animal}.
        | "It was the {look} {thing} that helped us," {hero} told {friend} {:say}.
        | {hero} and {friend} were <very> {:joy} and hid the {box} {second} again.
    """,
    "market": """
        Then came {.a:weather} {:time} when {hero.his} {adult} was (ill|weak|tired) and <very> hungry.
        | All were <very> hungry one {:weather} {:time}, and {hero.his} {adult} wanted to (cook|bake).
        "(Please|Go and|Could you) get me {a.a:food}, {b.a:food} and {c.a:food}," {adult.he} said {:say}.
        | So {hero} was to get {a.a:food}, {b.a:food} and {c.a:food} for {adult.him}.
        {hero.He} took <new_box> and <ran> {:move} to the shop of <friend>.
        | {hero} found <new_box> {:indoors} and <ran> off to <friend>, who had a shop.
        "I need {a.a}, {b.a} and {c.a} for my {adult}," {hero} said {:say}.
        | "{a.A}, {b.a} and {c.a}," {hero} said {:say}, "and <some> {:drink}."
        {friend} (put|packed|threw) everything in the {colour} {box} and talked about {:topic}.
        | {friend} carried the {look} {box} to the door, past {.a:look} {:furniture}.
        On the way home, {hero.he} saw {.a:build} {animal:animal} {found:outdoors}. It was <very> {:mood}.
        | {found.A:outdoors} was {.a:build} {animal:animal}. "I am <very> hungry," it said {:say}.
        "You can have the {gift:a/b/c}," {hero} said {:say}.
        | {hero} opened the {box} {:move} and gave it the {gift:a/b/c}.
        "Where is the {gift}?" {hero.his} {adult} asked {:say}. "I gave it to {animal.a} {found}."
        | The {animal} was <very> {:joy}. "I love {gift.s} more than {.s:toy}," it said {:say}.
        | <soon>, {friend} came with {:number} {gift.s} more and <some> {:drink}.
    """,
    "present": """
        It was the birthday of {hero.his} friend <friend>, who was <very> {:trait}.
        | {hero.His} friend <friend> was going to have {.a:weather} birthday with {:number} guests.
        "I wish I had {colour.a:colour} {thing:toy}," {friend} had said {:say}.
        | {friend} had always (wanted|dreamed of) {colour.a:colour} {thing:toy}.
        {hero} (wanted|had) to make one of {stuff:stuff} and looked for some {:outdoors}.
        | "I can make one of {stuff:stuff}," {hero.he} thought and took {.a:look} {:furniture} to work on.
        With {tool:tool} and {colour} paint, {hero.he} worked {:move} for {:number} days.
        | {hero.His} {adult} gave {hero.him} {tool:tool}, some {colour} paint and {.a:food}.
        {hero} hid the {look:look} {thing} {hidden:outdoors}, <beside>.
        | "{friend} must not see the {look:look} {thing}," {hero} said {:say} and hid it {hidden:outdoors}.
        But {hidden}, {.a:build} {animal:animal} found it and <ran> {:move} away with it.
        | <soon>, {.a:build} {animal:animal} saw it {hidden} and played with it {:move}.
        "The {thing} is for {friend}!" {hero} said {:say} to the {animal}.
        | So {hero} gave the {animal} {.a:food} and got the {look} {thing} back.
        At the party, {friend} got {:number} {.s:food} and {.a:look} {:furniture}, and then the {thing}.
        | "I made it of {stuff}, with {tool}," {hero} told {friend} {:say}.
        | {friend} was <very> {:joy}. "Just what I wanted, {colour.a} {thing}!" {friend.he} said {:say}.
    """,
}
