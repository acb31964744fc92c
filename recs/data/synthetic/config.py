"""Size and structure of a generated log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

#: Events that each user has at the least.
MIN_USER_EVENTS = 5


@dataclass(frozen=True)
class SyntheticConfig:
    """Size and structure of a generated log.

    Parameters
    ----------
    num_events
        Events of ordinary users, exactly; at least ``MIN_USER_EVENTS`` for each.
    num_users, num_items, num_clusters
        Counts; items are dealt evenly to clusters.
    num_days, first_day
        Time span of the log; days are UTC.
    follow_share
        Share of the odd events of a user that follow their predecessor by the rule.
    repeat_share
        Share of the odd events that repeat an earlier item of the user.
    stray_share
        Share of the remaining events that fall on any cluster, mostly as views and dislikes.
    heavy_user_events
        Events of one further user, a bot with id :attr:`heavy_user`; 0 for none.
    seed
        Another seed gives another log.

    Raises
    ------
    ValueError
        If a count or a share is out of range.
    """

    num_events: int = 150_000
    num_users: int = 3_000
    num_items: int = 1_000
    num_clusters: int = 20
    num_days: int = 30
    first_day: date = date(2025, 1, 1)
    follow_share: float = 0.5
    repeat_share: float = 0.1
    stray_share: float = 0.1
    heavy_user_events: int = 0
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("num_users", "num_items", "num_clusters", "num_days"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        least = MIN_USER_EVENTS * self.num_users
        if self.num_events < least:
            raise ValueError(
                f"num_events is {self.num_events}; {self.num_users} users need at least {least}"
            )
        if self.num_clusters > self.num_items:
            raise ValueError(
                f"num_clusters is {self.num_clusters}; at most num_items, {self.num_items}, can be"
            )
        if self.heavy_user_events < 0:
            raise ValueError(f"heavy_user_events is {self.heavy_user_events}; 0 is for none")
        for name in ("follow_share", "repeat_share", "stray_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if self.follow_share + self.repeat_share > 1:
            raise ValueError("follow_share + repeat_share exceed 1; lower one of them")

    @property
    def heavy_user(self) -> str:
        """Id of the bot that ``heavy_user_events`` asks for."""
        return f"u{self.num_users}"

    @property
    def total_events(self) -> int:
        """Events of all users, the bot's too."""
        return self.num_events + self.heavy_user_events
