"""Exchanges about facts: the tables, the definitions and the hand-written ones."""

from asking import plural, user_line
from exchange import fact, kind
from grammar import asks, load_exchanges, load_pairs, write
from stories import invented_word

TABLES = {block["name"]: (block["weight"], block["U"], block["A"]) for block in load_exchanges("questions.txt")}
CLOSINGS = (
    "Do you want to know more?",
    "That is one of the things I know.",
    "I hope that helps.",
    "Ask me another one!",
    "Shall I tell you a story?",
)
MORE = ("", "", "", "") + CLOSINGS
UNCOUNTED = set("Monday Sunday May July France Japan Brazil Paris London Tokyo red blue green Mars Jupiter".split())


def table_exchange(rng, name):
    """Ask one row of a table."""
    _, questions, answers = TABLES[name]
    key, value = rng.choice(load_pairs("tables.txt")[name.removesuffix("_reverse")])
    if name == "kinds" and key not in UNCOUNTED:
        key = f"a {key}"
    context = {"k": key, "v": value, "ks": plural(key), "K": key[0].upper() + key[1:]}
    return fact(
        rng, user_line(rng, rng.choice(questions), context), write(rng.choice(answers), rng, context), rng.choice(MORE)
    )


@kind(26)
def tables(rng, memory):
    names = list(TABLES)
    return table_exchange(rng, rng.choices(names, [TABLES[name][0] for name in names])[0])


@kind(1.5)
def unknown_capitals(rng, memory):
    country = " ".join(invented_word(rng).capitalize() for _ in range(rng.choice((1, 1, 2))))
    asked = user_line(rng, rng.choice(TABLES["capitals"][1]), {"k": country})
    return fact(
        rng,
        asked,
        f"I do not know the capital of {country}.",
        rng.choice(("", "Is that a real country?", "Sorry!", "I know only some capitals.")),
    )


@kind(10)
def reasons(rng, memory):
    """The hand-written facts."""
    block = rng.choice(load_exchanges("facts.txt"))
    return fact(rng, user_line(rng, rng.choice(block["U"]), {}), rng.choice(block["A"]), rng.choice(MORE))


@kind(14)
def definitions(rng, memory):
    thing, meaning = rng.choice(load_pairs("things.txt")["things"])
    bare = thing.split(" ", 1)[1] if thing.startswith(("a ", "an ")) else thing
    many = plural(bare) if bare != thing else bare
    context = {"a": thing, "bare": bare, "many": many, "the": thing if thing == bare else f"the {bare}"}
    asked = user_line(rng, rng.choice(asks("definition_ask")), context)
    first = thing[0].upper() + thing[1:]
    answer = f"{first} is {meaning}."
    reply = fact(rng, asked, answer, rng.choice(MORE + ("Shall I tell you a story about it?",)))
    return reply._replace(about={"Y": thing})
