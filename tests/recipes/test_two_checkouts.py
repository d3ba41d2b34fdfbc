from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from recipes.checkouts import PATIENCE_S, ROOT, Checkouts, environment
from recipes.programs import free_port, started, tiny_preset

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
OUR_PAGES = "adapters/aegir_adapters/web/templates/page.html"

CELLS_SHOWN = """() => Math.max(0, ...Bokeh.documents.flatMap(document =>
    [...document._all_models.values()]
        .filter(model => model.type === 'ServerSentDataSource')
        .map(model => model.data.mark.filter(mark => mark === 'cell').length)))"""
"""How many cells the heat map has."""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(
        not all(shutil.which(name, path=environment()["PATH"]) for name in ("just", "curl", "jq")),
        reason="needs just (PyPI: rust-just), curl and jq",
    ),
]


def with_pages_of_its_own(checkout: Path, heading: str) -> None:
    """Give a checkout the project's code, and a page that says something else."""
    for package in ("adapters", "aegir_stream"):
        shutil.copytree(
            ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    page = checkout / OUR_PAGES
    text = page.read_text("utf-8")
    assert "Over time" in text
    page.write_text(text.replace("Over time", heading))


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run what a user would paste into a terminal."""
    return subprocess.run(
        ["bash", "-c", command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_secondary_checkout_watches_the_primarys_training(
    checkouts: Checkouts, tmp_path: Path
) -> None:
    """Trainer and gateway in the primary, pages and curl in the secondary: live features arrive."""
    with_pages_of_its_own(checkouts.secondary, "Over time, as the branch shows it")
    port = free_port()
    gateway = f"http://127.0.0.1:{port}"
    theirs = {"AEGIR_P5_OUTPUT_DIR": str(tmp_path / "run"), "AEGIR_GATEWAY_PORT": str(port)}
    preset = str(tiny_preset(tmp_path, steps=100_000))
    with (
        started(checkouts.primary, "gateway", overrides=theirs, says=gateway),
        started(
            checkouts.primary,
            "p5-train",
            "--policy-preset",
            preset,
            overrides=theirs,
            says="reward",
        ),
        started(
            checkouts.secondary,
            "ui-dev",
            overrides={"AEGIR_GATEWAY_URL": gateway},
            says=gateway,
        ) as ui,
        sync_playwright() as playwright,
    ):
        told = next(line for line in ui.lines if gateway.encode() in line).decode()
        assert str(checkouts.secondary) in told
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.goto(told.partition(" ")[0])
        page.get_by_role("heading", name="as the branch shows it").wait_for()
        page.wait_for_function(f"least => ({CELLS_SHOWN})() > least", arg=0)
        shown = page.evaluate(CELLS_SHOWN)
        page.wait_for_function(f"least => ({CELLS_SHOWN})() > least", arg=shown)
        browser.close()

        asked = shell(f"curl -sS {gateway}/api/p5/runs | jq -c '[.count, .p5_dir_exists, .p5_dir]'")
        assert json.loads(asked.stdout)[1:] == [True, str(tmp_path / "run")]
        streamed = shell(f"curl -sSN {gateway}/api/p5/sae/stream | head -20")
        lines = streamed.stdout.splitlines()
        assert len(lines) == 20
        assert "event: source" in lines
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert json.loads(data[-1])["top_feature_indices"]
