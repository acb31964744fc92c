"""Roles of columns by what people call them, in public data sets and clickstreams."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


USERS = _words(
    "user customer visitor member client reviewer consumer buyer shopper subscriber account "
    "listener player viewer rater patron person student learner household profile uid msno "
    "fullvisitor anonymous cookieid deviceid steamid utilisateur kunde nutzer benutzer"
)

#: They stand for the user where nobody else does.
SESSIONS = _words("session visit")

ITEMS = _words(
    "item parentasin asin product sku article movie film track song book isbn video game app "
    "contentid news document doc post story business venue poi locationid place hotel restaurant "
    "recipe anime show artist album podcast episode course jobid vacancy listing offer ad "
    "creative stockcode good goods merchandise ean gtin upc iid beer joke repo url produit produkt "
    "artikel"
)

TIMES = _words(
    "timestamp ts eventtime eventtimestamp unixreviewtime unixtime epoch datetime time createdat "
    "created date dt at when day horodatage heure datum zeit uhrzeit fecha"
)

POSITIONS = _words("position pos sequence seq step eventindex eventorder")

EVENT_TYPES = _words(
    "eventtype eventname event actiontype action behaviortype behaviourtype behavior behaviour "
    "interactiontype interaction evenement"
)

RATINGS = _words("rating score stars star overall grade preference note bewertung evaluation avis")

#: How much of it, or how often.
COUNTS = _words(
    "watchratio weight plays playcount listens listencount quantity qty count frequency hours "
    "menge quantite"
)

#: How dear it was.
PRICES = _words("price amount prix preis")

_ALL = (*USERS, *SESSIONS, *ITEMS, *TIMES, *EVENT_TYPES, *RATINGS, *COUNTS, *PRICES)

#: Last parts of names that say of what kind of values a column is, and not of what.
_KEYS = _words("id ids key no nr num number code name hash uuid sk ms utc")


def match(name: str, words: Sequence[str]) -> tuple[int, ...] | None:
    """Return how well a column's name fits words, less for a better fit; None if it does not.

    The whole name is better than its last part, an earlier word than a later one, and what is no
    name of people than what is.

    >>> match("UserID", ["user"]) < match("main_user_id", ["user"])
    True
    """
    parts = _parts(name)
    kept = [*parts]
    while len(kept) > 1 and kept[-1] in _KEYS:
        kept.pop()
    whole = ("".join(parts), "".join(kept), "".join(parts).removesuffix("id"))
    last = (kept[-1], kept[-1].removesuffix("id")) if kept else ()
    for level, forms in enumerate((whole, last)):
        places = [words.index(form) for form in forms if form in words]
        if places:
            return level, min(places), int(parts[-1] == "name")
    return None


def is_known(name: str) -> bool:
    """Tell whether a column's name says what the column is."""
    return match(name, _ALL) is not None


def is_any(name: str, words: Sequence[str]) -> bool:
    """Tell whether a column's whole name is one of words."""
    return "".join(_parts(name)) in words


def _parts(name: str) -> list[str]:
    """Return the words of a name in lower case and without accents.

    >>> _parts("reviewerID"), _parts("t_dat"), _parts("Quantité")
    (['reviewer', 'id'], ['t', 'dat'], ['quantite'])
    """
    decomposed = unicodedata.normalize("NFKD", name)
    plain = "".join(sign for sign in decomposed if not unicodedata.combining(sign))
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", plain)]
