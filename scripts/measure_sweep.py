"""Time a sweep of eight debug runs on Ray nodes of one processor: measure_sweep.py NODES [kill].

With `kill`, the last node is killed as soon as two runs have checkpoints. It needs the extra `ray`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

RUNS = 8
NODE = {"object_store_memory": 80_000_000, "include_dashboard": False}


def main() -> None:
    """Start the nodes, run the sweep, and say how long it took and what is missing."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    nodes, kills = int(sys.argv[1]), "kill" in sys.argv
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, wait=False, **NODE)
        cluster.wait_for_nodes(timeout=300)
        with TemporaryDirectory() as folder:
            words = [
                *("--multirun", f"seed=range({RUNS})", "task=maze", "preset=debug", "resume=true"),
                *("device=cpu", "runtime=eager", f"out='{folder}/${{seed}}'", "steps=600"),
                *("logger.checkpoint_every=50", f"hydra.sweep.dir={folder}/sweep"),
                *("hydra/launcher=ray", f"hydra.launcher.ray.init.address='{cluster.address}'"),
            ]
            train = Path(__file__).with_name("train.py")
            began = time.perf_counter()
            sweep = subprocess.Popen([sys.executable, str(train), *words])
            while kills and sweep.poll() is None:
                found = Path(folder).glob("*/checkpoints/step-*/state.json")
                if len({path.parents[2] for path in found}) >= 2:
                    cluster.remove_node(list(cluster.worker_nodes)[-1], allow_graceful=False)
                    kills = False
                time.sleep(0.1)
            code = sweep.wait()
            done = len(list(Path(folder).glob("*/summary.json")))
            seconds = time.perf_counter() - began
            killed = ", one killed" if "kill" in sys.argv else ""
            print(
                f"{nodes} nodes{killed}: {done} of {RUNS} runs done in {seconds:.0f} s, exit {code}"
            )
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
