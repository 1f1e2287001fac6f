"""The task stream: a pure function of (seed, step), each epoch a permutation."""

import pytest

from atod_jax.episodes.tasks import TaskSource
from atod_jax.records import Task

TASKS = [Task(id=str(i), kind="k", payload=None) for i in range(7)]


def test_batches_are_pure_functions_of_seed_and_step():
    one, two = TaskSource(TASKS, seed=3), TaskSource(TASKS, seed=3)
    two.batch(9, 4)  # asking for another step first changes nothing
    assert [t.id for t in one.batch(2, 4)] == [t.id for t in two.batch(2, 4)]
    other = TaskSource(TASKS, seed=4)
    assert [t.id for s in range(7) for t in one.batch(s, 4)] != [
        t.id for s in range(7) for t in other.batch(s, 4)
    ]


def test_every_task_once_per_epoch_across_batch_borders():
    stream = [t.id for step in range(7) for t in TaskSource(TASKS, seed=0).batch(step, 4)]
    for epoch in range(4):
        assert sorted(stream[7 * epoch : 7 * epoch + 7]) == [str(i) for i in range(7)]
    assert stream[:7] != stream[7:14]


def test_no_tasks_is_an_error_that_names_the_option():
    with pytest.raises(ValueError, match=r"env\.train_split .* env\.alfworld\.games"):
        TaskSource([], seed=0)
