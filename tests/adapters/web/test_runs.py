from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from aegir_adapters.web import create_app

pytestmark = pytest.mark.anyio


async def get_runs(app: Starlette) -> Any:
    """Ask the application for its table of checkpoints."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.get("/api/p5/runs")
    assert answer.status_code == 200
    return answer.json()


async def test_one_row_per_checkpoint_in_the_order_of_steps(run: Any) -> None:
    """Rows hold the promised keys, sort by number, and count the records of the snapshot."""
    for step in (2, 10):
        await run.step(step)
        await run.save(step)

    table = await get_runs(create_app(run.directory.cfg))

    root = run.directory.root
    assert table == {
        "rows": [
            {
                "step": step,
                "checkpoint": f"checkpoint-{step}",
                "metadata": {"run_id": "r1"},
                "n_sae_records": 6,
                "checkpoint_dir": str(root / f"checkpoint-{step}"),
            }
            for step in (2, 10)
        ],
        "count": 2,
        "p5_dir": str(root),
        "p5_dir_exists": True,
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "aegir_metadata.json is not there (yet)"),
        (b'{"run_id": ', "aegir_metadata.json is no JSON object"),
        (b"[1]", "aegir_metadata.json is no JSON object"),
        (b'{"a": "\xff"}', "aegir_metadata.json is no JSON object"),
    ],
)
async def test_an_unreadable_sidecar_says_why(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    """A checkpoint without a usable sidecar keeps its row, with null and the reason."""
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    if content is not None:
        (checkpoint / "aegir_metadata.json").write_bytes(content)

    [row] = (await get_runs(create_app(tmp_path)))["rows"]

    assert row["metadata"] is None
    assert row["reason"].startswith(reason)
    assert row["n_sae_records"] == 0


async def test_a_snapshot_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """Records that cannot be counted are null, not zero."""
    (tmp_path / "checkpoint-5" / "sae_features.jsonl").mkdir(parents=True)

    [row] = (await get_runs(create_app(tmp_path)))["rows"]

    assert row["n_sae_records"] is None
    assert "sae_features.jsonl cannot be read" in row["reason"]


async def test_a_missing_directory_is_an_answer(tmp_path: Path) -> None:
    """All four keys are there, with the remedy."""
    table = await get_runs(create_app(tmp_path / "typo"))

    assert (table["rows"], table["count"], table["p5_dir_exists"]) == ([], 0, False)
    assert table["p5_dir"] == str(tmp_path / "typo")
    assert "AEGIR_P5_OUTPUT_DIR" in table["reason"]


async def test_a_directory_that_cannot_be_looked_at_is_an_answer(tmp_path: Path) -> None:
    """Whatever the system says about the path is passed on, not raised."""
    table = await get_runs(create_app(tmp_path / ("x" * 300)))

    assert table["count"] == 0
    assert table["reason"]
