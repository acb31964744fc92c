"""What the names of event types say of them."""

from __future__ import annotations

import re

from recs.config import EventType

#: Types by what their names hold, the first that fits: a dislike is not a like, and what is taken
#: out of a cart is neither wanted nor disliked.
_KINDS = [
    (
        EventType(polarity="negative"),
        r"dislike|unlike|downvote|thumbs?down|hate|block|^hide|notinterested|unfollow|unsubscribe"
        r"|negative|complain|return|refund",
    ),
    (
        EventType(polarity="shown"),
        r"impression|expos|display|^shown?$|remove|delete|^skip|cancel",
    ),
    (
        EventType(weight=4),
        r"purchase|^buy|bought|order|transaction|^sale|^sold|payment|^pay|checkout|conversion"
        r"|subscri|^rent|booking|achat|kauf",
    ),
    (EventType(weight=3), r"cart|basket|panier|warenkorb"),
    (
        EventType(weight=2),
        r"like|fav|wish|bookmark|^save|upvote|thumbs?up|share|comment|follow|collect|^review|^rat(e|ing)"
        r"|install|download",
    ),
    (
        EventType(),
        r"view|click|clic$|play|watch|listen|^read|^open|visit|^pv$|detail|browse|search|stream"
        r"|complete|finish|start|^vue",
    ),
]


def event_type(name: str) -> EventType | None:
    """Return what a type of this name weighs and says; None if the name says nothing.

    >>> event_type("addToCart").weight, event_type("thumbs_down").polarity
    (3.0, 'negative')
    """
    plain = re.sub(r"[^a-z]", "", name.lower())
    return next((kind for kind, pattern in _KINDS if re.search(pattern, plain)), None)
