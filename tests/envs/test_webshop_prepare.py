"""The goals of a shop as a TFDS data set, read back without TensorFlow."""

import json

import pytest

from atod_jax.envs import prepared, webshop
from atod_jax.envs.webshop import prepare


@pytest.mark.parametrize("split", webshop.ENVIRONMENT.splits)
def test_the_data_set_holds_every_goal(split, tmp_path_factory):
    cfg = webshop.Config()
    folder = tmp_path_factory.mktemp("goals")
    records = {r["id"]: r for r in read(prepare.prepare(cfg, folder), split)}
    tasks = webshop.tasks(cfg, split)
    shop = webshop.open_shop(cfg.data, cfg.seed)
    assert set(records) == {task.id for task in tasks}
    for task in tasks[:50]:
        goal, record = shop.goal(task.payload), records[task.id]
        assert (record["instruction"], record["asin"]) == (goal.instruction, goal.asin)
        assert tuple(map(tuple, json.loads(record["options"]))) == goal.options
        assert tuple(record["attributes"]) == goal.attributes
        assert float(record["price_limit"]) == goal.price_limit


def read(folder, split):
    return list(prepared.records(folder, split))
