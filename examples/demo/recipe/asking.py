"""How users write: many ways to ask, and the carelessness of real typing."""

import re

from grammar import asks, fill, load_words
from stories import invented_word

TAILS = (
    " please",
    ", please",
    " for me",
    " now",
    " then",
    ", thank you",
    ", thanks",
    " if you can",
    " again",
    " today",
)
QUESTION = re.compile(r"(what|which|who|how|why|where|when|is|are|do|does|can|at)\b", re.IGNORECASE)
SHORT_FORMS = (
    ("What is", "What's"),
    ("what is", "what's"),
    ("What is", "whats"),
    ("Who is", "Who's"),
    ("do not", "don't"),
    ("I am", "I'm"),
    ("cannot", "can't"),
    ("you are", "you're"),
    ("Where is", "Where's"),
    ("How is", "how's"),
    ("please", "pls"),
    ("you", "u"),
    ("colour", "color"),
    ("favourite", "favorite"),
    ("Tell me", "Gimme"),
)


INDIRECT = (
    (re.compile(r"Why (is|are) (the \w+|it|ice|we|there|\w+s) (.+)"), r"why \2 \1 \3"),
    (re.compile(r"(Why|How) (?:do|did) (.+)"), r"\1 \2"),
    (re.compile(r"(What|Who|Where) (is|are|was) (.+)"), r"\1 \3 \2"),
    (re.compile(r"(How) can I (.+)"), r"\1 I can \2"),
)


def indirect(rng, core):
    """ "Why is the sky blue?" as "Can you tell me why the sky is blue?" """
    bare = core.rstrip("?. ")
    for pattern, form in INDIRECT:
        if pattern.fullmatch(bare) and not re.search(r"[,.?]", bare):
            clause = pattern.sub(form, bare)
            return f"{rng.choice(asks('aside'))} {clause[0].lower()}{clause[1:]}" + ("?" if rng.random() < 0.5 else "")
    return core


def question(rng, core):
    """A bare question as a sentence of its own, perhaps with a lead or a tail."""
    text = core = indirect(rng, core) if rng.random() < 0.2 else core
    if rng.random() < 0.3:
        text = rng.choice(asks("lead")) + " " + core[0].lower() + core[1:]
    if rng.random() < 0.06:
        mark = text[-1] if text[-1] in "?.!" else ""
        text = text.rstrip("?.!") + rng.choice(TAILS) + mark
    return text


def mistype(text, rng):
    """One typing mistake: a letter dropped, doubled or swapped with the next."""
    places = [m.start() for m in re.finditer(r"(?<=[a-z])[a-z](?=[a-z])", text)]
    if not places:
        return text
    at = rng.choice(places)
    return rng.choice(
        (
            text[:at] + text[at + 1 :],
            text[:at] + text[at] + text[at:],
            text[:at] + text[at + 1] + text[at] + text[at + 2 :],
        )
    )


def as_typed(text, rng):
    """Make a user's message look typed: a word before or after, short forms, lower case, slips."""
    if len(text) > 8 and rng.random() < 0.12:
        text = f"{fill(rng.choice(asks('before')), rng, {'N': invented_word(rng).capitalize()})} {text}"
    if len(text) > 8 and rng.random() < 0.06:
        text = f"{text if text[-1] in '.?!' else text + '.'} {rng.choice(asks('after'))}"
    if rng.random() < 0.25:
        old, new = rng.choice(SHORT_FORMS)
        text = re.sub(rf"\b{old}\b", new, text)
    roll = rng.random()
    if roll < 0.22:
        text = text.lower()
    elif roll < 0.24:
        text = text.upper()
    if rng.random() < 0.25:
        text = text.rstrip("?.!")
    if rng.random() < 0.05:
        text = mistype(text, rng)
    return text or "?"


def user_line(rng, template, context):
    """Fill a question template and put a question mark where it is due."""
    text = re.sub(r" {2,}", " ", fill(template, rng, context)).replace(" .", ".").strip()
    text = text[0].upper() + text[1:]
    text = re.sub(r"\b([Aa]) (?=[aeiou](?!ni|se))", r"\1n ", text)
    if text[-1] not in "?.!)" and rng.random() < 0.7:
        text += "?" if QUESTION.match(text) else "."
    return text


def plural(noun):
    """The plural of an English noun, near enough."""
    irregular = {
        "mouse": "mice",
        "sheep": "sheep",
        "goose": "geese",
        "wolf": "wolves",
        "fish": "fish",
        "deer": "deer",
        "fisherman": "fishermen",
        "postman": "postmen",
        "snowman": "snowmen",
        "child": "children",
        "dwarf": "dwarves",
        "elf": "elves",
        "person": "people",
        "moose": "moose",
        "knife": "knives",
    }
    if noun in irregular:
        return irregular[noun]
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    if re.search(r"[^s]s$", noun):
        return noun
    return noun + ("es" if re.search(r"(ss|x|ch|sh)$", noun) else "s")


THINGS = ("topics", "more_topics", "more_topics", "objects")


def any_noun(rng, lists=THINGS + ("animals", "creatures", "places")):
    """A bare noun of any kind: known, rare or invented, sometimes with an adjective."""
    words = load_words()
    roll = rng.random()
    if roll < 0.25:
        noun = invented_word(rng)
    else:
        noun = rng.choice(words[rng.choice(lists)])
    roll = rng.random()
    if roll < 0.22:
        quality = (
            rng.choice(words["qualities" if roll < 0.07 else "more_qualities"]) if roll < 0.17 else invented_word(rng)
        )
        noun = f"{quality} {noun}"
    return noun


def any_topic(rng, **lists):
    """Something to talk about, with or without an article."""
    words = load_words()
    roll = rng.random()
    if roll < 0.2:
        return rng.choice(words["hard_topics"])
    if roll < 0.35:
        name = " ".join(invented_word(rng).capitalize() for _ in range(rng.choice((1, 1, 2))))
        if rng.random() < 0.15:
            name = f"{name} and {invented_word(rng).capitalize()}"
        return name if rng.random() < 0.8 else f"the {name}"
    noun = any_noun(rng, **lists)
    form = rng.random()
    if form < 0.35:
        return plural(noun)
    if form < 0.65:
        return noun
    article = "the " if form < 0.8 else "an " if noun[0] in "aeiou" and not noun.startswith("uni") else "a "
    return article + noun
