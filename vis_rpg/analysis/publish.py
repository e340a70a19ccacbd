"""Publish a trained agent as a small folder with a card, or on the Hugging Face Hub.

Of several seeds the run of median success is published, and the card has the curves of all.
"""

from __future__ import annotations

import math
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from vis_rpg.analysis.curves import minutes_of, seed_runs
from vis_rpg.analysis.evaluation import evaluate
from vis_rpg.analysis.explored_states import read_metrics
from vis_rpg.analysis.report import table
from vis_rpg.analysis.video import record_rollouts
from vis_rpg.compose import compose_unchecked, config_files, groups_of
from vis_rpg.config import PublishConfig
from vis_rpg.errors import UserError, one_line, require
from vis_rpg.resources import CONFIG_DIR
from vis_rpg.schema import flatten, shown
from vis_rpg.training import published
from vis_rpg.training.load import load, load_whole_config, runtime_record

EPISODES = 50
"""Of the card's evaluation."""
MOST_POINTS = 40
"""Of a seed's curves in the card."""
CURVES = ("success", "coverage", "return")
GROUPS = ("task", "obs", "perception", "agent", "exploration", "preset", "override")
NOT_METHOD = ("seeds", "out", "device", "runtime", "resume", "render.backend", "logger")
"""Settings that the command of a card leaves out."""


def make(
    run: Path, folder: Path, name: str, commit: str | None = None, processor: str | None = None
) -> dict[str, Any]:
    """Publish a run into a folder, evaluated as it can be loaded from there.

    Args:
        run: The folder of a run, or of several seeds.
        folder: It is made.
        name: Of the agent.
        commit: Of the training, where the run has not recorded it.
        processor: Of the training, where the run has not recorded it.

    Returns:
        The card.

    Raises:
        UserError: There is no complete run, seeds differ in their settings or length, it is not
            known what trained them, or the agent is too large.
    """
    runs = seed_runs(run)
    configs = [load_whole_config(each) for each in runs]
    check_seeds(runs, configs)
    steps = [published.interactions(each) for each in runs]
    require(
        len(set(steps)) == 1,
        f"{run}: its seeds have trained for {', '.join(map(str, sorted(set(steps))))} "
        "interactions: continue those that were cut off (resume=true), or publish one of them",
    )
    seeds = [curves(each, steps[0]) for each in runs]
    origin = recorded(runs[0], commit, processor)
    finals = [[own[key][-1] for key in CURVES] for own in seeds]
    chosen = median_run(finals)
    config, success = configs[chosen], [final[0] for final in finals]
    actor, _ = load(runs[chosen])
    perception = actor.agent.model.perception
    card = {
        "name": name,
        "task": config.task.name,
        "obs": config.obs.kind,
        "agent": config.agent.name,
        "interactions": steps[0],
        "perception_frames": perception.pretraining_frames,
        "seed": config.seed,
        "chosen": f"seed {config.seed} of {', '.join(str(each.seed) for each in configs)}: the "
        "run of median success of the last 100 training episodes (by seed "
        f"{', '.join(map(shown, success))}; ties by coverage, then return)"
        if len(runs) > 1
        else f"seed {config.seed}, the only one",
        "command": command(config),
        **origin,
        "seeds": [{"seed": each.seed, **own} for each, own in zip(configs, seeds, strict=True)],
        "config": portable(config),
    }
    published.write(folder, actor.agent.keep_acting_parts(), card)
    evaluation = evaluate(*load(folder), EPISODES)
    print(table(evaluation, f"{name}: {EPISODES} episodes, mean actions"))
    card = published.read(folder).card | {"evaluation": evaluation.as_json()}
    published.write_card(folder, card)
    (folder / "README.md").write_text(model_card(card))
    return card


