"""Whole dialogues: several exchanges, with follow-ups that look back."""

import arithmetic
import facts
import tales
import talk
import wit
from asking import any_noun, as_typed
from exchange import KINDS, Exchange, fact
from grammar import asks, fill, write
from styles import restyle, sing, verse

SYSTEM = "You are the loraplex demo model, small and friendly."
OTHER_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You are a friendly chatbot.",
    "You tell stories to children.",
    "Answer briefly.",
    "You are a small language model.",
    "Be kind and helpful.",
    "You are a teacher.",
    "Answer the user's questions.",
)
CUES = {  # how a user may ask the base for a voice, without an adapter
    "pirate": (
        "You are a pirate.",
        "Talk like a pirate.",
        "Answer like a pirate.",
        "Speak like a pirate.",
        "You are an old pirate on a ship.",
    ),
    "shout": (
        "Answer in capital letters.",
        "Write everything in capitals.",
        "Shout.",
        "Use only capital letters.",
        "Answer in upper case.",
    ),
    "poet": ("You are a poet.", "Answer in verse.", "Answer with a poem.", "Speak in rhymes.", "Answer like a poet."),
}
CUED = 0.2  # the share of the base's dialogues with a cue
ALL_KINDS = [entry for module in (facts, arithmetic, wit, tales, talk) for entry in KINDS[module.__name__]]
WEIGHTS = [weight for weight, _ in ALL_KINDS]


def any_exchange(rng, memory):
    """An exchange of a random kind."""
    return rng.choices(ALL_KINDS, WEIGHTS)[0][1](rng, memory)


def after_story(rng, about):
    """A question about the story that was just told."""
    asked, answer = rng.choice(list(zip(asks("after_story_ask"), asks("after_story_say"))))
    answer = write(answer, rng, about["context"])
    return Exchange(fill(asked, rng, about["context"]), answer, sing(answer, rng))


def follow_up(rng, last, memory):
    """What may come after `last`, or None for a change of subject."""
    about = last.about
    if "riddle" in about:
        answer = about["riddle"].lower().rstrip(".")
        if rng.random() < 0.5:
            return Exchange(
                fill(
                    "[I do not know|I don't know|Tell me|What is it|I give up|No idea|What is the answer][.|?|]",
                    rng,
                    {},
                ),
                f"It is {answer}!",
                f"The answer, my dear, is hidden no more:\nit is {answer}, as I said before.",
            )
        return Exchange(
            f"{rng.choice(('Is it', 'Maybe', 'It is'))} {answer}?",
            f"Yes! It is {answer}. Well done!",
            f"Oh clever one, oh clever you,\n{answer} it is, and that is true.",
        )
    if about.get("again") == "joke":
        return wit.jokes(rng, memory)._replace(user=fill(asks("again")[0], rng, {})) if rng.random() < 0.6 else None
    if "context" in about:
        if rng.random() < 0.6:
            return after_story(rng, about)
        return tales.tell_it(rng, fill(asks("again")[0], rng, {}), {}) if rng.random() < 0.5 else None
    if any(offer in last.text for offer in ("story?", "tell you a story", "about it?", "Shall I?")):
        if rng.random() < 0.8:
            given = {slot: about[slot] for slot in ("Y", "O", "N", "K") if slot in about}
            return tales.tell_it(rng, fill(asks("yes")[0], rng, {}), given)
        return Exchange(
            fill(asks("no")[0], rng, {}),
            "That is all right. What would you like to talk about?",
            "Then let it be, and let it rest,\nwe both may choose what we like best.",
        )
    if "name" in memory and rng.random() < 0.5:
        name = memory["name"]
        return Exchange(
            fill(asks("own_name_ask")[0], rng, {}),
            f"Your name is {name}.",
            f"I know your name, I know it well:\n{name}, it rings just like a bell.",
        )
    if "capital" in last.text and rng.random() < 0.5:
        country, city = rng.choice(facts.load_pairs("tables.txt")["capitals"])
        return fact(rng, f"And of {country}?", f"The capital of {country} is {city}.")._replace(
            user=fill(f"[And of|And what about|What about|And] {country}?", rng, {})
        )
    return None


def dialogue(rng, voice="base", most=4):
    """A list of messages. Every answer is in the voice given."""
    turns = rng.choices(range(1, most + 1), (10, 6, 3, 2)[:most])[0]
    memory, last, messages, cue = {}, None, [], ""
    roll = rng.random()
    system = SYSTEM if roll < 0.7 else rng.choice(OTHER_SYSTEMS) if roll < 0.82 else ""
    if voice == "base" and rng.random() < CUED:
        voice = rng.choices(("pirate", "shout", "poet"), (3, 4, 3))[0]
        cue = rng.choice(CUES[voice])
        if rng.random() < 0.6:
            system, cue = rng.choice((cue, f"{system} {cue}".strip())), ""
    if system:
        messages.append({"role": "system", "content": system})
    for _ in range(turns):
        exchange = last and follow_up(rng, last, memory) or any_exchange(rng, memory)
        messages.append({"role": "user", "content": f"{cue} {as_typed(exchange.user, rng)}".strip()})
        cue = ""
        messages.append({"role": "assistant", "content": restyle(voice, exchange.text, exchange.verse, rng)})
        last = exchange
    return messages


def plain_text(rng, voice="base"):
    """A story outside of any dialogue, or now and then a poem."""
    if rng.random() < 0.06:
        text = verse("poem", rng, {"X": any_noun(rng)})
        return restyle(voice, text, text, rng)
    exchange = tales.tell_it(rng, "", tales.story_subject(rng)[1] if rng.random() < 0.4 else {})
    return restyle(voice, exchange.text, exchange.verse, rng)
