"""A few minutes on a laptop: a weak student learns household games from a teacher and from rewards.

    bash launch/quickstart.sh

Two CPU cores: 2 to 4 minutes after installation. No download. On 512 held-out games, whose room
layouts and object-receptacle pairs never occur in training, the student comes to solve more than
its teacher; README has the numbers.
"""

from ml_collections import ConfigDict

from . import household


def get_config() -> ConfigDict:
    """ATOD against the mediocre teacher, 60 iterations."""
    return household.get_config("algo=atod,teacher=mid,steps=60")
