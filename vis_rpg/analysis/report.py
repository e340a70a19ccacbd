"""Evaluate an agent and record its rollouts: vis-rpg evaluate run=runs/x episodes=50."""

from __future__ import annotations

import math

import torch

from vis_rpg.analysis.evaluation import Evaluation, Interval, evaluate
from vis_rpg.analysis.video import record_rollouts
from vis_rpg.checks import device
from vis_rpg.config import EvaluateConfig
from vis_rpg.errors import UserError
from vis_rpg.training.load import load
from vis_rpg.training.published import interactions, locate, output_folder


def main(config: EvaluateConfig) -> None:
    """Evaluate an agent, print and write the figures, and record a video."""
    run = locate(config.run)
    # One observation at a time: more threads wait for each other, for long on a busy machine.
    torch.set_num_threads(1)
    actor, env = load(run, str(device(config.device)), config.seed)
    step, folder = interactions(run), output_folder(config.run, config.out)
    evaluation = evaluate(actor, env, config.episodes, config.seed)
    evaluation.write(folder / "evaluation.json", step=step)
    print(
        table(
            evaluation,
            f"{config.run} at {step:,} interactions: {config.episodes} episodes, mean actions, "
            f"seed {config.seed}",
        )
    )
    print(f"figures: {folder / 'evaluation.json'}")
    if config.videos:
        try:
            record_rollouts(actor, env, folder / "rollouts.mp4", config.seed)
        except UserError as error:
            raise UserError(
                f"no video of {config.run}: {error}; videos=false does without"
            ) from error
        print(f"rollouts, a row for each z: {folder / 'rollouts.mp4'}")


def table(evaluation: Evaluation, title: str) -> str:
    """Format the figures for the terminal."""

    def line(name: str, value: float, interval: Interval | None = None) -> str:
        spread = f"   95% interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
        return f"  {name:<24}{value:9.3f}{spread}"

    return "\n".join(
        [
            title,
            line("success in last step", evaluation.eval_success, evaluation.eval_success_interval),
            line(
                "success in any step",
                evaluation.eval_success_any,
                evaluation.eval_success_any_interval,
            ),
            *(
                line(f"by the {name}'s criterion", share)
                for name, share in evaluation.eval_criteria.items()
            ),
            line("return", evaluation.eval_return, evaluation.eval_return_interval),
            *(
                [line("coverage of these", evaluation.eval_coverage)]
                if math.isfinite(evaluation.eval_coverage)
                else []
            ),
        ]
    )
