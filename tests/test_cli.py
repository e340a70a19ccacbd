"""The command line: a mistake is one line that names the way out, and what is meant arrives."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.runs import run_script
from vis_rpg.cli import COMMANDS, main, run
from vis_rpg.compose import compose
from vis_rpg.config import SCHEMAS
from vis_rpg.errors import ModelRejected, UserError, require
from vis_rpg.resources import CONFIG_DIR
from vis_rpg.schema import Bounds, Seed, check_settings, describe

CONFIGS = {
    "train.yaml": """
        defaults: [{task: maze}, {agent: rpg}, _self_, {preset: null}]
        seed: 0
        steps: 1000
        rate: 0.1
        out: runs/${seed}
        resume: false
        limit: null
        sizes: [32, 32]
        """,
    "task/maze.yaml": "{size: 5, kwargs: {}}",
    "task/block_push.yaml": "{blocks: 2}",
    "task/gym.yaml": "id: ???",
    "agent/rpg.yaml": "{horizon: 3, latent: {kind: gaussian, dim: 12}}",
    "agent/latent/categorical.yaml": "{kind: categorical, dim: 5}",
    "preset/cpu.yaml": """
        # @package _global_
        steps: 5
        """,
}


@dataclass
class FakeTask:
    OPEN = True

    id: str = ""
    blocks: int = 2
    kwargs: dict = field(default_factory=dict)


@dataclass
class FakeLatent:
    kind: str
    dim: int


@dataclass
class FakeAgent:
    horizon: int
    """Steps
    of a segment."""
    latent: FakeLatent


@dataclass
class Fake:
    seed: Seed
    """Of everything random."""
    steps: int
    rate: float
    out: str | None
    resume: bool
    limit: Annotated[int, Bounds(0, above=True)] | None
    sizes: list[int]
    task: FakeTask
    agent: FakeAgent


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    for name, text in CONFIGS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    return folder


@pytest.fixture
def cli(configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command with these words in an empty folder; returns (exit code, configs that its job
    got)."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*words: str, raises: BaseException | None = None) -> tuple[int, list[DictConfig]]:
        got: list[DictConfig] = []

        def job(cfg: DictConfig) -> None:
            got.append(cfg)
            if raises is not None:
                raise raises

        return run(job, words, config_dir=configs, schema=Fake), got

    return call


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sed=1"], "sed=1: no such setting; did you mean seed?"),
        (["agent.latent.kidn=x"], "did you mean agent.latent.kind?"),
        (["horizon=5"], "did you mean agent.horizon?"),
        (["agnt=rpg"], "did you mean agent?"),
        (["xyzzy=1"], "xyzzy=1: no such setting; there are agent, agent/latent, limit,"),
        (
            ["task=blok_push"],
            "task=blok_push: no such option; did you mean block_push? (there are block_push, "
            "gym, maze)",
        ),
        (["task=7"], "task=7: no such option (there are"),
        (["task=block_push", "task.size=3"], "task.size=3: no such setting"),
        (["steps=abc"], "steps=abc: expected a whole number"),
        (["steps=1e5"], "expected a whole number; write steps=100000"),
        (["steps=1.5"], "steps=1.5: expected a whole number"),
        (["steps=true"], "steps=true: expected a whole number"),
        (["steps=null"], "steps=null: expected a whole number"),
        (["rate=fast"], "rate=fast: expected a number"),
        (["resume=1"], "resume=1: expected true or false"),
        (["out=7"], "out=7: expected text; write 'out=\"7\"'"),
        (["sizes=3"], "sizes=3: expected a list"),
        (["sizes=[3,x]"], "sizes[1]=x: expected a whole number"),
        (["agent.latent=3"], "agent.latent=3: expected a section"),
        (["seed=0,1"], "seed=0,1: several values; write seed=[...] for a list, or add --multirun"),
        (["--multirun", "seed=0,1", "steps=5,x"], "steps=x: expected a whole number"),
        (["seed=-1"], "seed=-1: must lie between 0 and 4294967295"),
        (["seed=4294967296"], "seed=4294967296: must lie between"),
        (["seed"], "seed: not a setting that can be read; write key=value"),
        (["out=a(b"], "out=a(b: not a setting that can be read; quote"),
        (["--seed", "1"], "--seed: no such flag; settings are written key=value"),
        (["~rate"], "rate is missing: it is needed"),
        (["+agent.depth=3"], "agent.depth: no such setting; there are horizon, latent"),
        (["limit=text"], "limit=text: expected a whole number"),
        (["limit=0"], "limit=0: must be above 0"),
        (["task=gym"], "task.id=... must be given"),
        (["out=${sedd}"], "Interpolation key 'sedd' not found"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true: this setting of Hydra's has no effect"),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib: launchers run the jobs of a sweep"),
        (
            ["--multirun", "hydra/launcher=rai", "seed=0,1"],
            "hydra/launcher=rai: no such launcher; did you mean ray? (there are basic, joblib, ray",
        ),
        (["--config-name", "tarin"], "Cannot find primary config 'tarin'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_before_any_work(
    cli, capfd, words: list[str], says: str
) -> None:
    code, got = cli(*words)
    lines = capfd.readouterr().err.splitlines()
    assert (code, got) == (2, [])
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert says in lines[0]


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["task=gym", "task.id=Pusher-v5"], "task.id", "Pusher-v5"),
        (["task=block_push", "task.blocks=1"], "task.blocks", 1),
        (["rate=1"], "rate", 1),
        (["limit=5"], "limit", 5),
        (["limit=null"], "limit", None),
        (["out=null"], "out", None),
        (["seed=3"], "out", "runs/3"),
        (["preset=cpu"], "steps", 5),
        (["preset=cpu", "steps=7"], "steps", 7),
        (["+task.kwargs.depth=2"], "task.kwargs.depth", 2),
        (["sizes=[8]"], "sizes", [8]),
        (["agent.latent={dim: 4}"], "agent.latent", {"kind": "gaussian", "dim": 4}),
        (["+agent/latent=categorical"], "agent.latent.kind", "categorical"),
        (["steps=3", "--config-name", "train", "seed=1"], "seed", 1),
    ],
)
def test_what_is_meant_arrives(cli, capfd, words: list[str], key: str, value: object) -> None:
    code, [cfg] = cli(*words)
    got = OmegaConf.select(cfg, key)
    assert code == 0
    assert (OmegaConf.to_container(got) if OmegaConf.is_config(got) else got) == value
    assert capfd.readouterr().err == ""


def test_a_run_leaves_no_files_of_hydras(cli) -> None:
    assert cli("seed=1")[0] == 0
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("name", ["extra", "a=b, c d", "[é]{x}", 'it\'s "so"', "a\\b"])
def test_an_extra_config_folder_adds_options(cli, tmp_path: Path, name: str) -> None:
    extra = tmp_path / name / "task"
    extra.mkdir(parents=True)
    (extra / "mine.yaml").write_text("size: 9")
    code, [cfg] = cli("--config-dir", str(extra.parent), "task=mine")
    assert (code, cfg.task.size) == (0, 9)


def test_a_config_folder_can_be_replaced(cli, configs: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(configs, tmp_path / "other"))
    (other / "train.yaml").write_text((configs / "train.yaml").read_text().replace("1000", "4"))
    code, [cfg] = cli("--config-path", str(other))
    assert (code, cfg.steps) == (0, 4)


def test_multirun_runs_every_combination(cli) -> None:
    code, got = cli("--multirun", "seed=0,1", "task=glob(*)", "task.id=x", "steps=range(1,3)")
    assert code != 0, "task.id exists in one of the tasks only"
    code, got = cli("--multirun", "seed=0,1", "steps=range(1,3)")
    assert code == 0
    assert [(cfg.seed, cfg.steps) for cfg in got] == [(0, 1), (0, 2), (1, 1), (1, 2)]


def test_a_failing_job_of_a_sweep_does_not_stop_the_others(cli, capfd) -> None:
    code, got = cli("--multirun", "seed=0,1", raises=UserError("no such door"))
    assert (code, len(got)) == (2, 2)
    assert capfd.readouterr().err.splitlines() == ["error: no such door"] * 2


def test_a_model_that_is_rejected_ends_with_3(cli, capfd) -> None:
    code, got = cli("--multirun", "seed=0,1", raises=ModelRejected("model.rejected"))
    assert (code, len(got)) == (3, 2)
    assert capfd.readouterr().err.splitlines() == ["error: model.rejected"] * 2


def test_a_path_that_cannot_be_written_is_one_line(cli, capfd) -> None:
    assert cli(raises=PermissionError(errno.EACCES, "Permission denied", "runs/x"))[0] == 2
    assert capfd.readouterr().err == "error: runs/x: Permission denied\n"


def test_showing_the_config_or_the_help_runs_nothing(cli, capfd) -> None:
    code, got = cli("task=gym", "--cfg", "job")
    assert (code, got) == (0, [])
    assert "id: ???" in capfd.readouterr().out
    code, got = cli("--help")
    assert (code, got) == (0, [])
    shown = capfd.readouterr().out
    assert "task=block_push | gym | maze" in shown
    assert all(
        " ".join(line.split()) in " ".join(shown.split())
        for line in ("seed=0 Of everything random.", "agent.horizon=3 Steps of a segment.")
    )


@pytest.mark.parametrize("word", ["task=maze", "task=x", "agent=rpg"])
def test_a_group_that_the_command_does_not_read_is_no_setting(
    monkeypatch: pytest.MonkeyPatch, capsys, word: str
) -> None:
    assert run_script(monkeypatch, "evaluate", "run=runs/x", word) == 2
    says = capsys.readouterr().err
    known = "device, episodes, out, run, seed, videos"
    assert says == f"error: {word}: no such setting; there are {known}\n"
    assert run_script(monkeypatch, "evaluate", "--help") == 0
    assert "groups of settings" not in capsys.readouterr().out


def test_a_user_error_of_many_lines_is_printed_as_one(cli, capfd) -> None:
    assert cli(raises=UserError("first\n  second"))[0] == 2
    assert capfd.readouterr().err == "error: first second\n"


def test_a_full_disk_names_the_path(cli, capfd) -> None:
    assert cli(raises=OSError(errno.ENOSPC, "No space left on device", "runs/x/model"))[0] == 2
    assert "no space left for runs/x/model" in capfd.readouterr().err
    assert cli(raises=OSError(errno.ENOSPC, "No space left on device"))[0] == 2
    assert "no space left for runs/0" in capfd.readouterr().err


def test_a_thread_that_finds_the_disk_full_leaves_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    assert run_script(monkeypatch, "evaluate", "--help") == 0
    capsys.readouterr()
    for error in (OSError(errno.ENOSPC, "No space left on device"), ValueError("a fault")):

        def end(error: Exception = error) -> None:
            raise error

        thread = threading.Thread(target=end)
        thread.start()
        thread.join()
    says = capsys.readouterr().err
    assert "ValueError: a fault" in says
    assert "No space left" not in says


def test_ctrl_c_ends_with_130_and_one_line(cli, capfd) -> None:
    assert cli(raises=KeyboardInterrupt())[0] == 130
    assert capfd.readouterr().err == "stopped by Ctrl-C\n"


def test_an_unexpected_error_keeps_its_traceback(cli) -> None:
    with pytest.raises(FileNotFoundError):
        cli(raises=FileNotFoundError(errno.ENOENT, "No such file or directory", "absent"))


def test_compose_gives_what_a_script_would_get(configs: Path) -> None:
    cfg = compose(["task=block_push", "seed=2"], config_dir=configs, schema=Fake)
    assert (cfg.out, cfg.task.blocks, "hydra" in cfg) == ("runs/2", 2, False)
    with pytest.raises(UserError, match="did you mean seed"):
        compose(["sed=2"], config_dir=configs, schema=Fake)


def test_absent_configs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no configs there"):
        compose(config_dir=tmp_path / "absent")


def test_a_broken_default_is_one_clear_error(configs: Path) -> None:
    (configs / "task" / "maze.yaml").unlink()
    with pytest.raises(UserError, match="Could not find 'task/maze'"):
        compose(config_dir=configs)


def test_require_raises_only_when_the_condition_fails() -> None:
    require(True, "unseen")
    with pytest.raises(UserError, match="steps=0: must be positive"):
        require(False, "steps=0: must be positive")


def test_every_command_is_listed_has_its_config_and_a_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vis-rpg", "--help"])
    main()
    shown = capsys.readouterr().out
    for name, (config_name, _, about) in COMMANDS.items():
        assert name in shown and about in shown
        assert (CONFIG_DIR / f"{config_name}.yaml").exists() and config_name in SCHEMAS
        assert (CONFIG_DIR.parent / "scripts" / f"{name.replace('-', '_')}.py").exists()


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vis-rpg", "--version"])
    main()
    assert capsys.readouterr().out == f"vis-rpg {version('vis-rpg')}\n"


def test_a_command_starts_without_a_word_on_compilers() -> None:
    asked = "import sys, vis_rpg.cli; print('torch.utils.cpp_extension' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_command_that_does_not_exist_is_one_line_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vis-rpg", "trian", "seed=1"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "trian: no such command; did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_setting_has_a_meaning(name: str) -> None:
    lacking = {key for key, about in describe(SCHEMAS[name]) if not about}
    assert {key.split(".")[-1] for key in lacking} <= {"name", "slots", "learning_rate", "seed"}


def test_sections_are_told_apart_by_their_names() -> None:
    @dataclass
    class Red:
        name: Literal["red"]
        depth: int

    @dataclass
    class Blue:
        name: Literal["blue"]

    @dataclass
    class Scene:
        colour: Red | Blue

    Scene.__annotations__["colour"] = Red | Blue
    check_settings(Scene, {"colour": {"name": "red", "depth": 1}})
    with pytest.raises(UserError, match="colour.depth: no such setting; there are name"):
        check_settings(Scene, {"colour": {"name": "blue", "depth": 1}})
    with pytest.raises(
        UserError, match=r"colour.name=bleu: choose one of red, blue \(nearest: blue"
    ):
        check_settings(Scene, {"colour": {"name": "bleu"}})
