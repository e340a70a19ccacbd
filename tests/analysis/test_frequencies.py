"""Frequencies compared: what is new was never visited, and is told apart by what fits."""

from __future__ import annotations

import json
import math

import pytest
import torch
from omegaconf import OmegaConf

from tests.runs import run_script, trained
from vis_rpg.analysis import frequencies
from vis_rpg.analysis.frequencies import compare_frequencies, new_arrangements, shifted

EXPLORATION = OmegaConf.create({"width": 64, "batch_size": 128})


def one_at_a_time(rows: int) -> torch.Tensor:
    """Coordinates (rows, 2, 2) of two objects in [-1, 1], of which only one has moved."""
    places = torch.rand(rows, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moved = torch.arange(rows) % 2
    return places * torch.nn.functional.one_hot(moved, 2)[..., None]


def test_new_arrangements_are_those_that_were_not_visited() -> None:
    found = new_arrangements(one_at_a_time(4000), torch.Generator().manual_seed(0))
    assert 0.1 * frequencies.SAMPLES < len(found) < 0.5 * frequencies.SAMPLES
    assert (found.abs().amax(-1) > 0).all()  # both have moved
    everywhere = torch.rand(200_000, 2, 1)
    assert not len(new_arrangements(everywhere, torch.Generator().manual_seed(0)))


def test_shifted_states_differ_in_one_coordinate_and_stay_in_range() -> None:
    still = torch.tensor([[[-1.0], [0.5]], [[3.0], [0.7]]])
    found = shifted(still, torch.Generator().manual_seed(0)).flatten(1)
    known = still.flatten(1)
    least = (found[:, None] - known).abs()
    nearest = least.sum(-1).argmin(1)
    moved = least[torch.arange(len(found)), nearest]
    assert ((moved > 1e-6).sum(1) == 1).all()
    assert torch.allclose(moved.amax(0), torch.tensor([0.2, 0.01]), atol=1e-6)
    assert (found >= known.amin(0) - 1e-6).all() and (found <= known.amax(0) + 1e-6).all()


def test_low_frequencies_tell_arrangements_apart_and_high_ones_small_shifts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frequencies, "UPDATES", 500)
    found = compare_frequencies(one_at_a_time(4000), [1, 6], EXPLORATION, 1e-3, 0)
    low, high = found["1"], found["6"]
    assert low["loss"] < 0.1 * high["loss"]
    assert low["new_arrangements"] > 1.2 * high["new_arrangements"] > 0
    assert high["small_shifts"] > 5 * low["small_shifts"]
    assert found == compare_frequencies(one_at_a_time(4000), [1, 6], EXPLORATION, 1e-3, 0)


def test_the_command_says_it_of_the_states_in_replay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frequencies, "UPDATES", 20)
    run = trained("task=block_push", "steps=150")
    assert run_script(monkeypatch, "diagnose", f"run={run}", "episodes=2", "frequencies=[2,6]") == 0
    found = json.loads((run / "diagnosis.json").read_text())["rnd_by_frequencies"]
    assert list(found) == ["2", "6"] and "RND, 6 frequencies" in capsys.readouterr().out
    for figures in found.values():
        assert list(figures) == ["loss", "new_arrangements", "small_shifts"]
        assert all(value is None or math.isfinite(value) for value in figures.values())


@pytest.mark.parametrize(
    "overrides", [("task=maze", "steps=150"), ("task=block_push", "exploration=none", "steps=150")]
)
def test_runs_without_a_bonus_on_objects_are_one_line(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(*overrides)
    assert run_script(monkeypatch, "diagnose", f"run={run}", "frequencies=[2]") == 2
    assert "error: frequencies=...: only for runs from state" in capsys.readouterr().err
