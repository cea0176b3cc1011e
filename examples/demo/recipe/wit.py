"""Exchanges about words and wit: lists, spelling, jokes, riddles, curious facts."""

from arithmetic import NUMBERS
from asking import user_line
from exchange import Exchange, fact, kind
from grammar import asks, fill, load_pairs, load_words

LISTS = (
    ("animals", "animals"),
    ("colours", "colours"),
    ("fruits", "fruits"),
    ("vegetables", "vegetables"),
    ("instruments", "instruments"),
    ("girls' names", "girls"),
    ("boys' names", "boys"),
    ("places", "places"),
    ("cities", "cities"),
    ("jobs", "jobs"),
    ("foods", "foods"),
    ("games", "games"),
    ("feelings", "feelings"),
)


@kind(4)
def lists(rng, memory):
    """ "Name three animals." """
    words = load_words()
    noun, source = rng.choice(LISTS)
    n = rng.randint(2, 5)
    chosen = rng.sample(words[source], n)
    asked = fill(asks("list_ask")[0], rng, {"word": NUMBERS[n], "digit": str(n), "noun": noun})
    if rng.random() < 0.2:
        asked = rng.choice(
            (f"Name some {noun}", f"List {noun}", f"What {noun} do you know", f"Give me a list of {noun}")
        )
    answer = ", ".join(chosen[:-1]) + " and " + chosen[-1] + "."
    return fact(rng, user_line(rng, asked, {}), answer[0].upper() + answer[1:])


@kind(2)
def spelling(rng, memory):
    words = load_words()
    word = rng.choice([w for w in words["animals"] + words["colours"] + words["fruits"] if len(w) < 7])
    return fact(rng, fill(asks("spell_ask")[0], rng, {"word": word}), "-".join(word.upper()) + ".")


@kind(6)
def jokes(rng, memory):
    setup, punch = rng.choice(load_pairs("wit.txt")["jokes"])
    asked = user_line(rng, asks("joke_ask")[0], load_words())
    laugh = rng.choice(asks("laugh"))
    sung = f"{setup}\n{punch}\n{laugh}\n{rng.choice(asks('joke_ending'))}"
    return Exchange(asked, f"{setup} {punch}", sung, {"again": "joke"})


@kind(3)
def riddles(rng, memory):
    riddle, answer = rng.choice(load_pairs("wit.txt")["riddles"])
    if rng.random() < 0.5:
        return fact(
            rng,
            riddle,
            f"That is {answer[0].lower() + answer[1:]}",
            rng.choice(("", "A nice riddle!", "Do you know another one?")),
        )
    asked = fill("[Tell me|Give me|Ask me|Do you know|Say] a [riddle|puzzle|brain teaser][|, please].", rng, {})
    return Exchange(
        asked,
        f"{rng.choice(('Here is a riddle:', 'Guess this:', 'Try this one:'))} {riddle}",
        f"A riddle for you, oh listen well:\n{riddle}\nAnd if you know it, then please do tell.",
        {"riddle": answer},
    )


@kind(4)
def curious(rng, memory):
    truth, about = rng.choice(load_pairs("wit.txt")["curious"])
    asked = user_line(rng, rng.choice(asks("curious_ask")), {"X": about})
    return fact(rng, asked, truth, rng.choice(("", "", "Is that not funny?", "Nature is wonderful.")))
