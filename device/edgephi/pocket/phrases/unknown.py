"""Phrasings that must be answered with ``unknown``: chat, facts, other devices, other languages."""

from __future__ import annotations

from collections.abc import Mapping

from edgephi.pocket.phrases.template import Group, lines, words

# Words for the slots of this file alone.
FILL: Mapping[str, tuple[str, ...]] = {
    "topic": words(
        "weather|history|music|football|politics|science|art|space|dinosaurs|cooking|poetry|math|physics|cars|"
        "dogs|cats|"
        "movies|books|philosophy|economics|chess|the moon|the sun|the ocean|volcanoes|robots|computers|coffee|tea|"
        "fish|horses|trees|gardening|bread|cheese|money|dreams|love|time|light|electricity|batteries|windows|doors|keys"
    ),
    "country": words(
        "france|germany|spain|italy|japan|china|india|brazil|canada|egypt|kenya|peru|norway|poland|greece|turkey|"
        "australia|mexico|sweden|portugal"
    ),
    "person": words(
        "einstein|newton|shakespeare|mozart|napoleon|the president|the king|my mother|my brother|anna|john|peter|maria|"
        "my boss|the doctor|picasso|the pope|your maker|grandma|the neighbor"
    ),
    "thing": words(
        "telephone|light bulb|airplane|wheel|internet|computer|car|train|radio|television|compass|telescope|bicycle|"
        "lamp|door|lock|window|vacuum cleaner|battery|thermostat|robot|clock|curtain|camera|ship|bridge|piano"
    ),
    "food": words(
        "pizza|pasta|soup|a sandwich|sushi|a cake|bread|salad|rice|an omelette|pancakes|a burger|cookies|"
        "curry|tacos|steak"
    ),
    "animal": words("dog|cat|horse|elephant|lion|whale|bird|snake|bear|mouse|frog|duck|cow|sheep|tiger|fox"),
    "other": words(
        "tv|television|radio|music|oven|dishwasher|washing machine|coffee machine|kettle|alarm|computer|"
        "printer|speaker|"
        "shower|sprinkler|toaster|stove|camera|microwave|dryer|projector|fountain|pool pump|engine|car|volume|wifi"
    ),
    "feeling": words("tired|happy|sad|bored|hungry|thirsty|angry|lonely|excited|sick|late|busy|confused|worried"),
    "city": words("paris|london|berlin|tokyo|rome|madrid|new york|chicago|boston|vienna|oslo|cairo|sydney|dublin"),
    "odd": words(
        "guitar|ladder|umbrella|suitcase|candle|vase|helmet|laptop|tent|rope|mirror|violin|statue|rug|painting|bucket|"
        "anchor|saddle|basketball hoop|motorbike|tractor|piano|chandelier|trophy|drum|scarf|jacket|necklace"
    ),
    "far": words(
        "moon|supermarket|school|airport|beach|church|castle|cave|library|museum|station|hospital|forest|zoo|bank|"
        "post office|swimming pool|gym|market|jungle|stadium|casino"
    ),
    "number": words(
        "two|three|five|seven|ten|twelve|twenty|a hundred|7|12|15|33|48|99|144|250|1000|3.14|thirty six|nine"
    ),
}

_CHAT = lines("""
how are you [today]
who are you
what is your name
tell me a joke
tell me a story about {topic}
(hello|hi|hey|good evening|good afternoon) [there]
thank you [very much]
thanks [a lot]
you are (great|stupid|funny|nice|useless|smart)
i love you
do you like {topic}
what do you think about {topic}
i am [so|very] {feeling}
are you {feeling}
sing a song [about {topic}]
what can you do
how old are you
where are you from
goodbye
see you (later|tomorrow)
never mind
sorry
yes
no
okay
maybe later
what
huh
hm
i don't know
what a (lovely|terrible|long) day
let's talk about {topic}
my {animal} is {feeling}
i had {food} for (lunch|breakfast)
do you want {food}
are you alive
can you hear me
can you help me
help
i need help with {topic}
be quiet
shut up
that was (good|bad|funny|wrong)
i like {topic}
i hate {topic}
he is {feeling} and she is {feeling}
{person} is coming (today|tomorrow|later)
it is raining
nice to meet you
what did you say
say that again
""")

