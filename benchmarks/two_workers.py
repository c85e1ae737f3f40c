"""What a second worker adds on one machine: `python benchmarks/two_workers.py [--space digits] [--trials 40]`.

Real Ray workers measure the accuracy of the same random policies on the search split, once with one worker and once
with two, each after a policy that fills the caches. Prints trials an hour, and what memory the second worker takes: the
proportional memory (PSS) of the workers, which divides what they share, as a multiple of the model's weights; first of
the whole process, then without what a Python process with the libraries takes. Run it with nothing else on the machine:
each worker needs a core to itself. One JSON document comes last.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from skipsearch import Policy
from skipsearch.evaluators.subject import load_subject
from skipsearch.search.space.load import load_space
from skipsearch.search.space.space import Space
from skipsearch.search.workers.cluster import start_local
from skipsearch.search.workers.ray_pool import Pool
from skipsearch.search.workers.worker import Job

LIBRARIES = (
    "import lm_eval.models.hf_vlms, ray, torch, skipsearch.search.workers.worker; print('ready', flush=True); input()"
)


def memory(pids: list[int]) -> int:
    """The proportional memory of some processes, in bytes: pages that several map count in parts."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def libraries_memory() -> int:
    """The private memory of a Python process that has imported what a worker imports, in bytes."""
    with subprocess.Popen([sys.executable, "-c", LIBRARIES], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        process.stdin.write("\n")
        process.stdin.close()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def random_policies(layers: int, count: int) -> list[Policy]:
    """Policies that leave out some sublayers."""
    draw = random.Random(0)
    kinds: list[dict[str, str]] = [{}, {}, {"ffn": "skip"}, {"attention": "skip"}]
    made = [{layer: choice for layer in range(layers) if (choice := draw.choice(kinds))} for _ in range(count)]
    return [Policy.model_validate({"layers": choices}) for choices in made]


def measured(space: Space, count: int, policies: list[Policy]) -> dict[str, Any]:
    """Trials an hour, and the memory of all workers after the trials."""
    workers = space.workers.model_copy(update={"count": count})
    pool = Pool(space.model_copy(update={"workers": workers}))
    try:
        pids = [described["pid"] for described in pool.describe()]
        answered(pool, [Policy()] * count)
        begun = time.perf_counter()
        answered(pool, policies)
        seconds = time.perf_counter() - begun
        return {"workers": count, "trials_per_hour": 3600 * len(policies) / seconds, "bytes": memory(pids)}
    finally:
        pool.stop_workers()


def answered(pool: Pool, policies: list[Policy]) -> None:
    """Let the pool measure some policies.

    Raises:
        SystemExit: one of them fails.
    """
    coming, open_jobs = list(policies), 0
    while coming or open_jobs:
        while coming and open_jobs < pool.size:
            pool.submit(Job(coming.pop(), ["accuracy"]))
            open_jobs += 1
        found = pool.next()
        if found is not None:
            open_jobs -= 1
            if found[1].failure is not None:
                sys.exit(f"a policy failed: {found[1].failure}")


def main() -> None:
    """Measure, print two lines, and one JSON document last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="digits")
    parser.add_argument("--trials", type=int, default=40)
    given = parser.parse_args()
    space = load_space(given.space).space
    model = load_subject(space.model).model
    weights, layers = sum(part.nbytes for part in model.parameters()), model.config.get_text_config().num_hidden_layers
    libraries = libraries_memory()
    start_local(num_cpus=2)
    rows = [measured(space, count, random_policies(layers, given.trials)) for count in (1, 2)]
    ratio = rows[1]["trials_per_hour"] / rows[0]["trials_per_hour"]
    further = rows[1]["bytes"] - rows[0]["bytes"]
    print(f"trials an hour: {rows[0]['trials_per_hour']:.0f} and {rows[1]['trials_per_hour']:.0f}, {ratio:.2f} times")
    print(
        f"the second worker takes {further / 1e6:.0f} MB, {further / weights:.2f} times the weights; without a process "
        f"that has the libraries, {libraries / 1e6:.0f} MB, {(further - libraries) / weights:.2f} times"
    )
    document = {
        "benchmark": "two_workers",
        "space": given.space,
        "weights": weights,
        "libraries": libraries,
        "rows": rows,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
