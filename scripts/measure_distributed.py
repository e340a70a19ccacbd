"""Time updates shared among processes: measure_distributed.py UPDATES [key=value ...].

It is started by `torchrun --nproc-per-node=N scripts/measure_distributed.py ...`, for one process
without torchrun.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from vis_rpg import distributed
from vis_rpg.benchmarks.updates import filled


def main() -> None:
    """Say how many updates a second N processes make, and what their reductions alone take."""
    updates, words = int(sys.argv[1]), sys.argv[2:]
    with distributed.process_group():
        processes = distributed.world_size()
        words = ["task=block_push", "runtime=eager", f"agent.envs={processes}", *words]
        learner = filled(words).learner
        gradients = [flat.flat.clone() for flat in learner.flat.values()]
        update_s = seconds(learner.step, updates, learner.device)
        reduce_s = seconds(
            lambda: [distributed.mean(gradient) for gradient in gradients], updates, learner.device
        )
        if distributed.rank() == 0:
            sizes = {part: flat.flat.numel() for part, flat in learner.flat.items()}
            print(
                f"{processes} processes of {torch.get_num_threads()} threads: "
                f"{1 / update_s:.2f} updates/s; all gradients once, {sum(sizes.values()):,} "
                f"numbers: {1e3 * reduce_s:.2f} ms; {sizes}"
            )


def seconds(call: Callable[[], object], count: int, device: torch.device) -> float:
    """Return the seconds of a call after two calls to warm up; processes begin and end together."""
    for step in range(count + 2):
        if step == 2:
            wait(device)
            began = time.perf_counter()
        call()
    wait(device)
    return (time.perf_counter() - began) / count


def wait(device: torch.device) -> None:
    """Wait for the device and for the other processes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if dist.is_initialized():
        dist.barrier()


if __name__ == "__main__":
    main()
