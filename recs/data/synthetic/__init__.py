"""Generated event logs with planted structure, for the demo, the tests and runs at scale.

What is planted, so that a model can be seen to find it:

- **clusters**: items fall into clusters, their first category; a user prefers one to three of
  them and stays in one for a session of a few events.
- **popularity**: within a cluster the items' popularity is Zipf's (exponent 1), and users' activity
  is skewed in the same way.
- **rules**: an item is often followed, in the user's next event, by the next item of its cluster.
- **repeats**: users come back to earlier items.
- **dislikes**: most fall on items outside of the user's clusters.
- **features**: an item's text is made of its cluster's words; age and gender pull half of the users
  to one of their clusters.

Every value is a pure function of ``(seed, user, event index)`` by counter-based hashing, so a log
is the same for any number of partitions, and nothing is collected or kept per user: the same job
makes a hundred thousand events or a billion.
"""

from recs.data.synthetic.config import MIN_USER_EVENTS, SyntheticConfig
from recs.data.synthetic.files import BAD_KINDS, write
from recs.data.synthetic.values import SyntheticLog, generate

__all__ = [
    "BAD_KINDS",
    "MIN_USER_EVENTS",
    "SyntheticConfig",
    "SyntheticLog",
    "generate",
    "write",
]
