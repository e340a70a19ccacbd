"""What a config must satisfy before any work starts: each mistake one line with its key, its value
and the way out."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from tests.small import config
from vis_rpg.checks import check, check_resumable, device
from vis_rpg.compose import compose
from vis_rpg.errors import UserError
from vis_rpg.resources import CONFIG_DIR


@pytest.mark.parametrize(
    "words",
    [
        ("task=maze",),
        ("task=block_push", "task.blocks=1", "obs=pixels"),
        ("task=block_push", "obs=pixels", "perception=cnn"),
        ("task=gym", "task.id=Pendulum-v1"),
        ("agent=mbsac", "exploration=none"),
        ("agent.latent.kind=categorical", "agent.latent.prior=learned"),
        ("override=authors",),
        ("preset=paper",),
        ("preset=cpu",),
    ],
)
def test_what_ships_is_accepted(words: tuple[str, ...]) -> None:
    check(compose(["device=cpu", *words]))


@pytest.mark.parametrize("name", ["train", "discover", "ablate", "visualise_slots"])
@pytest.mark.parametrize("task", sorted(path.stem for path in (CONFIG_DIR / "task").glob("*.yaml")))
def test_every_script_that_takes_a_task_takes_all_of_them(name: str, task: str) -> None:
    assert compose([f"task={task}"], name).task.name


def test_a_task_sets_its_own_values_and_the_command_line_has_the_last_word() -> None:
    for words in ([], ["agent=mbsac"], ["preset=cpu"], ["override=authors"]):
        assert compose(["task=maze", *words]).agent.beta == 0.01
    assert compose(["task=maze", "agent.beta=0.3"]).agent.beta == 0.3
    assert compose(["task=block_push"]).agent.beta == 0.005


def test_a_gymnasium_id_is_a_dense_task_and_one_word_gives_it_a_bonus() -> None:
    dense = compose(["task=gym"])
    assert (dense.exploration.name, dense.agent.latent.prior) == ("none", "learned")
    assert compose(["task=gym", "exploration=object_rnd"]).exploration.name == "object_rnd"


def test_presets_and_overrides_reach_the_agent() -> None:
    assert compose(["preset=cpu"]).agent.batch_size < compose(["preset=paper"]).agent.batch_size
    assert (
        compose(["override=authors"]).agent.entropy_in_target != compose([]).agent.entropy_in_target
    )
    assert compose(["preset=cpu", "agent.batch_size=7"]).agent.batch_size == 7
    dense = compose(["task=ant_push", "override=authors_dense"]).agent
    assert (dense.latent.kind, dense.latent.prior, dense.q_reduce, dense.reward_scale) == (
        "categorical",
        "learned",
        "mean",
        5.0,
    )


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (
            "agent.latent.kind=gausian",
            r"agent.latent.kind=gausian: choose one of gaussian, categorical, mixed, sphere, none "
            r"\(nearest: gaussian\)",
        ),
        ("agent.latent.prior=learnt", r"agent.latent.prior=learnt: .*nearest: learned"),
        ("exploration.rnd_input=frame", "exploration.rnd_input=frame: .*nearest: frames"),
        (
            "runtime=graphs",
            r"runtime=graphs: choose one of auto, eager, compile, graph \(nearest: graph\)",
        ),
        (
            "runtime=graph",
            "runtime=graph: CUDA graphs need a CUDA device; on a CPU use runtime=compile or "
            "runtime=eager",
        ),
        (
            "precision=float16",
            "precision=float16: choose one of float32, bfloat16 .*nearest: bfloat16",
        ),
        ("agent.replay_device=cpu", "agent.replay_device=cpu: choose one of auto, device, host"),
        ("render.backend=vulkan", "render.backend=vulkan: choose one of auto, egl, warp"),
        ("seeds=0", "seeds=0: must be above 0"),
        ("steps=0", "steps=0: must be above 0"),
        ("agent.horizon=0", "agent.horizon=0: must be above 0"),
        ("agent.batch_size=-1", "agent.batch_size=-1: must be above 0"),
        ("agent.lr=0", "agent.lr=0: must be above 0"),
        ("agent.envs=0", "agent.envs=0: must be above 0"),
        ("exploration.batch_size=0", "exploration.batch_size=0: must be above 0"),
        ("logger.log_every=0", "logger.log_every=0: must be above 0"),
        ("agent.gamma=1.5", "agent.gamma=1.5: must lie between 0 and 1"),
        ("agent.tau=-0.1", "agent.tau=-0.1: must lie between 0 and 1"),
        (
            "agent.latent.dim=0",
            r"agent.latent.dim=0: must be at least 1 \(agent=mbsac is the agent without z\)",
        ),
        ("agent.latent.relabel=1.5", "agent.latent.relabel=1.5: must lie between 0 and 1"),
        ("agent.latent.kind=sphere agent.latent.dim=1", "agent.latent.kind=sphere needs 2 or more"),
        (
            "agent.latent.kind=sphere agent.latent.prior=learned",
            "agent.latent.kind=sphere has no learned prior",
        ),
        (
            "agent.latent.entropy_decay=[5,5]",
            r"agent.latent.entropy_decay=\[5, 5\]: give the interactions",
        ),
        (
            "agent.latent.entropy_decay=[5]",
            r"agent.latent.entropy_decay=\[5\]: give the interactions",
        ),
        (
            "perception=cnn",
            "perception=cnn does not see obs=state: use perception=state with obs=state",
        ),
        ("agent=sac agent.horizon=3", "agent=sac has no model: agent.horizon=1"),
        ("agent=tdmpc agent.planner.elites=900", "agent.planner: .* elites at most samples"),
        ("agent=cem agent.planner.policy_samples=512", "agent.planner: samples must be more than"),
        (
            "obs=pixels perception=cnn exploration=icm exploration.rnd_input=frames",
            "exploration=icm predicts vectors: exploration.rnd_input=frames is for object_rnd",
        ),
        (
            "perception.near=0.1 exploration.rnd_input=moving_slots",
            "perception.near=0.1: only with exploration.rnd_input=slots",
        ),
        ("task=bandit", "task=bandit has one step and an exact reward"),
        ("device=quantum", "device=quantum: choose auto, cpu, cuda or cuda:N"),
        ("device=meta", "device=meta: choose auto, cpu, cuda or cuda:N"),
        (
            "device=cuda:99",
            "device=cuda:99: this machine has .* CUDA devices, and number 99 is asked",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line(word: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        check(config(*word.split()))
    assert "\n" not in str(error.value)


def test_state_cannot_be_looked_at_as_pixels() -> None:
    with pytest.raises(UserError, match="perception=state does not see obs=pixels"):
        check(config("task=block_push", "obs=pixels", "perception=state"))


def test_the_device_is_found_or_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device("auto").type == "cpu"
    with pytest.raises(UserError, match="device=cuda: this machine has 0 CUDA devices"):
        device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device("auto").type == "cuda"
    assert device("cuda:1").index == 1


@pytest.mark.parametrize(
    "word",
    [
        "seed=3",
        "agent.lr=1e-3",
        "task.blocks=1",
        "agent.latent.dim=5",
        "agent=mbsac",
        "exploration=none",
        "precision=bfloat16",
    ],
)
def test_resuming_with_other_settings_names_the_key_and_both_values(word: str) -> None:
    saved = config("task=block_push")
    with pytest.raises(
        UserError, match=r"resume=true: [a-z_.]+=.*, but the run in .* was begun with [a-z_.]+="
    ) as error:
        check_resumable(config("task=block_push", word, f"out={saved.out}"), saved)
    key = word.partition("=")[0]
    assert key in ("agent", "exploration") or f"{key}=" in str(error.value)


def test_what_may_change_between_start_and_resume() -> None:
    saved = config("task=block_push")
    words = [
        "steps=900",
        "device=auto",
        "runtime=compile",
        "agent.replay_device=host",
        "resume=true",
        "out=elsewhere",
        "logger.log_every=7",
        "logger.wandb=mine",
    ]
    check_resumable(config("task=block_push", *words), saved)
    check_resumable(saved, OmegaConf.create(OmegaConf.to_yaml(saved)))
