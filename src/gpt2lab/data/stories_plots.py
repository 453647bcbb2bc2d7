"""The plots of the stories, in the notation of `stories_notation.py`: one rule a plot, and the rules that they share.

Slots that every plot fills, so that every ending can speak of them: ``hero kind trait adult home site love friend``.
"""

from __future__ import annotations

PLOTS: dict[str, str] = {
    "story": """
        <opening>
        <home>
        <love>

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
    # ------------------------------------------------------------------------------------------------ what plots share
    "girl": "{kind:girl_kind} (named|called) {hero:girl}",
    "boy": "{kind:boy_kind} (named|called) {hero:boy}",
    "critter": "{kind:critter} (named|called) ({hero:girl}|{hero:boy})",
    "grown_up": "({adult:female}|{adult:male})",
    "friend": "({friend:girl}|{friend:boy})",
    "new_thing": "{look.a:look} {colour:colour} {thing:toy}",
    "the_thing": "the ({colour} {thing}|{look} {thing}|{thing})",
    "ran": "(ran|walked|went|hurried|raced)",
    "said": "(said|cried|called|shouted)",
    "opening": """
        (Once upon a time|Long ago|Many years ago|Once), there (was|lived) {trait.a:trait} (<girl>|<boy>|<critter>).
        | This is (a|the) story (of|about) {trait.a:trait} (<girl>|<boy>|<critter>).
        | Have you heard (of|about) the {trait:trait} (<girl>|<boy>|<critter>)?
    """,
    "home": """
        {hero.He} lived with {hero.his} <grown_up> in {home.a:home} (by|near|close to) {site:site}.
        | {hero.His} home was {home.a:home} (by|near|close to) {site:site}, where {hero.he} lived with {hero.his} <grown_up>.
        | In {home.a:home} (by|near|close to) {site:site}, {hero.he} lived with {hero.his} <grown_up>.
    """,
    "love": """
        More than anything, {hero} loved {love.doing:deed}.
        | {hero} loved {love.doing:deed}, (rain or shine|every day|all year long|even in winter).
        | What {hero} liked best was {love.doing:deed}.
        | Every {:time}, {hero.he} {love.did:deed}.
    """,
    "ending": """
        From that (day|time) on, {hero} and {friend} {love.did} together.
        | After that, {friend} often came to the {home}, and they {love.did} together.
        | The next {:time}, {hero} and {friend} {love.did} by {site}.
        | In the evening, {hero} went home to the {home} and told {hero.his} {adult} all about {friend}.
        Everyone by {site} said that {hero} was a very {trait} {kind}.
        | And {hero.his} {adult} was proud of such {trait.a} {kind}.
        | "You are {trait.a} {kind}," said {hero.his} {adult}, and {hero} smiled.
        | And if you go to {site}, you may still meet the {trait} {kind} there.
        | That night, the {trait} {kind} slept well.
    """,
    # ------------------------------------------------------------------------------------------------------- the plots
    "lost": """
        One {time:time}, {hero.his} {adult} gave {hero.him} <new_thing>.
        | On {hero.his} birthday, {hero.he} got <new_thing> from {hero.his} {adult}.
        | {hero.His} best toy was <new_thing>.
        {hero} took it everywhere.
        | {hero} played with it all day long.
        | {hero} never went to bed without it.
        | "I will always keep my {thing}," said {hero}.
        But one {weather:weather} {:time}, the {colour} {thing} was gone.
        | Then, one {weather:weather} {:time}, {hero} could not find {hero.his} {look} {thing}.
        {hero} looked {first:spot} and {second:spot}, but it was not there.
        | First {hero.he} looked {first:spot}. Then {hero.he} looked {second:spot}. No {thing}!
        | "Is it {first:spot}?" thought {hero}. It was not, and it was not {second:spot}.
        {hero.He} was so {mood:mood} that {hero.he} began to cry.
        | Poor {hero} felt very {mood:mood}.
        |
        {hero.His} friend <friend> heard it and came to help.
        | So {hero.he} <ran> to {hero.his} friend <friend> and asked for help.
        | Just then, <friend> came by.
        "What is wrong, {hero}?" asked {friend}. "I lost my {colour} {thing}," said {hero}.
        | "Have you seen my {look} {thing}?" asked {hero}. "It is {colour}." {friend} shook {friend.his} head.
        | "Did you look {first}?" asked {friend}. "Yes, and {second} too," said {hero}.
        They met {animal.a:animal} and asked it.
        | They asked {animal.a:animal} who lived by {site}.
        | Then {animal.a:animal} came along.
        "There is something {colour} {hidden:spot}," said the {animal}.
        | "I saw {look.a} {thing} {hidden:spot}," said the {animal}.
        | "Look {hidden:spot}," said the {animal}.
        {hero} and {friend} <ran> to see, and there was the {colour} {thing}!
        | The {animal} was right! <the_thing> was {hidden}.
        | So {friend} looked {hidden} and found <the_thing>.
        {hero} hugged {friend} and gave the {animal} {food.a:food}.
        | "Thank you, {friend}!" <said> {hero}. The {animal} got {food.a:food}.
        | {hero} was {joy:joy}. {hero.He} gave {food.a:food} to the {animal}.
        "You can play with my {thing} too," {hero} told {friend}.
        | Since then, {hero} keeps the {colour} {thing} {keep:spot}.
        | {hero} never left the {look} {thing} {hidden} again.
    """,
    "broken": """
        It was {weather.a:weather} {time:time}, and <friend> came to play.
        | {hero.His} best friend was <friend>, and they met on {weather.a:weather} {time:time}.
        They played with <new_thing> that belonged to {owner:hero/friend}.
        | {owner:hero/friend} had brought <new_thing>.
        | {owner:hero/friend} was very proud of <new_thing>.
        Then {breaker:hero/friend} dropped it, and the {colour} {thing} broke.
        | But {breaker:hero/friend} fell over it, and the {look} {thing} broke in two.
        | When nobody was looking, {breaker:hero/friend} threw it too high, and it fell down and broke.
        {breaker} was scared and hid the {thing} {hidden:spot}.
        | {breaker} put the pieces {hidden:spot}, because {breaker.he} was afraid.
        | Quickly, {breaker} hid it {hidden:spot} and said nothing.
        Soon {owner} came back. "Where is my {colour} {thing}?" {owner.he} asked.
        | "I cannot find my {look} {thing}," said {owner}.
        | {owner} wanted {owner.his} {colour} {thing} back.
        {breaker} looked at the floor.
        | {breaker} turned red.
        | {breaker} felt {mood:mood}.
        "I broke it," {breaker.he} said at last. "I am so sorry, {owner}. It is {hidden}."
        | "Look {hidden}," said {breaker}. "I broke your {thing}, {owner}. I am sorry."
        {owner} was {mood2:mood}, but not for long.
        | At first, {owner} was {mood2:mood} and did not say a word.
        | "Thank you for telling me, {breaker}," said {owner}.
        So they took the pieces to {hero.his} {adult}, who had {tool:tool}.
        | Then they asked {hero.his} {adult} for help. {adult.He} came with {tool:tool}.
        | They found {tool:tool} {place:spot} and showed it to {hero.his} {adult}.
        {breaker} held <the_thing>, and {hero.his} {adult} mended it with {tool}.
        | {hero.His} {adult} showed {breaker} how to mend it with {tool}.
        Soon <the_thing> was as good as new.
        | In the end, <the_thing> was even better than before.
        {owner} was {joy:joy} and hugged {breaker}.
        | {breaker} gave {owner} {food.a:food}, and {owner} was {joy:joy}.
        | They shared {food.a:food}, and {owner} let {breaker} play with the {thing} again.
    """,
    "errand": """
        One {time:time}, {hero} wanted to learn something new. "Can we {wish:deed}?" {hero.he} asked.
        | "I want to {wish:deed}," {hero} told {hero.his} {adult} one {time:time}.
        "Yes," said {hero.his} {adult}, "but first bring this {food:food} to <friend> by {goal:site}."
        | {hero.His} {adult} said, "Take this {food:food} to <friend>, who lives by {goal:site}. Then we will {wish}."
        So {hero} put the {food} in {look.a:look} {colour:colour} {box:box} and went off.
        | {hero} took {look.a:look} {colour:colour} {box:box} for the {food} and left the {home}.
        On the way, {hero.he} met {animal.a:animal}. "That {food} smells good," said the {animal}.
        | Soon {animal.a:animal} stopped {hero.him}. "What is in the {box}?" asked the {animal}.
        | By the road sat {animal.a:animal}. "Give me your {food}!" said the {animal}.
        "No, it is for {friend}," said {hero}.
        | "It is not mine," said {hero}. "I must bring it to {friend}."
        | But {hero} held the {colour} {box} tight and <ran> on.
        At last {hero.he} came to {goal}, and there was {friend}.
        | It was a long way to {goal}, but {hero} did not stop.
        | {friend} was waiting by {goal}.
        "This {food} is from my {adult}," said {hero}. {friend} was {joy:joy}.
        | {hero} opened the {look} {box}. "A {food} for me?" asked {friend}.
        | {friend} looked into the {colour} {box} and clapped {friend.his} hands.
        {friend.He} gave {hero} {thing.a:toy} to say thank you.
        | "Take this {thing:toy}," {friend.he} said. "It is for you, {hero}."
        On the way back, the {animal} was sad, so {hero} let it play with the {thing}.
        | {hero} met the {animal} again and showed it the {thing}.
        | When the {animal} saw the {thing}, it wanted to play too.
        When {hero} came home, {hero.his} {adult} kept {adult.his} word. They {wish.did} until it was dark.
        | Back at the {home}, {hero.his} {adult} asked, "Did {friend} like the {food}?" Then they {wish.did}.
        | "Now we can {wish}," said {hero.his} {adult}, and so they did.
    """,
    "quarrel": """
        {hero} often played with {hero.his} friend <friend>.
        | Next door lived <friend>, who was {hero.his} friend.
        One {weather:weather} {:time}, they found <new_thing> {found:spot}.
        | On {weather.a:weather} {:time}, they saw <new_thing> {found:spot}.
        "It is mine!" <said> {one:hero/friend}. "No, I saw the {thing} first!" <said> {other:hero/friend}.
        | {one:hero/friend} took the {thing}, but {other:hero/friend} wanted it too.
        | {one:hero/friend} pulled at the {thing}, and {other:hero/friend} pulled back.
        "Give me the {colour} {thing}, {other}!" said {one}. "Never!" said {other}.
        | "You always get everything, {one}," said {other}.
        | Soon {other} was {mood:mood}, and {one} was {mood2:mood}.
        {hero.His} {adult} heard the noise and came out of the {home}.
        | Then {hero.his} {adult} came. "Why are you so loud?" {adult.he} asked.
        | "Stop!" said {hero.his} {adult}. "Who had it first?"
        "Both of us found it {found}," said {other}.
        | "{one} does not want to share the {look} {thing}," said {other}.
        | {one} and {other} looked at the ground.
        "Then take turns," said {hero.his} {adult}. "{winner:friend/hero} can have the {thing} until noon, \
        and then it is for {loser:friend/hero}."
        | {adult.He} threw a coin, and {winner:friend/hero} won. So {loser:friend/hero} had to wait.
        | "{winner:friend/hero} may play first," {adult.he} said, "and {loser:friend/hero} gets {food.a:food} now."
        So {winner} played with <the_thing>, and {loser} watched.
        | {winner} took <the_thing> and ran around the {home}.
        After a while, {winner} felt bad. "Come, {loser}, it is more fun with two," {winner.he} said.
        | "Your turn, {loser}," said {winner} and gave {loser.him} the {thing}.
        | Then {winner} brought the {colour} {thing} to {loser}.
        {loser} was {joy:joy}, and they played until it was dark.
        | So {hero} and {friend} played together with the {look} {colour} {thing}.
        In the end, they put the {thing} back {found}, so that both could use it.
        | Now the {thing} belongs to {hero} and {friend}.
        | "I am sorry, {one}," said {other}. "I am sorry too," said {one}.
    """,
    "courage": """
        But {hero} was afraid of {fear:fear}.
        | There was one thing that {hero} did not like. It was {fear:fear}.
        | {hero} had a secret: {hero.he} was afraid of {fear:fear}.
        One {time:time}, {hero.his} friend <friend> gave {hero.him} <new_thing>.
        | {hero.He} told it to <friend>, who went away and came back with <new_thing>.
        "Hold this {thing} when you are afraid of {fear}," said {friend}.
        | "This {colour} {thing} will help you," said {friend}. "I was afraid of {fear} too."
        {hero} put the {thing} {keep:spot}.
        | {hero} kept it {keep:spot} and did not think of it for a long time.
        Then, one {weather:weather} {:time}, {baby.a:baby} got stuck {stuck:spot}.
        | One {weather:weather} {:time}, {hero.he} heard a cry. It was {baby.a:baby} that was stuck {stuck:spot}.
        "Help me!" cried the {baby}. "I cannot get out!"
        | The {baby} was small and very {mood:mood}.
        {hero} wanted to help, but {hero.he} thought of {fear}.
        | "What if I see {fear} there?" thought {hero}.
        | {hero.His} legs shook, for {hero.he} thought of {fear}.
        Then {hero.he} remembered what {friend} had said.
        | Then {hero.he} thought of {friend}.
        {hero.He} took the {colour} {thing} from where it was, {keep}, and held it tight.
        | {hero.He} looked {keep} and got the {look} {thing}.
        | The {look} {colour} {thing} was still {keep}, and {hero.he} took it.
        Step by step, {hero} <ran> to the {baby} and pulled it out.
        | {hero} closed {hero.his} eyes, went on, and lifted the {baby} up.
        "Thank you," said the {baby}. "Are you not afraid of {fear}?"
        | The {baby} was {joy:joy} and licked {hero.his} nose.
        "Not any more," said {hero}.
        | "Only a little," said {hero} and showed it the {thing}.
        | "My friend {friend} helped me," said {hero}.
        Later, {hero} told {friend} how the {thing} had helped.
        | When {friend} heard of the {baby}, {friend.he} was {joy2:joy}.
        | {hero} gave the {colour} {thing} back to {friend}. {hero.He} did not need it now.
    """,
    "rescue": """
        There was a noise {found:spot} one {weather:weather} {time:time}. {hero} went to look and found {baby.a:baby}.
        | Who sat {found:spot} and cried on {weather.a:weather} {time:time}? It was {baby.a:baby}!
        "I lost my mother," said the {baby}. "We were by {goal:site}."
        | "Where is your mother?" asked {hero}. "By {goal:site}," said the {baby}, "but I do not know the way."
        The {baby} was {mood:mood}, so {hero} gave it {food.a:food}.
        | {hero} gave the {baby} {food.a:food} and dried its tears.
        {hero.He} put the {baby} in {look.a:look} {colour:colour} {box:box} and left.
        | {hero.He} took {look.a:look} {colour:colour} {box:box}, put the {baby} in it, and set off.
        First they met {animal.a:animal}. "Do you know the way to {goal}?" asked {hero}.
        | Soon they saw {animal.a:animal}. "We are looking for {goal}," {hero} told it.
        "No," said the {animal}, "but ask <friend>. {friend.He} lives by {middle:site}."
        | "Go to {middle:site}," said the {animal}, "and ask for <friend>."
        So {hero} carried the {colour} {box} to {middle}.
        | The {look} {box} was heavy, but {hero} carried it to {middle}.
        | "Are we there yet?" asked the {baby} in the {box}. "First we go to {middle}," said {hero}.
        There they met {friend}. "Did the {animal} send you?" {friend.he} asked.
        | {friend} was at home and looked into the {colour} {box}. "What a sweet {baby}!" {friend.he} said.
        "Come with me, I know the way to {goal}," said {friend}.
        | {friend} took {hero.his} hand and showed {hero.him} the way to {goal}.
        When they got to {goal}, the mother of the {baby} was there.
        | By {goal}, the mother was waiting. "My little {baby}!" she said.
        She was {joy:joy}. "How can I thank you, {hero}?" she asked.
        | The {baby} jumped out of the {box} and ran to its mother.
        | "{hero} found me {found}," said the {baby}, "and gave me {food.a}."
        She gave {thing.a:toy} to {hero} and {food2.a:food} to {friend}.
        | {hero} got {thing.a:toy}, and {friend} got {food2.a:food}.
        On the way home, {hero} and {friend} shared the {food2} and played with the {thing}.
        | "You can keep the {box}," {hero} told the {baby}, and then {hero.he} went home with the {thing}.
        | {friend} ate the {food2}, and {hero} gave {hero.his} {thing} to the {animal}.
    """,
    "treasure": """
        "I found an old map!" <said> {hero.his} friend <friend> one {weather:weather} {time:time}.
        | A secret letter came to the {home} on {weather.a:weather} {time:time}. It was from <friend>.
        "Look {first:spot}," it said, "and take what is {colour:colour}."
        | It said, "There is something {colour:colour} {first:spot}. It will help you."
        {hero} and {friend} looked {first} and found {look.a:look} {colour} {thing:toy}.
        | {friend} looked {first}. There was {look.a:look} {colour} {thing:toy}!
        | "I have it!" <said> {hero}. It was {look.a:look} {colour} {thing:toy}.
        In the {thing} was another note. "Bring the {thing} to the {animal:animal} by {goal:site}," it said.
        | "Now show the {thing} to the {animal:animal} by {goal:site}," {friend} read.
        So they <ran> to {goal}, and {carrier:hero/friend} carried the {colour} {thing}.
        | {carrier:hero/friend} took the {look} {thing}, and they <ran> to {goal}.
        The {animal} was asleep, but {carrier} woke it up.
        | "Is that the {colour} {thing}?" asked the {animal}. "Yes," said {carrier}.
        | The {animal} looked at {carrier} and the {look} {thing} for a long time.
        "Give it to me, {carrier}, and I will tell you where the treasure is," it said.
        | "Good," said the {animal}. "I was waiting for that {thing}."
        "Look {second:spot}. There is {box.a:box}."
        | "You will find {box.a:box} {second:spot}."
        {hero} and {friend} thanked the {animal} and <ran> back to the {home}.
        | "Thank you!" <said> {friend}, and they <ran> back from {goal}.
        The {box} was really {second}.
        | {hero} looked {second}, and there was the {box}.
        | They looked {second} and pulled out the {box}.
        In it were {prize.a:toy} and {food.a:food}.
        | {finder:friend/hero} opened it and saw {prize.a:toy} and {food.a:food}.
        {hero} was {joy:joy} and took the {prize}, and {friend} ate the {food}.
        | {friend} wanted the {prize}, so {hero} got the {food}. Both were {joy:joy}.
        | They shared the {food} and played with the {prize} until it was dark.
        "It was good that you found the {thing}," {hero} told {friend}.
        | They put the {prize} back into the {box} and hid it {second} for other children.
        | Then they brought a piece of the {food} to the {animal} by {goal}.
    """,
    "market": """
        Then came {weather.a:weather} {time:time} when {hero.his} {adult} was ill.
        | All were hungry one {weather:weather} {time:time}, and {hero.his} {adult} wanted to cook something good.
        "Please get me {a.a:food}, {b.a:food} and {c.a:food}," said {hero.his} {adult}.
        | {hero.His} {adult} needed {a.a:food}, {b.a:food} and {c.a:food}, so {hero} went out.
        {hero.He} took {look.a:look} {colour:colour} {box:box} and said to {hero.himself}, "{a.A}, {b.a}, {c.a}."
        | "{a.A}, {b.a} and {c.a}," said {hero} and took {look.a:look} {colour:colour} {box:box}.
        In the shop, {hero.he} met <friend>. "What do you need?" {friend.he} asked.
        | The shop belonged to <friend>. "What can I do for you, {hero}?" {friend.he} asked.
        "I need {a.a}, {b.a} and {c.a} for my {adult}," said {hero}.
        | "My {adult} sent me for {a.a}, {b.a} and {c.a}," said {hero}.
        {friend} put everything in the {colour} {box}.
        | {friend} helped {hero.him} to carry the {look} {box}.
        On the way home, {hero.he} saw {animal.a:animal} {found:spot}. It was thin and {mood:mood}.
        | Outside, {animal.a:animal} was sitting {found:spot}. "I am so hungry," it said.
        "You can have the {gift:a/b/c}," said {hero}.
        | {hero} opened the {colour} {box} and gave it the {gift:a/b/c}.
        | {hero} thought for a while. Then {hero.he} gave the {gift:a/b/c} to the {animal}.
        The {animal} ate it all and was {joy:joy}.
        | "Thank you, {hero}," said the {animal}. "I love {gift.s}."
        At home, {hero.his} {adult} opened the {box}. "Where is the {gift}?" {adult.he} asked.
        | "You forgot the {gift}," said {hero.his} {adult} when {hero.he} was back at the {home}.
        "I gave it to {animal.a}," said {hero}. "It was sitting {found}."
        | "The {animal} {found} was so hungry," said {hero}.
        {hero.His} {adult} was not angry. "That was good of you," {adult.he} said.
        | Just then, {friend} came in with another {gift}. "I saw what you did," {friend.he} said.
        | "Then we will cook without it," said {hero.his} {adult}. "Go and ask {friend} to eat with us."
        So they all ate together, and even the {animal} got something.
        | It was the best meal that {hero} and {hero.his} {adult} ever had.
    """,
    "present": """
        It was the birthday of {hero.his} friend <friend>.
        | {hero.His} friend <friend> was going to have a birthday.
        "I wish I had {colour.a:colour} {thing:toy}," {friend} had said one {time:time}.
        | {friend} had always wanted {colour.a:colour} {thing:toy}.
        {hero} had no money, so {hero.he} wanted to make {thing.a} of {stuff:stuff}.
        | "I can make {thing.a} out of {stuff:stuff}," thought {hero}.
        The {stuff} was {spot:spot}.
        | {hero.He} found some {stuff} {spot:spot}.
        {hero.His} {adult} gave {hero.him} {tool:tool} and some {colour} paint.
        | "Can I have {tool:tool} and {colour} paint?" {hero.he} asked {hero.his} {adult}.
        {hero} worked the whole {:time}, and then the {look:look} {thing} was ready.
        | It took a long time, but then {hero.he} had {look.a:look} {colour} {thing}.
        {hero.He} hid it {hidden:spot}, so that {friend} would not see it.
        | "{friend} must not see it," said {hero} and put it {hidden:spot}.
        But when {hero.he} came back, {animal.a:animal} was playing with the {thing}.
        | But {animal.a:animal} saw it {hidden} and ran away with it.
        "Stop!" <said> {hero}. "The {thing} is for {friend}!"
        | "Please give me the {colour} {thing}," said {hero} to the {animal}.
        "I am sorry," said the {animal}. "I only wanted to play."
        | The {animal} was {mood:mood}. "Nobody ever gives me {thing.a}," it said.
        So {hero} gave the {animal} {food.a:food} and got the {look} {thing} back.
        | "You can have {food.a:food}," said {hero}, and the {animal} let the {thing} go.
        At the party, {friend} got many things, but no {thing}.
        | On the great day, {hero} went to {friend} by {goal:site}.
        | Then {friend} came to the {home}.
        "Close your eyes, {friend}," said {hero} and gave {friend.him} the {thing}.
        | "This is for you," said {hero}. "I made it of {stuff}."
        {friend} was {joy:joy}. "Just what I wanted, {colour.a} {thing}!" {friend.he} said.
        | "It is {colour}!" <said> {friend}. "You are the best, {hero}."
        | {friend} took the {look} {colour} {thing} and danced around.
        "May the {animal} play with it too?" asked {hero}.
        | Then they all ate {food2.a:food}, and the {animal} came too.
        | {hero} never told {friend} about the {animal}.
    """,
}