_FACTS = lines("""
what is the capital of {country}
who is {person}
who invented the {thing}
when was the {thing} invented
how does a {thing} work
what is a {thing}
what is the weather [like] [today|tomorrow]
will it rain (today|tomorrow)
what time is it
what day is it [today]
how far is {city} from {city}
how many people live in {country}
what is {number} plus {number}
what is {number} times {number}
how much is {number} minus {number}
divide {number} by {number}
tell me about {topic}
explain {topic} [to me]
why is the sky blue
why do {animal}s sleep
how tall is {person}
how old is {person}
when was {person} born
where does {person} live
what does a {animal} eat
how fast is a {animal}
write a (poem|letter|story|song) about {topic}
translate {thing} (to|into) (french|german|spanish)
how do i (cook|make|bake) {food}
give me a recipe for {food}
what is the (population|language|flag) of {country}
what is the temperature (in {city}|of the sun|outside)
is it cold in {country}
what color is (the sky|a {animal}|blood|grass)
who won the (game|election|match|race)
how do you spell {thing}
define {topic}
what is the meaning of {topic}
how many legs does a {animal} have
which is bigger a {animal} or a {animal}
is {topic} (dangerous|expensive|important|healthy)
how much does a {thing} cost
what is the best {thing}
summarize {topic}
what is the square root of {number}
convert {number} dollars to euros
how long does it take to get to {city}
what is the news [today]
{number} times {number}
{number} plus {number}
{number} divided by {number}
how many {thing}s are there
how many {animal}s are there [in the world]
how many (stars|countries|oceans|continents) are there
write (me|us) (an essay|a poem|a speech|a text) about {topic}
write me something about {thing}s
tell me the history of the {thing}
who built the {thing}
""")

_OTHER = lines("""
turn on the {other}
turn off the {other}
turn the {other} (on|off)
switch (on|off) the {other}
turn (up|down) the {other}
start the {other}
play [some] (music|jazz|a song|the radio)
play the next song
pause the music
set an alarm for {number} [o'clock]
remind me to call {person}
remind me about {topic}
call {person}
send a message to {person}
send an email to {person}
order {food}
buy {food}
book a (flight|hotel|table) [in {city}]
add {food} to the shopping list
what is on my (calendar|list)
open the (app|browser|file|website|email)
show me pictures of {animal}s
take a (photo|picture|video)
search for {topic}
google {topic}
make (me|us) {food}
cook {food}
feed the {animal}
wash the {animal}
walk the {animal}
kick {person}
drive me to {city}
go to {city}
bring me {food}
pick up {person}
put the {animal} in the car
water the (plants|flowers)
find my (wallet|glasses|car|{animal})
paint the (wall|house|fence)
is the {other} on
is the {other} off
lock the (computer|screen|car)
close the (browser|app|book|meeting)
how much battery does my (laptop|car|watch) have
set the {other} to {number}
set the volume to {number}
wash the (dishes|car|clothes)
do the (laundry|dishes|homework)
jump
dance [for me]
fly
climb the tree
smile
throw a party for {person}
pick up the {animal}
bring me the {odd}
pick up the {odd}
put the {odd} on the table
fetch the {odd}
get me the {odd}
go to the {far}
drive to the {far}
take me to the {far}
vacuum the {far}
clean the {odd}
open the {other}
close the {other}
unlock the {odd}
lock the {odd}
grab the {odd}
bring the {odd} to the kitchen
where is the {odd}
turn on the light in the {far}
what is in the {far}
""")

_FOREIGN = lines("""
schalte das licht (ein|aus)
mach das licht (an|aus)
wie geht es dir
guten (morgen|tag|abend)
wie ist das wetter heute
fahr nach vorne
ich habe hunger
was ist das
danke schön
enciende la luz
apaga las luces
qué tiempo hace hoy
buenos días
cómo estás
abre la puerta
quiero comer algo
muchas gracias
allume la lumière
éteins la lumière
bonjour comment ça va
ferme la porte
quel temps fait-il
merci beaucoup
je ne comprends pas
accendi la luce
spegni le luci
come stai
che ore sono
grazie mille
apri la finestra
tänd lampan
zapal światło
включи свет
привет как дела
打开灯
今天天气怎么样
電気をつけて
불 켜 줘
شغل الضوء
kaiso pa nalu
salut ça va
vai para a frente
ligue a luz
doe het licht aan
""")

_FRAGMENTS = lines("""
the
and then
but why
please
the {thing}
{topic}
a {animal} and a {animal}
{number}
{number} {number}
in the {thing}
my {thing}
because of {topic}
if only
{person}
{topic} and {topic}
kitchen
the bedroom
percent
degrees
on
off
to the
turn
set
turn the
the light
door
lamp
temperature of {topic}
red
up and down
left or right
""")

GROUPS = (
    Group("unknown", _CHAT, weight=1.2),
    Group("unknown", _FACTS, weight=1.5),
    Group("unknown", _OTHER, weight=1.5),
    Group("unknown", _FOREIGN, weight=0.6),
    Group("unknown", _FRAGMENTS, weight=0.6),
)
