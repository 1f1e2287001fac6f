"""Speed and memory of the native shop: `pytest -m bench -s tests/bench/bench_webshop.py`.

ATOD_WEBSHOP_PRODUCTS sets the size of the large made-up catalogue (default 100,000; the full
official one has 1,180,000: about seven minutes, 2.3 GB of memory and 1.2 GB of disk). Its words
are drawn by Zipf's law, in texts as long as the official ones.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from atod_jax.envs import webshop
from atod_jax.envs.webshop import shop
from atod_jax.envs.webshop.catalogue import Product

pytestmark = pytest.mark.bench

LARGE = int(os.environ.get("ATOD_WEBSHOP_PRODUCTS", "100000"))
WORDS = 300_000  # in the made-up language
TITLE, DESCRIPTION, BULLET = 16, 45, 20  # words


def made_up(count: int) -> Iterator[Product]:
    """Products whose words follow Zipf's law; a batch of random numbers at a time."""
    rng = np.random.default_rng(0)
    share = np.cumsum(1 / (np.arange(1, WORDS + 1) + 10))
    names = np.array([f"{'bcdfglmnprst'[i % 12]}a{i:x}o" for i in range(WORDS)])
    per_product = TITLE + DESCRIPTION + BULLET
    for start in range(0, count, 1000):
        draws = rng.random((min(1000, count - start), per_product)) * share[-1]
        texts = names[np.searchsorted(share, draws)]
        for number, words in enumerate(texts.tolist(), start):
            yield _product(number, words)


def _product(number: int, words: list[str]) -> Product:
    attributes = (f"{words[0]} {words[1]}", f"{words[2]} {words[3]}")
    return Product(
        asin=f"B{(number * 7919) % 1_000_000_007:09d}",
        title=" ".join(words[:TITLE]),
        description=" ".join(words[TITLE : TITLE + DESCRIPTION]),
        bullets=(" ".join(words[-BULLET:]), " ".join(words[:BULLET])),
        prices=(10.0 + number % 90,),
        options={"color": ("red", "blue"), "size": ("small", "large", words[4])},
        attributes=attributes,
        query=words[5],
        category="c",
        product_category=f"{words[6]} \u203a {words[7]}",
        request=f"Find me {attributes[0]} {words[5]} with {attributes[1]}",
        wanted=attributes,
    )


def queries(opened: shop.Shop, count: int) -> list[str]:
    """What a shopper types: the request of a goal and its options."""
    rng = random.Random(0)
    goals = (opened.goal(rng.randrange(opened.goal_count)) for _ in range(count))
    return [" ".join([*g.attributes, g.query, *(value for _, value in g.options)]) for g in goals]


def megabytes(field: str) -> float:
    """A field of /proc/self/smaps_rollup, such as Private_Dirty: what no other process shares."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def worker(folder: str) -> None:
    """What one worker needs beyond the imports, and how fast it searches; run as a process."""
    before = megabytes("Private_Dirty")
    opened = shop.from_folder(Path(folder), lambda: [])
    for query in queries(opened, 100):
        opened.search(query)
    times = []
    for query in queries(opened, 1100)[100:]:
        start = time.process_time()  # other load on the machine does not count
        opened.search(query)
        times.append(1000 * (time.process_time() - start))
    median, p95 = np.percentile(times, [50, 95])
    print(
        f"worker: {megabytes('Private_Dirty') - before:.1f} MB of its own beyond {before:.0f} MB of"
        f" imports, {megabytes('Rss'):.0f} MB resident with the mapped files;"
        f" query median {median:.2f} ms, p95 {p95:.2f} ms, slowest {max(times):.1f} ms"
    )


def test_a_large_catalogue(tmp_path):
    folder = tmp_path / "index"
    start = time.perf_counter()
    opened = shop.from_folder(folder, lambda: made_up(LARGE))
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    print(
        f"\n{len(opened):,} products, {opened.goal_count:,} goals: built in"
        f" {time.perf_counter() - start:.0f} s, {size:.2f} GB on disk"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(2):  # the second finds the pages in memory
        subprocess.run([sys.executable, __file__, str(folder)], check=True, env=environment)


def test_steps_per_second():
    cfg = webshop.Config(data=os.environ.get("ATOD_WEBSHOP_DATA", ""))
    start = time.perf_counter()
    tasks = webshop.tasks(cfg, "train")
    env = webshop.make(cfg)
    first = env.reset(tasks[0])
    print(f"\n{cfg.data or 'generated'}: first page after {time.perf_counter() - start:.2f} s")
    assert first.commands
    rng, steps, start = random.Random(0), 0, time.perf_counter()
    while time.perf_counter() - start < 5:
        now = env.reset(tasks[rng.randrange(len(tasks))])
        for _ in range(15):
            if "search[<your query>]" in now.commands:
                words = tasks[rng.randrange(len(tasks))].kind
                command = f"search[{words} {rng.random():.2f}]"  # never twice the same
            else:
                command = rng.choice(now.commands)
            result = env.step(command)
            now, steps = result.observation, steps + 1
            if result.done:
                break
    print(f"{steps / (time.perf_counter() - start):,.0f} steps/s on one core")


if __name__ == "__main__":
    worker(sys.argv[1])
