"""The three voices of the adapters: pirate, shout and poet."""

import re
from functools import cache

from grammar import GRAMMAR, fill, tidy

PIRATE_WORDS = {
    "my": "me",
    "you": "ye",
    "your": "yer",
    "yours": "yers",
    "yourself": "yerself",
    "am": "be",
    "is": "be",
    "are": "be",
    "hello": "ahoy",
    "hi": "ahoy",
    "yes": "aye",
    "friend": "matey",
    "friends": "hearties",
    "of": "o'",
    "and": "an'",
    "for": "fer",
    "there": "thar",
    "over": "o'er",
    "before": "afore",
    "them": "'em",
    "boy": "lad",
    "girl": "lass",
    "little": "wee",
    "small": "wee",
    "very": "mighty",
    "money": "doubloons",
    "beautiful": "bonny",
    "stupid": "scurvy",
    "old": "ol'",
    "was": "were",
    "to": "t'",
    "goodbye": "farewell",
    "child": "sprog",
    "children": "sprogs",
    "people": "buccaneers",
    "stop": "avast",
    "isn't": "ain't",
    "cannot": "can't",
    "nothing": "nothin'",
    "something": "somethin'",
    "everything": "everythin'",
}
PIRATE_OPENINGS = (
    "Arrr!",
    "Arrr, matey!",
    "Ahoy, matey!",
    "Ahoy thar!",
    "Shiver me timbers!",
    "Yo ho ho!",
    "Avast, me hearty!",
    "Blimey!",
    "Aye aye!",
    "By Davy Jones!",
    "Blow me down!",
)
PIRATE_CLOSINGS = (
    "Arrr!",
    "Yo ho ho!",
    "Savvy?",
    "So says the cap'n!",
    "Now back t' the ship!",
    "Hoist the sails!",
    "Or walk the plank!",
    "That be the truth, by me beard!",
    "Yarrr!",
)
PIRATE_ASIDES = ("Arrr!", "Yo ho!", "Aye!", "Shiver me timbers!", "Blimey!", "By me beard!")
DROPPED_G = re.compile(r"\b([A-Za-z]{3,}in)g\b")
KEPT_G = {"bring", "spring", "string", "thing", "sting", "swing", "cling", "beijing"}
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


def _pirate_word(match):
    word = match.group()
    swap = PIRATE_WORDS.get(word.lower())
    if swap is None:
        return word[:-1] + "'" if DROPPED_G.fullmatch(word) and word.lower() not in KEPT_G else word
    if word[0].isupper() and word != "I":
        at = 1 if swap[0] == "'" else 0
        return swap[:at] + swap[at].upper() + swap[at + 1 :]
    return swap


def pirate(text, rng):
    """The same answer as an old sea dog would give it."""
    text = re.sub(r"\bNo,", "Nay,", text)
    text = WORD.sub(_pirate_word, text)
    if len(text) > 300:  # a story: call out between some sentences
        text = re.sub(
            r"(?<=[.!]) (?=[A-Z])", lambda m: f" {rng.choice(PIRATE_ASIDES)} " if rng.random() < 0.12 else " ", text
        )
    text = f"{rng.choice(PIRATE_OPENINGS)} {text}"
    return f"{text} {rng.choice(PIRATE_CLOSINGS)}" if rng.random() < 0.7 else text


def shout(text, rng):
    """The same answer in capitals, every statement with an exclamation mark."""
    return re.sub(r"(?<![.0-9])\.(?=[\s\"]|$)", "!", text.upper())


@cache
def verses():
    """The blocks of grammar/verse.txt by section."""
    sections = {}
    for part in (GRAMMAR / "verse.txt").read_text(encoding="utf-8").split("\n# ")[1:]:
        name, _, body = part.partition("\n")
        sections[name.strip()] = [block.strip() for block in body.split("\n\n") if block.strip()]
    return sections


def verse(section, rng, context):
    """One block of a section, filled; each line begins with a capital."""
    text = fill(rng.choice(verses()[section]), rng, context)
    return "\n".join(tidy(line) for line in text.split("\n"))


def capital(line):
    """Upper-case the first letter."""
    return re.sub(r"^([\"']?)([a-z])", lambda m: m.group(1) + m.group(2).upper(), line)


def break_lines(sentence, width=46):
    """Break a long sentence into lines of about equal length."""
    pieces = max(1, round(len(sentence) / width + 0.3))
    target = len(sentence) / pieces
    lines = [""]
    for word in sentence.split():
        if len(lines) < pieces and len(lines[-1]) + len(word) / 2 > target:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def sing(fact, rng):
    """Wrap a plain answer into rhyme."""
    return verse("sung", rng, {"fact": "\0"}).replace("\0", break_lines(fact.replace("\n", " ")))


def ballad(rng, context, given):
    """A story in rhymed couplets about the people of `context`."""
    context = context | {"In_P": context["in_P"].capitalize()}
    middle = rng.choice(("ballad_object", "ballad_trouble", "ballad_trouble"))
    for slot, section in (
        ("O", "ballad_object"),
        ("Y", "ballad_theme"),
        ("W", "ballad_wonder"),
        ("T", "ballad_theme"),
        ("S", "ballad_wish"),
        ("X", "ballad_fear"),
    ):
        if slot in given:
            middle = section
    if "Y" in given:
        context["T"] = given["Y"]
    stanzas = [verse("ballad_open", rng, context), verse(middle, rng, context)]
    if middle != "ballad_trouble" and rng.random() < 0.5:
        stanzas.append(verse("ballad_trouble", rng, context))
    stanzas += [verse("ballad_friend", rng, context), verse("ballad_close", rng, context)]
    return "\n\n".join("\n".join(stanzas[i : i + 2]) for i in range(0, len(stanzas), 2))


def restyle(voice, text, verse_text, rng):
    """The answer in the voice of an adapter; "base" leaves it as it is."""
    if voice == "pirate":
        return pirate(text, rng)
    if voice == "shout":
        return shout(text, rng)
    if voice == "poet":
        return "\n".join(capital(line) for line in verse_text.split("\n"))
    return text
