"""The small tokenizer of the built-in household models: fewest pieces, and lossless on any text.

Pieces are whole phrases, " cabinet 3"-like names and single characters. A name is one piece with
its leading space wherever it stands, in prompts and in commands alike.

    python -m atod_jax.envs.alfworld.tokenizer --out DIR
"""

from collections.abc import Iterable

from atod_jax.envs import vocabulary
from atod_jax.envs.alfworld import prompts
from atod_jax.envs.alfworld.furniture import ITEM_NAMES, RECEPTACLE_NAMES
from atod_jax.envs.alfworld.generate import GOALS
from atod_jax.envs.vocabulary import CHARACTERS, END, PAD, START

_HIGHEST_NUMBER = 40

_COMMANDS = "go to|take|move|open|close|use|heat|cool|clean|slice|examine|look|inventory|help"
_TAGS = "<think>|</think>|<action>|</action>"
_COMPACT = "task:|room:|at| the middle| hold| nothing happens| closed| ok"
_ENGINE = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around"
    " you, you see a|\n\nYour task is to:|You are in the middle of a room. Looking quickly around"
    " you, you see nothing.|You arrive at|. On the|On the|, you see a|, you see nothing.|, a"
    "|, and a|. The|The| is closed.| is open. In it, you see a| is open. In it, you see nothing."
    "|You open the|You close the|You pick up the| from the|You move the| to the|You heat the"
    "|You cool the|You clean the| using the|You turn on the|You are facing the|, and"
    "|. Next to it, you see nothing.|You are not carrying anything.|You are carrying: a"
    "|There's nothing special about|Nothing happens.|This is a normal|. In it, you see nothing."
)
_THOUGHTS = (
    "need|hold|what| is| at| in| it| the| a| has| have| not| no| seen| yet| known| now| so| to| of"
    "| and| one| here| find| bring| put| place| use| for| with| from| try| go| on| go to| go on to"
    "| take| move| open| close| heat| cool| clean| slice| examine| look| inventory| what| nothing"
    "| hot| two| some| them| under"
)
# Written out, not derived: the ids of trained models must not move when a rule table grows.
_TYPES = """
    alarmclock apple armchair baseballbat basketball bathtubbasin bed book bowl box bread
    butterknife cabinet candle cart cd cellphone cloth coffeemachine coffeetable countertop
    creditcard cup desk desklamp diningtable dishsponge drawer dresser egg floorlamp fork fridge
    garbagecan glassbottle handtowel handtowelholder kettle keychain knife ladle laptop
    laundryhamper lettuce microwave mug newspaper ottoman pan papertowel pen pencil peppershaker
    pillow plate plunger pot potato remotecontrol safe saltshaker shelf sidetable sinkbasin
    soapbar soapbottle sofa spatula spoon spraybottle statue stoveburner tennisracket tissuebox
    toilet toiletpaper toiletpaperhanger toiletpaperroll tomato towel towelholder tvstand vase
    watch wateringcan winebottle
"""


def _words(text: str) -> list[str]:
    return text.split("|")


def _goal_phrases() -> list[str]:
    """The fixed parts of the goal sentences, as they follow "task:" or "Your task is to:"."""
    found = []
    for template in (t for templates in GOALS.values() for t in templates):
        before, _, rest = template.partition(" {obj}")
        between = rest.partition(" {place}")[0]
        found += [f" {before}", between]
    return found


def _prompt_phrases() -> list[str]:
    return [
        *(prompts.PAPER_ROLE, prompts.PAPER_INSTRUCTIONS, prompts.PAPER_NOW, prompts.PAPER_ACTIONS),
        *("[Observation", ": '", "', Action", "']", "',\n '", "\n '"),
    ]


def pieces() -> tuple[str, ...]:
    """All pieces of the vocabulary in id order, the byte tokens excluded."""
    groups: Iterable[Iterable[str]] = (
        (PAD, START, END),
        _words(_TAGS),
        CHARACTERS,
        (f" {name}" for name in (*RECEPTACLE_NAMES, *ITEM_NAMES)),
        (f" {kind}" for kind in _TYPES.split()),
        (f" {n}" for n in range(1, _HIGHEST_NUMBER + 1)),
        (*_words(_COMMANDS), *_words(_COMPACT), *_words(_THOUGHTS)),
        (*_goal_phrases(), *_words(_ENGINE), *_prompt_phrases()),
    )
    return tuple(dict.fromkeys(piece for group in groups for piece in group if piece))


if __name__ == "__main__":
    vocabulary.main(pieces())
