"""What a held-out target is ranked among."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from recs.ranking.catalogue import ItemCatalogue
from recs.sampling import Sampler

_NAME = re.compile(r"(full|given)|(uniform|popularity)([1-9][0-9]*)")


@dataclass(frozen=True)
class RankingProtocol:
    """The candidates of a ranking.

    Attributes
    ----------
    name
        ``full``: all recommendable items that the user has not seen, which are those that a list
        may hold; a target that is none of them, or scores so low that no list of the model holds it
        (SLIM's end at 0, others at -inf), is not ranked: HR@k is then the share of users whose list
        of k items holds a target, but for ties. ``uniform100``, ``popularity100``, or with another
        number: that many sampled items that the user has no event of in any split, drawn uniformly
        or in proportion to training events. ``given``: the candidate lists of the data set.
    seed
        Of the sampled candidates.
    """

    name: str
    seed: int = 0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"protocol {self.name!r} is not known; take full, given, uniformM or popularityM "
                "with M the number of negatives, as in uniform100"
            )

    @property
    def num_negatives(self) -> int:
        """Negatives drawn per user; 0 where none are."""
        digits = self.name.lstrip("abcdefghijklmnopqrstuvwxyz")
        return int(digits or 0)

    @property
    def is_full(self) -> bool:
        """Whether all items are ranked."""
        return self.name == "full"

    @property
    def column(self) -> str:
        """The array column that this protocol reads beside targets and histories."""
        if self.num_negatives:
            return "interacted"
        return "seen" if self.is_full else "candidates"


@lru_cache(maxsize=8)
def sampler_of(protocol: RankingProtocol, catalogue: ItemCatalogue) -> Sampler:
    """Return the protocol's sampler, made once a process."""
    if protocol.name.startswith("uniform"):
        return Sampler.uniform(catalogue.recommendable)
    return Sampler.popularity(catalogue.recommendable, catalogue.train_events)
