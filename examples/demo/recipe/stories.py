"""Children's stories out of the plots in grammar/stories.txt."""

from functools import cache

from grammar import fill, load_beats, load_words, tidy

PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}
ON_PLACES = {"island", "beach", "hill", "mountain", "farm"}
BY_PLACES = {"lighthouse", "river", "pond", "lake", "harbour"}
FEMALE_KINDS = {"girl", "fairy", "mermaid", "witch", "princess", "queen", "cow", "goose"}
MALE_KINDS = {"boy", "wizard", "prince", "king", "fisherman", "postman", "rooster"}
SHARED = {"opening", "habit", "ending", "short_ending", "theme_closing"}
OBJECT_PLOTS = ("lost", "found", "magic", "thing", "gift", "mend", "tree", "quarrel")
THEME_PLOTS = {
    "friendship": "storm help neighbour build",
    "courage": "fear",
    "bravery": "fear",
    "kindness": "storm share help neighbour race",
    "sharing": "share magic",
    "honesty": "found",
    "patience": "garden learn",
    "hope": "star way",
    "trust": "fear way",
    "teamwork": "build tree star",
    "forgiveness": "quarrel",
    "saying sorry": "quarrel",
    "making mistakes": "bake learn mend",
    "music": "song",
    "magic": "magic",
    "adventure": "map star",
    "learning": "learn",
    "helping others": "help race star",
    "being different": "neighbour",
    "loss": "lost mend",
    "home": "way storm",
    "spring": "garden",
    "summer": "map garden",
    "gratitude": "gift help",
    "love": "gift",
}


@cache
def lexicon():
    """All plain words of the lists, as stuff for inventions."""
    words = {word for name, entries in load_words().items() if name not in ("syllables", "codas") for word in entries}
    return sorted(word.lower() for word in words if word.isalpha() and len(word) > 3)


def invented_word(rng):
    """A word that no list holds, so that the model learns to copy what it is given."""
    words = load_words()
    if rng.random() < 0.55:  # the head of one word and the tail of another
        head, tail = rng.choice(lexicon()), rng.choice(lexicon())
        return head[: rng.randint(2, min(6, len(head)))] + tail[-rng.randint(2, min(6, len(tail))) :]
    return "".join(rng.choices(words["syllables"], k=rng.choice((1, 2, 2, 3)))) + rng.choice(words["codas"])


def person_name(rng, pronoun, invented=0.35):
    """A given name, invented now and then."""
    if rng.random() < invented:
        return invented_word(rng).capitalize()
    return rng.choice(load_words()["girls" if pronoun == "she" else "boys"])


def place_phrase(place):
    """The place with its preposition: "on the hill"."""
    preposition = "on" if place in ON_PLACES else "by" if place in BY_PLACES else "in"
    return f"{preposition} the {place}"


def pronoun_of(kind, rng):
    last = kind.split()[-1]
    if last in FEMALE_KINDS or last in MALE_KINDS:
        return "she" if last in FEMALE_KINDS else "he"
    return rng.choice(("he", "she"))


def add_character(context, prefix, kind, name, rng, pronoun=None):
    """Put the pronouns, the name and the kind of a character into the context."""
    pronoun = pronoun or pronoun_of(kind, rng)
    for slot, word in PRONOUNS[pronoun].items():
        context[prefix + slot] = word
        context[prefix + slot.capitalize()] = word.capitalize()
    context["F" if prefix else "N"] = name or person_name(rng, pronoun, 0.03)
    context["FK" if prefix else "K"] = kind


def random_kind(rng):
    words = load_words()
    return rng.choice(
        words[rng.choices(("animals", "creatures"), (3, 1))[0]] if rng.random() < 0.75 else ("girl", "boy")
    )


def make_context(rng, **given):
    """The people and things of one story; `given` fixes any of them by slot name."""
    words = load_words()
    context = {name: words[name] for name in ("adjectives", "foods")}
    kind = given.pop("K", None) or random_kind(rng)
    friend = given.pop("FK", None) or random_kind(rng)
    while friend == kind:
        friend = random_kind(rng)
    add_character(context, "", kind, given.pop("N", None), rng, given.pop("pronoun", None))
    add_character(context, "f", friend, given.pop("F", None), rng)
    while context["F"] == context["N"]:
        add_character(context, "f", friend, None, rng)
    place = given.pop("place", None) or rng.choice(words["places"])
    context |= {"P": f"the {place}", "in_P": place_phrase(place)}
    context["adj"], context["adj2"], context["fadj"] = rng.sample(words["adjectives"], 3)
    context["hobby"], context["hobby2"] = rng.sample(words["hobbies"], 2)
    for slot, name in (
        ("O", "objects"),
        ("q", "qualities"),
        ("S", "skills"),
        ("X", "fears"),
        ("food", "foods"),
        ("feeling", "feelings"),
        ("colour", "colours"),
        ("W", "wonders"),
        ("T", "themes"),
    ):
        context[slot] = rng.choice(words[name])
    context |= {"morning": words["mornings"], "adv": words["adverbs"]}
    return context | given


def plots():
    return [name for name in load_beats("stories.txt") if name not in SHARED]


def pick_plot(rng, given):
    """A plot in which everything that was asked for comes up."""
    if "S" in given:
        return "learn"
    if "X" in given:
        return "fear"
    if "W" in given:
        return "wonder"
    if "Y" in given:
        return "topic"
    if "T" in given:
        return rng.choice(THEME_PLOTS.get(given["T"], "help storm share gift").split())
    if "O" in given:
        return rng.choice(OBJECT_PLOTS)
    return rng.choice([plot for plot in plots() if plot not in ("wonder", "thing", "topic")])


def tell(rng, plot=None, short=False, **given):
    """Tell a story. Returns its text and the context it was told with."""
    plot = plot or pick_plot(rng, given)
    beats = load_beats("stories.txt")
    context = make_context(rng, **given)
    parts = [rng.choice(beats["opening"][0])]
    if not short and rng.random() < 0.7:
        parts.append(rng.choice(beats["habit"][0]))
    plot_beats = beats[plot]
    if short:
        meeting = next(beat for beat in plot_beats if "{FK}" in beat[0])
        plot_beats = [beat for beat in plot_beats if beat in (plot_beats[0], meeting, plot_beats[-2])]
    paragraphs = [" ".join(parts)]
    for beat in plot_beats:
        paragraphs.append(rng.choice(beat))
    closing = [rng.choice(beats["short_ending" if short else "ending"][0])]
    if "T" in given:
        closing.append(rng.choice(beats["theme_closing"][0]))
    paragraphs.append(" ".join(closing))
    texts = [tidy(fill(paragraph, rng, context)) for paragraph in paragraphs]
    return join_paragraphs(texts, rng, short), context


def join_paragraphs(texts, rng, short):
    """A short story is one paragraph; a long one has two or three."""
    if short or rng.random() < 0.3:
        return " ".join(texts)
    cut = len(texts) // 2
    if rng.random() < 0.5:
        return " ".join(texts[:cut]) + "\n\n" + " ".join(texts[cut:])
    return " ".join(texts[:1]) + "\n\n" + " ".join(texts[1:-1]) + "\n\n" + texts[-1]
