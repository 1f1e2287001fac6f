"""A few minutes on a laptop: a weak student learns household games from a teacher and from rewards.

    bash launch/quickstart.sh

Two cores, no download. The held-out games have room layouts and object-receptacle pairs that
never occur in training.
"""

from ml_collections import ConfigDict

from configs import household


def get_config() -> ConfigDict:
    """ATOD against the mediocre teacher, 60 iterations."""
    return household.get_config("algo=atod,teacher=mid,steps=60")