def median_run(finals: Sequence[Sequence[float | None]]) -> int:
    """Return the index of the run of median last success; of the lower one of two.

    Args:
        finals: The last CURVES of each run; later ones decide ties.
    """
    order = sorted(
        range(len(finals)), key=lambda i: [-math.inf if x is None else x for x in finals[i]]
    )
    return order[(len(finals) - 1) // 2]


def check_seeds(runs: list[Path], configs: list[DictConfig]) -> None:
    """Raise UserError where runs that should differ in their seed differ in another setting."""
    first, *others = (_method(OmegaConf.to_container(config)) for config in configs)
    for run, other in zip(runs[1:], others, strict=True):
        for key in sorted((first.keys() | other.keys()) - {"seed", "steps"}):
            require(
                first.get(key) == other.get(key),
                f"{run} is no other seed of {runs[0]}: {key}={shown(other.get(key))}, "
                f"not {shown(first.get(key))}",
            )


def curves(run: Path, step: int) -> dict[str, Any]:
    """Read a run's curves up to its checkpoint, thinned: interactions, CURVES, and minutes."""
    lines = [line for line in read_metrics(run) if line["step"] <= step]
    require(bool(lines), f"{run}: nothing was logged before its checkpoint at {step:,}")
    rows = np.linspace(0, len(lines) - 1, min(MOST_POINTS, len(lines))).round().astype(int)
    kept = [lines[row] for row in rows]
    found: dict[str, Any] = {"minutes": minutes_of(lines[-1:])[0]}
    found["interactions"] = [line["step"] for line in kept]
    for key in CURVES:
        values = [line.get(key) for line in kept]
        found[key] = [None if value is None else round(value, 4) for value in values]
    return found


def recorded(run: Path, commit: str | None, processor: str | None) -> dict[str, str]:
    """Return commit and processor of a run, as given or as runtime.json says."""
    known = runtime_record(run)
    origin = {"commit": commit, "processor": processor}
    for key, given in origin.items():
        origin[key] = given or known.get(key)
        require(bool(origin[key]), f"{run} has not recorded its {key}: give {key}=...")
    return {key: str(value) for key, value in origin.items()}


def portable(config: DictConfig) -> Any:
    """Return a config without paths of this machine."""
    kept = OmegaConf.to_container(config)
    assert isinstance(kept, dict)
    kept["out"] = f"runs/{Path(config.out).name}"
    for key in ("checkpoint", "weights", "bonus_slots"):
        if Path(str(config.perception.get(key))).is_absolute():
            kept["perception"][key] = Path(config.perception[key]).name
    return kept


def command(config: DictConfig) -> str:
    """Return a command line that composes a run's config, but for NOT_METHOD.

    Options are chosen group by group, each for the fewest settings that are left to name, of the
    group's own section first: what else an option of `task` sets, later groups may set as well.
    """
    wanted = _method(portable(config))

    def composed(words: list[str]) -> dict[str, Any]:
        found = compose_unchecked(words, "train")
        required = OmegaConf.missing_keys(found)
        for key in required:  # other settings may follow from it
            OmegaConf.update(found, key, wanted.get(key))
        values = _method(OmegaConf.to_container(found, resolve=True))
        return values | dict.fromkeys(required, "???")

    def left(words: list[str]) -> list[str]:
        """The words that are still needed to get from what these compose to the config."""
        found = composed(words)
        changed = [
            f"{'' if key in found else '+'}{key}={shown(value).replace(', ', ',')}"
            for key, value in wanted.items()
            if key not in found or found[key] != value
        ]
        gone = [key for key in found if key not in wanted]
        # A run from before a setting was trained with the value that it is given since.
        since = published.ADDED
        return changed + [f"~{key}" for key in gone if found[key] != since.get(key, key)]

    def lacking(group: str, words: list[str]) -> tuple[int, int]:
        """How many words are still needed, in the group's own section and in all."""
        needed = left(words)
        return sum(word.lstrip("+~").startswith(f"{group}.") for word in needed), len(needed)

    with config_files(CONFIG_DIR):
        options = groups_of("train")
        words: list[str] = []
        for group in GROUPS:
            tried = [[*words, f"{group}={option}"] for option in options[group]]
            tried = tried if group in ("task", "obs") else [words, *tried]
            words = min(tried, key=partial(lacking, group))
        words = words + left(words)
    return shlex.join(["vis-rpg", "train", *words])


def _method(settings: Any) -> dict[str, Any]:
    return {
        key: value
        for key, value in flatten(settings).items()
        if not {key, key.partition(".")[0]} & {*NOT_METHOD}
    }


def model_card(card: dict[str, Any]) -> str:
    """Format a card as a README, with the front matter that the Hugging Face Hub reads."""
    found, frames = card["evaluation"], card["perception_frames"]
    low, high = found["eval_success_interval"]
    front = {
        "library_name": "vis-rpg",
        "license": "mit",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "robotics", card["task"]],
    }
    rows = "\n".join(
        f"| {seed['seed']} | {shown(seed['success'][-1])} | {shown(seed['coverage'][-1])} | "
        f"{shown(seed['return'][-1])} | {seed['minutes']} |"
        for seed in card["seeds"]
    )
    seen = f", after {frames:,} frames for its slot model" if frames else ""
    return f"""---
{OmegaConf.to_yaml(front).strip()}
---
# {card["name"]}

{card["agent"]} on {card["task"]} from {card["obs"]}, {card["interactions"]:,} interactions{seen}.

- Evaluation, {found["episodes"]} episodes by mean actions: success {found["eval_success"]:.2f}
  (95% interval {low:.2f} to {high:.2f}), return {found["eval_return"]:.2f}.
- Published: {card["chosen"]}.
- The same settings, with the code of the commit below: `{card["command"]}`.
- Commit {card["commit"]}; {card["processor"]}.

| seed | success of the last 100 training episodes | coverage | return | minutes |
| --- | --- | --- | --- | --- |
{rows}

`card.json` has the whole config and the curves.

```python
import vis_rpg

agent, env = vis_rpg.load("FOLDER, zoo:NAME or hf:USER/REPO")
```
"""


