"""Search settings by Ray Tune and ASHA: vis-rpg tune task=maze 'space=[...]' metric=coverage.

Every trial is a run of `vis-rpg train` in a folder of its own, with all that a run writes. A trial
that its machine loses, or that a search continued with `resume=true` finds unfinished, goes on from
its last checkpoint.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import IntervalSweep
from omegaconf import DictConfig, OmegaConf

from vis_rpg.analysis.explored_states import read_metrics
from vis_rpg.checks import check_same
from vis_rpg.compose import compose, parse_override
from vis_rpg.config import TuneConfig
from vis_rpg.errors import UserError, one_line, require
from vis_rpg.training.trainer import Trainer

RETRIES = 3
"""Times that a trial is begun again after its machine or process was lost."""
SETTINGS = "search.json"
"""What a search was begun with."""


def main(config: TuneConfig) -> None:
    """Run the trials; print the best with its command, and write trials.csv into `out`.

    Raises:
        UserError: A setting cannot be, Ray is not installed, or no trial logged the metric.
    """
    try:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.basic_variant import BasicVariantGenerator
    except ImportError:
        raise UserError("vis-rpg tune needs Ray: pip install 'vis-rpg[ray]'") from None
    out = Path(config.out).absolute()
    space = dict(dimension(word) for word in config.space)
    require(bool(space), "space=[]: nothing to search; give KEY=interval(LOW,HIGH) or the like")
    words = [*config.train, f"seed={config.seed}"]
    drawn = {key: each.sample() for key, each in space.items()}
    steps = compose([*words, *drawn_words(drawn)]).steps  # checked before Ray starts
    trainable = tune.with_resources(
        partial(trial, words=words, metric=config.metric, out=out, folder=os.getcwd()),
        {"cpu": config.cpus, "gpu": config.gpus},
    )
    state = out / "ray"
    asked = cast(dict[str, Any], OmegaConf.to_container(cast(DictConfig, config)))
    asked = {key: value for key, value in asked.items() if key not in ("cpus", "gpus")}
    if config.resume and tune.Tuner.can_restore(str(state)):
        # Ray goes on with the settings that it has saved, whatever is asked for.
        check_same(asked, begun_with(out / SETTINGS) or asked, f"the search in {out}")
        tuner = tune.Tuner.restore(str(state), trainable, resume_errored=True)
    else:
        require(not state.exists(), f"out={out}: a search is there already; add resume=true")
        out.mkdir(parents=True, exist_ok=True)
        (out / SETTINGS).write_text(json.dumps(asked, indent=1))
        asha = ASHAScheduler(
            time_attr="step",
            max_t=steps,
            grace_period=max(1, round(config.grace * steps)),
            reduction_factor=config.reduction,
        )
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=config.metric,
                mode="max",
                num_samples=config.trials,
                scheduler=asha,
                search_alg=BasicVariantGenerator(random_state=config.seed),
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name=state.name,
                storage_path=str(out),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )
    try:
        results = tuner.fit()
    except Exception as error:  # Ray's own, as of a cluster that does not answer
        raise UserError(f"Ray: {one_line(error)}; continue with resume=true") from error
    results.get_dataframe().to_csv(out / "trials.csv", index=False)
    if results.errors:
        first = one_line(results.errors[0]).splitlines()[0]
        line = f"note: {len(results.errors)} of {len(results)} trials failed, the first by {first}"
        print(line, file=sys.stderr)
    reported = [each for each in results if config.metric in (each.metrics or {})]
    require(
        bool(reported),
        f"metric={config.metric}: no trial logged it; {len(results)} runs are in {out}",
    )
    best = results.get_best_result()
    found = [*words, *drawn_words(best.config)]
    print(
        f"best of {len(results)} trials: {config.metric} {best.metrics[config.metric]:.3g} at "
        f"{best.metrics['step']:,.0f} of {steps:,} interactions, in {best.metrics['run']}\n"
        f"{shlex.join(['vis-rpg', 'train', *found])}"
    )


def begun_with(path: Path) -> dict[str, Any] | None:
    """Read the settings that a search was begun with; None of a version that did not write them."""
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): give another out") from None
    return settings


def dimension(word: str) -> tuple[str, Any]:
    """Read a setting of the space in Hydra's grammar of sweeps.

    Args:
        word: Such as agent.gamma=interval(0.9,0.99).

    Returns:
        The setting, and what Ray Tune draws for it.

    Raises:
        UserError: It names no values.
    """
    from ray import tune

    override = parse_override(word)
    require(
        override.is_sweep_override(),
        f"space: {word}: one value; write KEY=interval(LOW,HIGH), KEY=int(interval(LOW,HIGH)), "
        "KEY=tag(log,interval(LOW,HIGH)) or KEY=choice(A,B)",
    )
    key, values = override.get_key_element(), override.value()
    if not isinstance(values, IntervalSweep):
        return key, tune.choice(list(override.sweep_string_iterator()))
    low, high = cast(float, values.start), cast(float, values.end)
    log = "log" in values.tags
    require(
        low < high and (low > 0 or not log),
        f"space: {word}: the limits must rise, and be above 0 on a logarithmic scale",
    )
    if isinstance(low, int):
        return key, (tune.lograndint if log else tune.randint)(low, high)
    return key, (tune.loguniform if log else tune.uniform)(low, high)


def drawn_words(drawn: dict[str, Any]) -> list[str]:
    """What Ray Tune drew, as settings of the command line."""
    return [f"{key}={value}" for key, value in drawn.items()]


def trial(drawn: dict[str, Any], words: list[str], metric: str, out: Path, folder: str) -> None:
    """Train with the drawn settings, or go on from the trial's checkpoint; report every log line.

    Args:
        drawn: Values by setting.
        words: Settings that all trials share.
        metric: Number of metrics.jsonl.
        out: Folder of the search.
        folder: Its working directory.
    """
    from ray import tune

    os.chdir(folder)
    run = out / tune.get_context().get_trial_id()
    trainer = Trainer(compose([*words, *drawn_words(drawn), f"out='{run}'", "resume=true"]))
    reported = trainer.step_count

    def report() -> bool:
        nonlocal reported
        logged = trainer.last_log[2]
        if logged > reported:
            reported = logged
            line = read_metrics(run)[-1]
            if line.get(metric) is not None:
                tune.report({metric: line[metric], "step": line["step"], "run": str(run)})
        return False

    trainer.run(report)
