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
    "near": "(by|near|close to|not far from)",
    "ran": "(ran|walked|went|hurried|raced|skipped|marched|rushed)",
    "said": "(said|cried|called|shouted)",
    "very": "(very|so|really|rather|quite|terribly)",
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
        | For breakfast, {hero.he} (always|often|mostly) had {.a:food} and (some|a cup of|a glass of) {:drink}.
        | Outside grew {:number} {:tree} trees, and {.a:animal} (often|always|sometimes) slept {:spot}.
        | All {hero.his} coats were {:colour}, and all {hero.his} socks were {:colour} or {:colour}.
        | {hero.He} had {:number} brothers, and they (always|often|mostly) talked about {:topic} or {:topic}.
        | There was {.a:look} {:furniture} {:spot}, and on it lay {.a:look} {:colour} {:toy}.
    """,
    "ending": """
        From that (day|time) on, {hero} and {friend} {love.did} together.
        | After that, {friend} often came to the {home}, and they talked about {:topic} and {:topic}.
        | The next {:weather} {:time}, {hero} and {friend} {love.did} {:manner} <near> {site}.
        | In the evening, {hero} and {hero.his} {adult} had {.a:food} and some {:drink} and talked about {friend}.
        | At night, {hero} dreamed of {friend}, of {:topic} and of {.a:look} {:colour} {:animal}.
        (Everyone|Everybody|Each child) <near> {site} said that {hero} was a <very> {trait} {kind}.
        | And {hero.his} {adult} was (proud of|happy with|glad about) such {trait.a} {kind}.
        | "You are {trait.a} {kind}," {hero.his} {adult} said {:manner}, and {hero} (smiled|laughed|nodded).
        | If you go to {site}, you may still (meet|see|find) the {trait} {kind} there.
        | That (night|evening), the {trait} {kind} (slept|sang|played) {:manner}.
    """,
}

PLOTS: dict[str, str] = SHARED | {
    "lost": """
        One {:time}, {hero.his} {adult} gave {hero.him} <new_thing>.
        | On {hero.his} birthday, {hero.he} got <new_thing> and {.a:food}.
        | {hero.His} best toy was <new_thing>.
        {hero} (took it everywhere|never slept without it|played with it {:manner} all day long).
        | "I will (always|never stop to) keep my {thing}," {hero.he} said {:manner}.
        But one {:weather} {:time}, the {colour} {thing} was gone.
        | Then, on {.a:weather} {:time}, {hero} could not find it.
        {hero} looked {first:spot} and {second:spot}, but found only {.a:look} {:furniture}.
        | {hero.He} looked {first:spot}, but there was only {.a:animal}. {second.A:spot} was only {.a:food}.
        | "Is it {first:spot}?" {hero.he} thought. It was not, and it was not {second:spot}.
        {hero.He} felt <very> {:mood} and (sat down|began to cry|went back to the {home}).
        |
        <soon>, {hero.he} (met|saw|asked) {hero.his} friend <friend>.
        | {hero.His} friend <friend> came by and looked <very> {:joy}.
        "What is wrong, {hero}?" {friend.he} asked {:manner}. "I lost my {colour} {thing}."
        | "Have you seen my {look} {thing}?" {hero} asked {:manner}.
        | "Did you look {first}?" asked {friend}. "Yes, and {second} too," {hero} said {:manner}.
        They met {.a:look} {animal:animal} and asked it.
        | {animal.A:animal} heard them and (stopped|came closer|looked up).
        "There is (something|a thing) {colour} {hidden:spot}," it said {:manner}.
        | "I saw a {thing} {hidden:spot} (yesterday|today|this {:time})," said the {animal}.
        <soon>, they <ran> there, and {hidden} was the {colour} {thing}!
        | The {animal} was right! The {look} {thing} was {hidden}.
        {hero} was <very> {:joy} and gave {.a:food} to {friend} and {.a:food} to the {animal}.
        | "You can play with my {thing} too," {hero} told {friend} {:manner}.
        | Since then, {hero} keeps the {colour} {thing} {:spot}.
    """,
    "broken": """
        It was {.a:weather} {:time}, and <friend> came to play.
        | {hero.His} best friend was <friend>, who was <very> {:trait} and loved {.doing:deed}.
        They played {:manner} with <new_thing> that belonged to {owner:hero/friend}.
        | {owner:hero/friend} was <very> proud of <new_thing>.
        {breaker:hero/friend} (dropped|kicked|threw|shook) it too {:manner}, and the {thing} broke.
        | But {breaker:hero/friend} fell over it and broke the {look} {thing} in {:number} pieces.
        <soon>, {breaker.he} (hid|put) the pieces {hidden:spot}, next to {.a:look} {:furniture}.
        | {breaker.He} was <very> {:mood} and hid it {hidden:spot}.
        {owner} came back from {:site}. "Where is my {colour} {thing}?" {owner.he} asked {:manner}.
        | "I cannot find my {thing}," {owner} said {:manner}. "It is {look} and {colour}."
        {breaker} (looked at the floor|turned red|felt <very> {:mood}|did not say a word).
        |
        <soon>, {breaker.he} said {:manner}, "I broke it, {owner}. It is {hidden}."
        | "I broke it. Look {hidden}," {breaker.he} said {:manner}. "I am <very> sorry."
        {owner} was {:mood}, but (not for long|only a little|not with {breaker}).
        | "Thank you for telling me, {breaker}," {owner} said {:manner}.
        They took the {thing} to {hero.his} {adult}, who (had|brought|found) {tool:tool}.
        | {hero.His} {adult} (had|brought|found) {tool:tool} {:spot} and came to help.
        {breaker} held the {look} {thing}, and {adult.he} mended it {:manner} with {tool}.
        | With {tool} and some {:stuff}, {breaker} mended it {:manner}.
        {owner} was <very> {:joy} and (hugged|kissed|thanked) {breaker}.
        | {breaker} gave {owner} {.a:food} and {.a:food}, and both were <very> {:joy}.
        | "Now my {colour} {thing} is even (better|stronger|prettier)," {owner} said {:manner}.
    """,
    "errand": """
        One {:weather} {:time}, {hero.he} asked {:manner}, "Can we {wish:deed}?"
        | "I want to {wish:deed}," {hero.he} told {hero.his} {adult} one {:weather} {:time}.
        "Yes, but first bring this {food:food} to <friend> <near> {goal:site}," {adult.he} said {:manner}.
        | {hero.His} {adult} said {:manner}, "Take this {food:food} to <friend>. Then we will {wish}."
        So {hero} put the {food} in {look.a:look} {colour:colour} {box:box} and <ran> off.
        | {hero} (took|found|got) {look.a:look} {colour:colour} {box:box} {:spot} for the {food}.
        On the way, {hero.he} met {.a:look} {animal:animal}. "What is in the {box}?" it asked {:manner}.
        | By {.a:look} {:tree} tree sat {animal.a:animal}. "Give me your {food}!" it said {:manner}.
        "It is for {friend}," {hero} said {:manner} and <ran> on.
        | But {hero} held the {colour} {box} <very> tight and only talked about {:topic}.
        {friend} (lived|was waiting|stood|sat) <near> {.a:look} {:tree} tree.
        | <soon>, {hero.he} saw {friend} (in|at) the door of {.a:look} {:home}.
        "This {food} is from my {adult}," {hero} said {:manner}.
        | {hero} opened the {look} {box}. "A {colour} {box} full of {food.s}!" {friend} said {:manner}.
        {friend} was <very> {:joy} and gave {hero.him} {.a:colour} {thing:toy}.
        | "Take this {thing:toy}, {hero}," {friend.he} said {:manner}. "It is made of {:stuff}."
        <soon>, {hero.he} met the {animal} again and gave it the {thing} (for a while|to play with).
        | The {animal} still waited, {:mood} and {:mood}, so {hero} showed it the {thing}.
        |
        At the {home}, {hero.his} {adult} kept {adult.his} word, and they {wish.did} {:manner}.
        | When {hero} came home, they {wish.did} until (noon|night|dinner|it was dark).
    """,
    "quarrel": """
        {hero} (often|always|mostly) played with <friend>, who was <very> {:trait}.
        | Next door, in {.a:look} {:home}, lived <friend>.
        One {:weather} {:time}, they (found|saw|spotted) <new_thing> {found:spot}.
        | {found.A:spot}, they (found|saw|spotted) <new_thing> one {:weather} {:time}.
        "It is mine!" <said> {one:hero/friend}. "No, I saw it first!" <said> {other:hero/friend} {:manner}.
        | {one:hero/friend} (took|grabbed|held) it {:manner}, but {other:hero/friend} wanted it too.
        "Give me the {colour} {thing}, {other}!" said {one}. "Never!" {other} said {:manner}.
        | Soon {other} was <very> {:mood}, and {one} was <very> {:mood}.
        |
        {hero.His} {adult} (was|sat|stood) {:spot} and heard the noise.
        | Then {hero.his} {adult} came with {.a:look} {:furniture} and {.a:food}.
        "Why do you (shout|fight|cry) about {look.a} {thing}?" {adult.he} asked {:manner}.
        | "{one} does not want to share the {colour} {thing}," {other} said {:manner}.
        | {one} looked at the {:furniture}, and {other} looked at the {:furniture}.
        "{winner:friend/hero} goes first, and {loser:friend/hero} can have {.a:food}," {adult.he} said {:manner}.
        | {adult.He} threw {.a:colour} coin, and {winner:friend/hero} won, so {loser:friend/hero} had to wait.
        So {winner} took the {look} {thing} and <ran> to {:site}.
        | {winner} played {:manner} with it, and {loser} watched {.a:animal}.
        <soon>, {winner.he} felt <very> {:mood}. "Your turn, {loser}," {winner.he} said {:manner}.
        | "It is more fun with two, {loser}," {winner} said {:manner}.
        {loser} was <very> {:joy}, and they played until (noon|night|dinner|it was dark).
        | Then they put the {colour} {thing} back {found}, for {one} and for {other}.
        | "I am sorry, {one}," said {other}. They shared {.a:food} and talked about {:topic}.
    """,
    "courage": """
        But {hero.he} was <very> (afraid|scared) of {fear:fear} and of {fear2:fear}.
        | There was one thing that {hero.he} did not like at all. It was {fear:fear}.
        One {:time}, {hero.his} friend <friend> (brought|gave|showed|sent) {hero.him} <new_thing>.
        | {hero.He} told it {:manner} to <friend>, who came back with <new_thing>.
        "Hold this {thing} when you think of {fear}," {friend.he} said {:manner}.
        | "This {look} {thing} will help you," {friend} said {:manner}. "It is made of {:stuff}."
        {hero} (put|kept|left|hid) it {keep:spot}, (under|behind|next to) {.a:look} {:furniture}.
        | {hero.He} thanked {friend} {:manner} and put it {keep:spot}.
        Then, one {:weather} {:time}, {.a:look} {baby:baby} was stuck {stuck:spot}.
        | One {:weather} {:time}, {hero.he} heard a cry. {stuck.A:spot} was {.a:look} {baby:baby}.
        "Help me, I cannot get (out|home|away)!" it <said> {:manner}.
        | The {baby} was <very> {:mood}.
        {hero} wanted to help, but {hero.he} thought of {fear}.
        | "What if {fear} (come|are here|wait for me)?" thought {hero} and felt <very> {:mood}.
        |
        {hero.He} remembered {friend} and (took|got|fetched) the {thing}, which was still {keep}.
        | The {look} {colour} {thing} was still {keep}, and {hero.he} took it {:manner}.
        Then {hero.he} <ran> {:manner} to the {baby} and (pulled|lifted|helped) it out.
        | {hero.He} closed {hero.his} eyes, thought of {:topic}, and saved the {baby}.
        "Thank you," the {baby} said {:manner}. "Are you not afraid of {fear}?"
        | The {baby} was <very> {:joy} and got {.a:food} and some {:drink}.
        "Not any more," {hero} said {:manner}. "{friend} helped me."
        | <soon>, {hero} told {friend} about the {baby} and the {colour} {thing}.
        | Now {hero} is (not|never) afraid of {fear}, and {friend} is <very> {:joy}.
    """,
    "rescue": """
        There was a (noise|cry) {found:spot} one {:weather} {:time}. It was {.a:look} {baby:baby}!
        | Who sat {found:spot} and cried {:manner} on {.a:weather} {:time}? It was {baby.a:baby}!
        "I lost my mother," it said {:manner}. "We were <near> {goal:site}."
        | "Where is your mother?" {hero} asked {:manner}. "She is <near> {goal:site}."
        The {baby} was <very> {:mood}, so {hero} gave it {food.a:food}.
        | {hero} gave the {baby} {food.a:food} and some {:drink} and talked {:manner} about {:topic}.
        {hero.He} put it in {look.a:look} {colour:colour} {box:box} and <ran> off.
        | {hero.He} (took|found|got) {look.a:look} {colour:colour} {box:box} and put the {baby} in it {:manner}.
        First they met {.a:look} {animal:animal}. "Go and ask <friend>," it said {:manner}.
        | By {.a:look} {:tree} tree, {animal.a:animal} told them {:manner} to ask <friend>.
        {hero} <ran> to {friend}. "Did the {animal} send you?" {friend.he} asked {:manner}.
        | {friend} looked into the {colour} {box}. "What {.a:look} {baby}!" {friend.he} said {:manner}.
        "I know the way to {goal}," {friend} said {:manner} and took the {look} {box}.
        | {friend} <ran> with {hero.him} to {goal}, and they sang {:manner} about {:topic}.
        <near_cap> {goal}, the mother of the {baby} was waiting. She was <very> {:joy}.
        | <soon>, they came to {goal}. "My little {baby}!" the mother <said> {:manner}.
        "{hero} found me {found}," said the {baby}, "and gave me {food.a}."
        | The {baby} jumped out of the {box} and <ran> to its mother {:manner}.
        She gave {.a:colour} {thing:toy} to {hero} and {food2.a:food} to {friend}.
        | "I thank you, {hero}," she said {:manner} and gave {hero.him} {.a:colour} {thing:toy}.
        On the way home, {friend} (talked|thought|sang) about {:topic}, and {hero} played with the {thing}.
        | "Keep the {box}," {hero} told the {baby} {:manner} and <ran> home with the {thing}.
    """,
    "near_cap": "(By|Near|Close to|Not far from)",
    "treasure": """
        "I found {.a:look} map!" <said> {hero.his} friend <friend> one {:weather} {:time}.
        | A letter from <friend> came to the {home} on {.a:weather} {:time}.
        "(Look|Go and look|Search) {first:spot} and take what is {colour:colour}," it said.
        | It said, "There is (something|a thing) {colour:colour} {first:spot}."
        So they looked {:manner} {first} and (found|saw|got) {look.a:look} {colour} {thing:toy}.
        | {first.A} was {look.a:look} {colour} {thing:toy}, next to {.a:look} {:furniture}.
        On it was written, "Show the {thing} to the {animal:animal} <near> {goal:site}."
        | "Now we must bring it to the {animal:animal} <near> {goal:site}," {friend} said {:manner}.
        They <ran> to {goal}, and {carrier:hero/friend} carried the {colour} {thing} {:manner}.
        | {carrier:hero/friend} put the {look} {thing} in {.a:look} {:box}, and they <ran> to {goal}.
        The {animal} was <very> {:mood} and (ate|wanted|dreamed of) {.a:food}, but {carrier} woke it up.
        | "Is that the {colour} {thing}, {carrier}?" the {animal} asked {:manner}.
        "Good. Now look for {box.a:box} {second:spot}," it said {:manner}.
        | It took the {look} {thing} and told them {:manner} of {box.a:box} {second:spot}.
        {hero} and {friend} thanked the {animal} and <ran> back to the {home}.
        |
        <soon>, they found the {box} {second}, (under|behind|next to) {.a:look} {:furniture}.
        | {second.A} was the {box}, <very> {:look} and full of {.s:food}.
        In it were {:number} {:colour} coins and {:number} {:colour} {.s:toy}.
        | {finder:friend/hero} opened it {:manner}. In it were {:number} {.s:toy} and {:number} {.s:food}.
        They (shared|divided) everything and gave {.a:food} to the {animal} <near> {goal}.
        | "It was the {look} {thing} that helped us," {hero} told {friend} {:manner}.
        | {hero} and {friend} were <very> {:joy} and hid the {box} {second} again.
    """,
    "market": """
        Then came {.a:weather} {:time} when {hero.his} {adult} was (ill|weak|tired) and <very> hungry.
        | All were <very> hungry one {:weather} {:time}, and {hero.his} {adult} wanted to (cook|bake).
        "(Please|Go and|Could you) get me {a.a:food}, {b.a:food} and {c.a:food}," {adult.he} said {:manner}.
        | So {hero} was to get {a.a:food}, {b.a:food} and {c.a:food} for {adult.him}.
        {hero.He} took {look.a:look} {colour:colour} {box:box} and <ran> to the shop <near> {goal:site}.
        | {hero} (took|found|got) {look.a:look} {colour:colour} {box:box} {:spot} and <ran> off.
        The shop belonged to <friend>, who was <very> {:trait}. "What do you need?" {friend.he} asked {:manner}.
        | In the shop, {hero.he} met <friend>, who asked {hero.him} {:manner} what {hero.he} needed.
        "I need {a.a}, {b.a} and {c.a} for my {adult}," {hero} said {:manner}.
        | "{a.A}, {b.a} and {c.a}," {hero} said {:manner}, "and (some|a glass of|a cup of) {:drink}."
        {friend} (put|packed|threw) everything in the {colour} {box} and talked about {:topic}.
        | {friend} (helped|let) {hero.him} carry the {look} {box} to the door.
        On the way home, {hero.he} saw {.a:look} {animal:animal} {found:spot}. It was <very> {:mood}.
        | {found.A:spot} was {.a:look} {animal:animal}. "I am <very> hungry," it said {:manner}.
        "You can have the {gift:a/b/c}," {hero} said {:manner}.
        | {hero} opened the {box} {:manner} and gave it the {gift:a/b/c}.
        The {animal} ate it {:manner} and was <very> {:joy}.
        | "Thank you," it said {:manner}. "I love {gift.s} more than {.s:food}."
        "Where is the {gift}?" {hero.his} {adult} asked {:manner} when {hero.he} was back at the {home}.
        | At home, {hero.his} {adult} opened the {colour} {box}. "There is no {gift}!"
        "I gave it to {animal.a} {found}," {hero} said {:manner}.
        | {hero} told {adult.him} {:manner} about the {animal}.
        {adult.He} was not {:mood}. "That was good of you," {adult.he} said {:manner}.
        | <soon>, {friend} came with {:number} {gift.s} more and some {:drink}.
    """,
    "present": """
        It was the birthday of {hero.his} friend <friend>, who was <very> {:trait}.
        | {hero.His} friend <friend> was going to be {:number} years old.
        "I wish I had {colour.a:colour} {thing:toy}," {friend} had said {:manner}.
        | {friend} had always (wanted|dreamed of) {colour.a:colour} {thing:toy}.
        {hero} (wanted|had) to make one of {stuff:stuff} and went to look for some {spot:spot}.
        | "I can make one of {stuff:stuff}," {hero.he} thought. There was {:number} days' time.
        {hero.His} {adult} gave {hero.him} {tool:tool} and some {colour} paint.
        | {hero.He} (took|found|got) {tool:tool} {:spot} and {colour} paint {:spot}.
        {hero} worked {:manner} all {:time} long, and then {hero.he} had {look.a:look} {thing}.
        | It took {:number} days, but then {hero.he} had {look.a:look} {colour} {thing}.
        {hero.He} hid it {hidden:spot}, (under|behind|next to) {.a:look} {:furniture}.
        | "{friend} must not see it," {hero.he} said {:manner} and hid it {hidden:spot}.
        <soon>, {animal.a:animal} saw it and <ran> {:manner} away with it.
        | But {hidden}, {.a:look} {animal:animal} found it and played with it {:manner}.
        "The {thing} is for {friend}!" <said> {hero} {:manner}.
        | "Please give me the {colour} {thing}," {hero} said {:manner} to the {animal}.
        "I am sorry," the {animal} said {:manner}. "I was only <very> {:mood}."
        |
        So {hero} gave the {animal} {.a:food} and got the {look} {thing} back.
        | "You can have {.a:food} and some {:drink}," said {hero}, and it let the {thing} go.
        At the party, {friend} got {:number} {.s:food} and {.a:look} {:furniture}, but no {thing}.
        | {friend} was <very> {:mood}, for nobody had thought of {colour.a} {thing}.
        "Close your eyes, {friend}," {hero} said {:manner} and gave {friend.him} the {thing}.
        | "I made it of {stuff}, with {tool}," {hero} told {friend} {:manner}.
        {friend} was <very> {:joy}. "Just what I wanted, {colour.a} {thing}!" {friend.he} said {:manner}.
        | {friend} took the {look} {colour} {thing} and <ran> around with it {:manner}.
    """,
}
