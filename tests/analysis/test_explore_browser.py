"""The explorer's page in a real browser: every control does what it says, without an error.

It needs Debian's chromium and the package playwright (without its browsers), and is skipped where
one of them is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.test_explore import SLOTS
from tests.analysis.test_explore_serve import served, server_module
from tests.runs import run_script, trained
from vis_rpg.analysis.explorer import page

pytest.importorskip("bokeh")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
]
PATIENCE = 120_000
"""For a busy machine, in milliseconds."""
PLACES_OF_DOTS = """() => {
    const view = Object.values(Bokeh.index.roots).find(
        (root) => root.model.renderers?.some((one) => one.data_source?.name === "z_points"));
    const { data_source: dots } = view.model.renderers.find(
        (one) => one.data_source.name === "z_points");
    const box = view.el.getBoundingClientRect();
    return dots.data.x.map((x, k) => [
        box.x + view.frame.x_scale.compute(x), box.y + view.frame.y_scale.compute(dots.data.y[k])]);
}"""

START_ON_THE_MAP = """() => {
    const view = Object.values(Bokeh.index.roots).find(
        (root) => root.model.renderers?.some((one) => one.data_source?.name === "map_points"));
    const box = view.el.getBoundingClientRect();
    return [box.x + view.frame.x_scale.compute(0), box.y + view.frame.y_scale.compute(0)];
}"""


SIZES = pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["desk", "phone"])
RUN = ("task=maze", "steps=300", "seeds=2")


@contextmanager
def opened_page(address: str, size: tuple[int, int]) -> Iterator[Any]:
    """A page, open; what the browser complains of and what it fetches elsewhere is an error."""
    width, height = size
    wrong: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": width, "height": height})
        opened.set_default_timeout(PATIENCE)
        opened.on(
            "console",
            lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None,
        )
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        own = ("data:", "blob:", address)
        opened.on(
            "request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url)
        )
        opened.goto(address)
        opened.wait_for_selector("body[data-ready]")
        yield opened
        browser.close()
    assert wrong == []


def points(opened: Any, source: str) -> dict[str, Any]:
    return opened.evaluate(f"() => source({json.dumps(source)}).data")


def move(opened: Any, slider: str, share: float) -> None:
    opened.evaluate(
        """([id, share]) => {
            const slider = document.getElementById(id);
            slider.value = share * slider.max;
            slider.dispatchEvent(new Event("input"));
        }""",
        [slider, share],
    )
    opened.evaluate("() => new Promise((done) => requestAnimationFrame(() => done(1)))")


@SIZES
def test_every_control_does_what_it_says(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "COUNT", 3)
    run, out = trained(*RUN), tmp_path / "report.html"
    assert run_script(monkeypatch, "explore", f"run={run}", f"out={out}") == 0
    with opened_page(out.as_uri(), size) as opened:
        use_every_control(opened)


@SIZES
def test_a_served_page_rolls_out_live_and_loads_anew_when_its_run_goes_on(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "COUNT", 2)
    with served(trained(*RUN)) as server, opened_page(server.url, size) as opened:
        wide = opened.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, "the page is wider than the screen"
        opened.locator("#z").scroll_into_view_if_needed()
        (x0, y0), (x1, y1) = opened.evaluate(PLACES_OF_DOTS)
        opened.mouse.click((x0 + x1) / 2, (y0 + y1) / 2)
        opened.wait_for_function("() => document.getElementById('live-u').value !== '0'")
        opened.fill("#live-start", "2")
        opened.click("#live-roll")
        opened.wait_for_selector("#live-group option", state="attached")
        assert opened.inner_text("#play") == "Pause"
        assert opened.input_value("#live-u") in opened.inner_text("#live-group")
        opened.fill("#live-start", "")
        opened.click("#live-roll")
        opened.wait_for_function(
            "() => document.getElementById('live-note').textContent.includes('give a number')"
        )
        opened.click("#play")
        opened.uncheck("#follow")
        opened.check("#follow")
        with opened.expect_navigation():
            server.version = "another"
            monkeypatch.setattr(server_module, "newest", lambda run: "another")


@SIZES
def test_runs_are_compared_and_chosen_and_the_worst_frames_of_slots_play(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "COUNT", 1)
    runs, out = f"run=[{trained(*RUN)},{trained(*SLOTS)}]", tmp_path / "report.html"
    assert run_script(monkeypatch, "explore", runs, f"out={out}") == 0
    with opened_page(out.as_uri(), size) as opened:
        assert opened.locator("#runs tr").count() == 3
        assert "task.name" in opened.inner_text("#runs")
        opened.select_option("#curve-key", "coverage")
        assert points(opened, "curve_lines")["width"] == [3, 1.5]
        assert len(points(opened, "curve_bands")["x"]) == 1, "one run has two seeds"
        opened.locator("#runs a").last.click()
        opened.wait_for_function("() => document.body?.dataset.ready && chosen === 1")
        assert opened.inner_text("#title") == "block_push from pixels"
        wide = opened.evaluate("() => document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, "the page is wider than the screen"
        cases = opened.evaluate("() => data.rollouts.slots.cases")
        for index, case in [*enumerate(cases)][::4]:
            opened.locator("#failures button").nth(index).click()
            there = opened.evaluate("() => [player.index, player.step]")
            assert there == [case["rollout"], case["step"]]
            key, on = ("ArrowLeft", -1) if case["step"] else ("ArrowRight", 1)
            opened.keyboard.press(key)
            assert opened.evaluate("() => player.step") == case["step"] + on
        assert opened.locator("#each-slot canvas").count() == opened.evaluate(
            "() => data.rollouts.slots.colours.length"
        )
        opened.wait_for_function(
            """() => [...document.querySelectorAll("#slots, #reconstruction")].every((canvas) =>
                new Set(canvas.getContext("2d").getImageData(0, 0, 256, 256).data).size > 5)"""
        )
        assert "model error, 1 step" in opened.inner_text("#strips")


def use_every_control(opened: Any) -> None:
    wide = opened.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, "the page is wider than the screen"

    opened.select_option("#curve-key", "coverage")
    assert len(points(opened, "curve_lines")["x"]) == 3, "two seeds and their mean"
    assert len(points(opened, "curve_bands")["x"]) == 1
    assert opened.locator("#runs-section").is_hidden()
    assert opened.locator("#failures-section").is_hidden()

    every = len(points(opened, "map_points")["step"])
    move(opened, "map-to", 0.5)
    steps = points(opened, "map_points")["step"]
    assert 0 < len(steps) < every and max(steps) <= 150
    unseen = len(points(opened, "map_cells")["left"])
    move(opened, "map-to", 1.0)
    assert len(points(opened, "map_cells")["left"]) < unseen
    by_z = set(points(opened, "map_points")["colour"])
    opened.select_option("#map-colour", "step")
    opened.wait_for_function(
        f"() => source('map_points').data.colour[0] === {json.dumps('#440154')}"
    )
    assert by_z != set(points(opened, "map_points")["colour"])
    opened.select_option("#map-colour", "bonus")
    opened.wait_for_function(
        "() => document.getElementById('map-legend').innerText.includes('bonus')"
    )

    opened.locator("#map").scroll_into_view_if_needed()
    box = opened.locator("#map").bounding_box()
    if opened.viewport_size["width"] > 800:
        opened.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
        opened.mouse.down()
        opened.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"], steps=4)
        opened.mouse.up()
    else:
        x, y = opened.evaluate(START_ON_THE_MAP)
        opened.mouse.click(x, y)
    opened.wait_for_function("() => source('map_region').data.left.length === 1")
    assert opened.locator("#region-list button").count() == 3 + 5
    assert "5 recorded episodes of training and 3 rollouts" in opened.inner_text("#region-note")
    opened.locator("#region-list button").last.click()
    assert opened.input_value("#rollout") == "7" and opened.inner_text("#play") == "Pause"
    opened.wait_for_function("() => source('map_path').data.x.length > 3")
    opened.click("#region-clear")
    assert opened.locator("#region-list button").count() == 0

    first = points(opened, "map_points")["x"]
    other = 1 - opened.evaluate("() => data.rollouts.seed")
    opened.select_option("#map-seed", label=str(other))
    opened.wait_for_function(f"() => source('map_points').data.x[50] !== {first[50]}")
    assert "choose it" in opened.inner_text("#region-note")
    assert points(opened, "map_path")["x"] == []

    opened.locator("#z").scroll_into_view_if_needed()
    x, y = opened.evaluate(PLACES_OF_DOTS)[2]
    opened.mouse.click(x, y)
    opened.wait_for_function("() => document.getElementById('rollout').value === '2'")
    assert opened.inner_text("#play") == "Pause"
    opened.click("#play")
    opened.locator("#step").focus()

    def step() -> int:
        return int(opened.input_value("#step"))

    before = step()
    opened.keyboard.press("ArrowRight")
    assert step() == before + 1
    opened.keyboard.press("ArrowLeft")
    assert step() == before
    opened.keyboard.press("ArrowUp")
    assert opened.input_value("#rollout") == "1" and step() == 0
    opened.keyboard.press("Space")
    opened.wait_for_function("() => +document.getElementById('step').value > 2")
    opened.keyboard.press("Space")
    assert opened.inner_text("#play") == "Play"
    box = opened.locator(".strip .chart").first.bounding_box()
    opened.mouse.click(box["x"] + box["width"] / 2, box["y"] + 5)
    assert step() == 25
    drawn = "() => new Set(document.getElementById('frame').getContext('2d')"
    drawn += ".getImageData(0, 0, 256, 256).data).size"
    assert opened.evaluate(drawn) > 5, "the frame is blank"

    opened.click("summary")
    opened.fill("#config-find", "agent.latent.kind")
    assert opened.locator("#config tr:visible").count() == 1
