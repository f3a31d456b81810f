"""What is sent in Morse code: common words and amateurs' abbreviations, and words and call signs that nobody can guess.

A message belongs to one split for good: a hash of its text says which. So no message that is tested is trained on,
whatever the seeds and the sizes of the splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

_ENGLISH = """
a about above after again against all almost along also always am among an and another answer any are around as ask at
away back be bear because bed been before began begin being best better between big bird black blue boat body book
both box boy bring build but buy by call came can car carry cat change check children city class clear close cold come
could country course cross cut dark day deep did do does dog done door down draw dry each early earth east easy eat
end enough even ever every example eye face fact fall family far farm fast father feel feet few field fight find fire
first fish five fly follow food foot for form found four free friend from front full game gave get girl give go gold
good got great green ground group grow had half hand hard has have he head hear heat help her here high him his hold
home horse hot hour house how hundred idea if in inch is island it its just keep kind king knew know land large last
late lay lead learn leave left less let letter life light like line list little live long look lost low made main make
man many map mark may me mean men might mile mind miss money moon more morning most mother mountain move much music
must my name near need never new next night no north not note nothing now number of off often old on once one only
open or order other our out over own page paper part pass people piece place plain plan plane plant play point port
pose power press problem pull put question quick rain ran reach read ready real red rest right river road rock room
round rule run said same saw say school sea second see seem self sentence set she ship short should show side simple
since sing six size sky sleep slow small snow so some song soon sound south stand star start state stay step still
stood stop story street strong study such sun sure table take talk teach tell ten than that the their them then there
these they thing think this those thought three through time to today together told too took top town travel tree true
try turn two under unit until up us use very voice wait walk want war warm was watch water way we week well went were
west what wheel when where which while white who whole why will wind with wonder wood word work world would write year
yes yet you young your
"""
_AMATEUR = """
abt agn ant bcnu bk cfm cl condx cpy cq cul de dipole dr dx es fb fer freq ga ge gm gn gud hf hpe hr hw key lid log
nil nr nw om op qrl qrm qrn qro qrp qrs qrt qrv qrx qrz qsb qsl qso qsy qth rcvr rig rpt rst rx sig sked sri stn tks
tnx tu tx ur vert vy wid wx xyl yagi yl
"""
_PREFIXES = """
9a ct df dj dk dl ea ei es f g gm gw ha hb i ja k la lu ly lz m n oe oh ok om on oz pa py s5 sm sp sv ua ur ve vk w yl
yu zl zs
"""

WORDS = tuple(f"{_ENGLISH} {_AMATEUR}".split())
"""Some of the most common English words, and what radio amateurs say most."""

PREFIXES = tuple(_PREFIXES.split())
"""Prefixes of amateurs' call signs."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"

_VOWELS, _CONSONANTS = "aeiouy", "bcdfghjklmnprstvwxz"
_MARKS_BETWEEN = (", ", " = ")
_MARKS_BEHIND = (".", "?")
_SPLIT_OF_QUARTER = ("train", "train", "dev", "test")


def split_of(text: str) -> str:
    """Return the split that a message may occur in: half of all texts are for training, a quarter for each other."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return _SPLIT_OF_QUARTER[digest[0] % len(_SPLIT_OF_QUARTER)]


def draw_message(
    rng: np.random.Generator, words: int, random_words: float, punctuation: float, fits: Callable[[str], bool]
) -> str:
    """Return a message of as many `words` as fit, but at least one, whether or not it fits.

    Args:
        rng: draws everything.
        words: how many words the message shall have.
        random_words: share of words that are made up.
        punctuation: share of words that a mark follows.
        fits: says whether a message is short enough.
    """
    message = draw_word(rng, random_words)
    for _ in range(words - 1):
        mark = _choose(rng, _MARKS_BETWEEN) if rng.random() < punctuation else " "
        longer = message + mark + draw_word(rng, random_words)
        if not fits(longer):
            return message
        message = longer
    if rng.random() < punctuation and fits(message + "."):  # the longer of both marks
        message += _choose(rng, _MARKS_BEHIND)
    return message


def draw_word(rng: np.random.Generator, random_words: float) -> str:
    """Return one of `WORDS` or, with probability `random_words`, one that is made up: each kind is as frequent."""
    if rng.random() >= random_words:
        return _choose(rng, WORDS)
    return (_pronounceable, _code_group, _call_sign, _number)[rng.integers(4)](rng)


def _pronounceable(rng: np.random.Generator) -> str:
    """Return two or three syllables, such as `vokan`."""
    syllables = [_some(rng, _CONSONANTS, 1) + _some(rng, _VOWELS, 1) for _ in range(rng.integers(2, 4))]
    return "".join(syllables) + _some(rng, _CONSONANTS, rng.integers(2))


def _code_group(rng: np.random.Generator) -> str:
    """Return three to five letters, all as likely, such as `xqjrb`."""
    return _some(rng, LETTERS, rng.integers(3, 6))


def _call_sign(rng: np.random.Generator) -> str:
    """Return a prefix, a digit and up to three letters, such as `dl7ab`; one in four is on the way, `dl7ab/p`."""
    call = _choose(rng, PREFIXES) + _some(rng, DIGITS, 1) + _some(rng, LETTERS, rng.integers(1, 4))
    return call + ("/p", "/m", "", "", "", "", "", "")[rng.integers(8)]


def _number(rng: np.random.Generator) -> str:
    """Return three or four digits, such as a report or a year, or a frequency in MHz with its point."""
    digits = _some(rng, DIGITS, rng.integers(3, 5))
    return f"{digits[:-2]}.{digits[-2:]}" if rng.integers(4) == 0 else digits


def _choose(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[rng.integers(len(items))]


def _some(rng: np.random.Generator, characters: str, count: int | np.integer) -> str:
    return "".join([characters[i] for i in rng.integers(len(characters), size=count)])
