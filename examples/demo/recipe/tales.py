"""Exchanges with a story or a poem for an answer."""

from asking import THINGS, any_noun, any_topic, plural, user_line
from exchange import Exchange, kind
from grammar import asks, fill, load_words, write
from stories import invented_word, person_name, place_phrase, pronoun_of, random_kind, tell
from styles import ballad, verse


def _kind_only(rng, words, creature, pronoun):
    return f"a {creature}", {"K": creature}


def _kinds(rng, words, creature, pronoun):
    return plural(creature), {"K": creature}


def _adjective(rng, words, creature, pronoun):
    adjective = rng.choice(words["adjectives"])
    return f"a {adjective} {creature}", {"K": creature, "adj": adjective}


def _named(rng, words, creature, pronoun):
    name = person_name(rng, pronoun)
    form = rng.choice(("a {k} named {n}", "a {k} called {n}", "{n} the {k}", "a {k} whose name is {n}", "my {k} {n}"))
    return form.format(k=creature, n=name), {"K": creature, "N": name, "pronoun": pronoun}


def _child(rng, words, creature, pronoun):
    name = person_name(rng, pronoun)
    child, family = ("girl", "daughter") if pronoun == "she" else ("boy", "son")
    form = rng.choice(("{n}", "{n}", "my {f} {n}", "a child named {n}"))
    return form.format(n=name, f=family), {"K": child, "N": name, "pronoun": pronoun}


def _child_and_thing(rng, words, creature, pronoun):
    pronoun = rng.choice(("he", "she"))
    name = person_name(rng, pronoun)
    child, family = ("girl", "daughter") if pronoun == "she" else ("boy", "son")
    noun = any_noun(rng, THINGS)
    form = rng.choice(asks("child_and_thing"))
    return form.format(f=family, c=child, n=name, o=noun), {"K": child, "N": name, "pronoun": pronoun, "O": noun}


def _thing(rng, words, creature, pronoun):
    noun = any_noun(rng, THINGS)
    form = rng.choice(("a {o}", "a {o}", "a {o}", "the {o}", "my {o}"))
    return form.format(o=noun), {"O": noun}


def _topic(rng, words, creature, pronoun):
    topic = any_topic(rng, lists=THINGS)
    return topic, {"Y": topic}


def _theme(rng, words, creature, pronoun):
    theme = rng.choice(words["themes"])
    return theme, {"T": theme}


def _wonder(rng, words, creature, pronoun):
    wonder = rng.choice(words["wonders"])
    return wonder, {"W": wonder}


def _two_kinds(rng, words, creature, pronoun):
    other = random_kind(rng)
    while other == creature:
        other = random_kind(rng)
    form = rng.choice(asks("two_kinds"))
    return form.format(k=creature, o=other), {"K": creature, "FK": other}


def _kind_and_thing(rng, words, creature, pronoun):
    noun = any_noun(rng, THINGS)
    form = rng.choice(("a {k} and a {o}", "a {k} with a {o}", "a {k} who finds a {o}", "a {k} who has a {o}"))
    return form.format(k=creature, o=noun), {"K": creature, "O": noun}


def _placed(rng, words, creature, pronoun):
    place = rng.choice(words["places"])
    return f"a {creature} {place_phrase(place)}", {"K": creature, "place": place}


def _skill(rng, words, creature, pronoun):
    skill = rng.choice(words["skills"])
    form = rng.choice(("who wants to", "who wanted to", "that wants to", "who could not", "who learns to"))
    return f"a {creature} {form} {skill}", {"K": creature, "S": skill}


def _fear(rng, words, creature, pronoun):
    fear = rng.choice(words["fears"])
    return f"a {creature} who is afraid of {fear}", {"K": creature, "X": fear}


SUBJECTS = (  # up to which roll of the die each is taken
    (0.12, _kind_only),
    (0.17, _kinds),
    (0.25, _adjective),
    (0.35, _named),
    (0.42, _child),
    (0.46, _child_and_thing),
    (0.58, _thing),
    (0.66, _topic),
    (0.72, _theme),
    (0.77, _wonder),
    (0.85, _two_kinds),
    (0.89, _kind_and_thing),
    (0.93, _placed),
    (0.97, _skill),
    (1.00, _fear),
)


def story_subject(rng):
    """What the story shall be about: the words of the request and the slots it fixes."""
    roll = rng.random()
    creature = random_kind(rng) if rng.random() < 0.85 else invented_word(rng)
    pronoun = pronoun_of(creature, rng)
    make = next(make for bound, make in SUBJECTS if roll < bound)
    return make(rng, load_words(), creature, pronoun)


@kind(52)
def story(rng, memory):
    short = rng.random() < 0.15
    asked = rng.choice(asks("very_short_ask") if short else asks("story_ask"))
    given, subject = {}, ""
    if rng.random() < 0.85:
        subject, given = story_subject(rng)
        about = fill(rng.choice(asks("about")), rng, {"family": load_words()["family"], "age": str(rng.randint(3, 9))})
        asked = f"{asked} {about} {subject}"
        if "K" in given and rng.random() < 0.1:
            opening = fill(rng.choice(asks("story_ask")), rng, {})
            clause = rng.choice(asks("hero_clause"))
            asked = opening + fill(f" [where|in which] {clause}", rng, {"X": subject})
        if rng.random() < 0.06:
            asked = fill(asks("story_hint")[0], rng, {"X": subject})
    user = user_line(rng, asked, {})
    return tell_it(rng, user, given, short, subject)


def tell_it(rng, user, given, short=False, subject=""):
    """Answer with a story, sometimes after a word of introduction."""
    text, context = tell(rng, short=short, **given)
    if subject and rng.random() < 0.12:
        text = write(f"[Here is|Here comes|This is] a story about {subject}.", rng, {}) + "\n\n" + text
    elif rng.random() < 0.08:
        text = rng.choice(("Of course!", "With pleasure!", "Gladly!", "Listen.")) + "\n\n" + text
    return Exchange(user, text, ballad(rng, context, given), {"context": context})


@kind(6)
def poems(rng, memory):
    topic = any_topic(rng) if rng.random() < 0.6 else rng.choice(load_words()["wonders"])
    asked = asks("poem_about_ask")[0]
    if rng.random() < 0.2:
        asked, topic = asks("poem_ask")[0], rng.choice(load_words()["wonders"])
    text = verse("poem", rng, {"X": topic})
    return Exchange(user_line(rng, asked, {"X": topic}), text, text)
