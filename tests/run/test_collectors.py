"""Where episodes come from: what making a collector costs."""

from runs import TOKENIZER, typed

from atod_jax.run import parts
from atod_jax.run.collectors import make_collector
from atod_jax.run.models import load_tokens
from configs import household


class Lazy:
    """A billion tasks, of which each takes a while to build."""

    built = 0

    def __len__(self):
        return 10**9

    def __getitem__(self, index):
        self.built += 1
        raise AssertionError("no task is needed yet")


def test_no_task_is_built_before_it_is_played():
    c = household.get_config("algo=sft,smoke")
    c.rollout.source = "expert"
    cfg, tasks = typed(c), Lazy()
    env = parts.environment(cfg, load_tokens(TOKENIZER))
    env = env._replace(plugin=env.plugin._replace(tasks=lambda settings, split: tasks))
    collect = make_collector(
        cfg, env, student=None, teacher=None, algorithm=None, between_turns=lambda: None
    )
    assert collect.groups == cfg.rollout.tasks * cfg.rollout.group
    assert tasks.built == 0