def upload(folder: Path, repo: str) -> str:
    """Upload a published agent.

    Args:
        folder: Of the agent.
        repo: USER/REPO on the Hugging Face Hub; it is made where it does not exist.

    Returns:
        Its address.

    Raises:
        UserError: The Hub does not take it.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        url = str(api.create_repo(repo, exist_ok=True))
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=list(published.FILES),
            commit_message="Publish an agent of vis-rpg",
        )
    except Exception as error:  # a wrong name or token, no network: whatever it raises
        raise UserError(f"to=hf:{repo} cannot be uploaded ({one_line(error)})") from error
    return url


def check_destination(to: str) -> None:
    """Raise UserError where nothing can be published to."""
    if not to.startswith("hf:"):
        taken = Path(to).exists()
        require(not taken, f"to={to}: something is there already: remove it, or give another to")
        return
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(to.removeprefix("hf:"))
    except HFValidationError as error:
        raise UserError(f"to={to}: write to=hf:USER/REPO ({error})") from None
    require(
        get_token() is not None,
        f"to={to}: no token of the Hugging Face Hub is there: run hf auth login, or set HF_TOKEN",
    )


def main(config: PublishConfig) -> None:
    """Publish a run to a folder or to the Hub."""
    torch.set_num_threads(1)
    check_destination(config.to)
    repo = config.to.removeprefix("hf:") if config.to.startswith("hf:") else None
    if published.is_published(config.run):
        require(repo is not None, f"run={config.run} is published already: give to=hf:USER/REPO")
        folder = published.locate(config.run)
        published.read(folder)
        print(f"uploaded: {upload(folder, str(repo))}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "agent"
        name = Path(config.to if repo is None else repo).name
        make(Path(config.run), folder, name, config.commit, config.processor)
        if config.video:
            try:
                record_rollouts(*load(folder), folder / published.VIDEO)
            except UserError as error:
                raise UserError(f"no video: {error}; video=false does without") from error
        if repo is not None:
            print(f"uploaded: {upload(folder, repo)}")
            return
        shutil.copytree(folder, config.to)
    print(f"published: {config.to}")
