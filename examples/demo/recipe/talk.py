"""Small talk, what the user tells, and what the model does not know."""

from functools import cache

from asking import any_noun, any_topic, plural, user_line
from exchange import Exchange, kind
from grammar import asks, fill, load_exchanges, load_pairs, load_words, write
from stories import invented_word, person_name
from styles import pirate, sing, verse


@kind(34)
def small_talk(rng, memory):
    blocks = load_exchanges("talk.txt")
    block = rng.choices(blocks, [block["weight"] for block in blocks])[0]
    slots = load_words() | {"invented": invented_word(rng)}
    user = user_line(rng, rng.choice(block["U"]), slots)
    return Exchange(user, write(rng.choice(block["A"]), rng, slots), fill(rng.choice(block["V"]), rng, slots))


def _bare(topic):
    return topic.removeprefix("a ").removeprefix("an ").removeprefix("the ")


@cache
def known_things():
    """What there is a definition of, in the singular and in the plural."""
    things = [_bare(thing) for thing, _ in load_pairs("things.txt")["things"]]
    return frozenset(things + [plural(thing) for thing in things])


@kind(22)
def unknown(rng, memory):
    topic = any_topic(rng)
    while _bare(topic) in known_things():
        topic = any_topic(rng)
    slots = {"X": topic, "Z": any_topic(rng)}
    user = user_line(rng, rng.choice(asks("unknown_ask")), slots)
    return Exchange(
        user, write(rng.choice(asks("unknown_say")), rng, slots), verse("unknown", rng, slots), {"Y": topic}
    )


@kind(9)
def plain_unknown(rng, memory):
    slots = load_words() | {"year": str(rng.randint(2, 2040))}
    user = user_line(rng, rng.choice(asks("plain_unknown_ask")), slots)
    return Exchange(user, write(rng.choice(asks("plain_unknown_say")), rng, slots), verse("unknown_plain", rng, slots))


@kind(10)
def told(rng, memory):
    """The user tells something; the answer takes it up."""
    words = load_words()
    ask, say, sung = rng.choice(list(zip(asks("told_ask"), asks("told_say"), asks("told_verse"))))
    animal = rng.choice(("cat", "dog", rng.choice(words["animals"])))
    slots = {
        "A": any_noun(rng) if rng.random() < 0.5 else animal,
        "Y": any_topic(rng),
        "J": rng.choice(words["jobs"]),
        "AN": animal,
        "C": rng.choice(words["cities"]) if rng.random() < 0.5 else invented_word(rng).capitalize(),
        "age": str(rng.randint(5, 90)),
        "P": rng.choice(words["places"]),
        "S": rng.choice(words["skills"]),
        "food": rng.choice(words["foods"]),
        "N": rng.choice(words["pets"]) if rng.random() < 0.5 else invented_word(rng).capitalize(),
    }
    about = {}
    if "{Y}" in say:
        about = {"Y": slots["Y"]}
    elif "{A}" in say:
        about = {"O": slots["A"]}
    elif "{N}" in say:
        about = {"N": slots["N"], "K": animal}
    return Exchange(
        user_line(rng, ask, slots), write(say, rng, slots), fill(sung.replace(" / ", "\n"), rng, slots), about
    )


@kind(6)
def my_name(rng, memory):
    name = person_name(rng, rng.choice(("he", "she")))
    memory["name"] = name
    slots = {"X": any_topic(rng), "age": str(rng.randint(4, 90)), "place": invented_word(rng).capitalize()}
    more = fill(asks("name_more")[0], rng, load_words() | slots)
    user = fill(asks("name_ask")[0], rng, {"name": name, "more": more})
    text = fill(asks("name_say")[0], rng, {"name": name})
    return Exchange(
        user[0].upper() + user[1:],
        text,
        f"Oh {name}, oh {name}, what a name to sing,\nas fresh as the very first day of the spring.",
    )


@kind(5)
def repeat(rng, memory):
    words = load_words()
    phrase = fill(rng.choice(asks("phrase")), rng, words | {"invented": invented_word(rng)})
    phrase = phrase[0].upper() + phrase[1:]
    roll = rng.random()
    if roll < 0.55:
        user = fill(f"[Say|Repeat|Repeat after me|Please say|Can you say|Write|Say this]: [|]{phrase}", rng, {})
        return Exchange(user, phrase + ".", sing(phrase + ".", rng))
    if roll < 0.8:
        user = fill(
            f"[Say|Write|Shout|Please write] [in capital letters|in capitals|in upper case|loudly]: {phrase}", rng, {}
        )
        return Exchange(user, phrase.upper() + "!", sing(phrase.upper() + "!", rng))
    user = fill(f"[Say|Write] [like a pirate|in pirate talk|as a pirate]: {phrase}", rng, {})
    return Exchange(user, pirate(phrase + ".", rng), sing(phrase + ".", rng))


@kind(3)
def pet_names(rng, memory):
    words = load_words()
    what = rng.choice(
        (
            "dog",
            "cat",
            rng.choice(words["animals"]),
            rng.choice(words["animals"]),
            "boat",
            "doll",
            "goldfish",
            "robot",
            "teddy bear",
        )
    )
    user = user_line(rng, asks("pet_ask")[0], {"what": what})
    name, other = rng.sample(words["pets"], 2)
    text = fill(
        rng.choice(
            (
                f"How about {name}? [That is a lovely name for a {what}.|I like that name.]",
                f"What about {name}, or maybe {other}?",
                f"I would say {name}.",
            )
        ),
        rng,
        {},
    )
    return Exchange(user, text, f"Call it {name}, so sweet and so small,\nand it will come running whenever you call.")
