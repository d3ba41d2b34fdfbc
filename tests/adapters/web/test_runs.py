from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from aegir_adapters.web import create_app
from aegir_adapters.web.runs import CheckpointTable
from aegir_stream.disk import Disk
from aegir_stream.layout import RunDirectory
from aegir_stream.system import System

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


async def test_a_checkpoint_is_not_opened_at_every_request(run: Any) -> None:
    """Each sidecar is opened once, and a snapshot never while history holds it.

    A file that is open at the moment its checkpoint is removed makes a network file system keep it.
    """
    await run.step(2)
    await run.save(2)
    inside = run.directory.root / "checkpoint-2"
    opened: list[Path] = []

    class Watched(System):
        def open(self, path: Path, flags: int) -> int:
            if path.is_relative_to(inside) and not path.is_dir():
                opened.append(path)
            return super().open(path, flags)

    table = CheckpointTable(RunDirectory(run.directory.cfg, disk=Disk(Watched())))
    first, once = table.read(), [*opened]

    assert {*once} == {inside / "aegir_metadata.json"}
    assert first.rows[0].n_sae_records == 6
    assert [table.read(), table.read()] == [first, first]
    assert opened == once
    run.directory.write_metadata("checkpoint-2", {"run_id": "another"})
    assert table.read().rows[0].metadata == {"run_id": "another"}
    (inside / "aegir_metadata.json").unlink()
    assert table.read().rows[0].reason == "aegir_metadata.json is not there (yet)"


async def test_a_damaged_manifest_leaves_the_pages_as_they_are(run: Any) -> None:
    """What only the manifest says is left out."""
    await run.step(1)
    run.directory.manifest_path.write_bytes(b'{"layers": [\xff')

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(run.directory.cfg)), base_url="http://localhost"
    ) as http:
        for page in ("", "live", "charts/light.json", "api/p5/runs"):
            assert (await http.get(f"/{page}")).status_code == 200
