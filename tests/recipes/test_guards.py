from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from aegir_adapters.worktree import (
    NotACheckoutError,
    guard_directory,
    guard_port,
    port_setting,
    require_free,
)
from aegir_stream.config import DEFAULT_PORT, P5Cfg
from aegir_stream.errors import OptionError, RefusedError
from aegir_stream.layout import RunDirectory
from aegir_stream.lease import Lease
from recipes.checkouts import Checkouts

ALLOWED = {"ALLOW_SECONDARY": "1"}
DEFAULT_DIRECTORY = Path(P5Cfg().output_dir)


def test_a_primary_checkout_may_use_anything(checkouts: Checkouts, tmp_path: Path) -> None:
    """The locks are what keeps two trainers of one checkout apart."""
    guard_directory(DEFAULT_DIRECTORY, environment={}, start=checkouts.primary)
    guard_directory(tmp_path, environment={}, start=checkouts.primary)
    guard_port(DEFAULT_PORT, environment={}, start=checkouts.primary)


@pytest.mark.parametrize(
    "environment", [{}, {"ALLOW_SECONDARY": ""}, {"ALLOW_SECONDARY": "yes"}], ids=str
)
def test_leave_is_one_and_nothing_else(
    checkouts: Checkouts, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    """Without it even what is its own is refused; the resource and both variables are named."""
    with pytest.raises(RefusedError) as refused:
        guard_directory(tmp_path, environment=environment, start=checkouts.secondary)
    for part in (str(tmp_path), "ALLOW_SECONDARY=1 AEGIR_P5_OUTPUT_DIR=", str(checkouts.primary)):
        assert part in str(refused.value)
    with pytest.raises(RefusedError, match=r"port 9999 .*ALLOW_SECONDARY=1 AEGIR_GATEWAY_PORT="):
        guard_port(9999, environment=environment, start=checkouts.secondary)


def test_with_leave_a_secondary_uses_what_is_its_own(checkouts: Checkouts, tmp_path: Path) -> None:
    """A directory beside both, one in its own checkout, and a port that is not the default."""
    for directory in (tmp_path / "mine", checkouts.secondary / "runs" / "1"):
        guard_directory(directory, environment=ALLOWED, start=checkouts.secondary)
    guard_port(DEFAULT_PORT + 1, environment=ALLOWED, start=checkouts.secondary)
    guard_port(0, environment=ALLOWED, start=checkouts.secondary)


def test_the_default_directory_is_the_primarys(checkouts: Checkouts, tmp_path: Path) -> None:
    """Under any name."""
    (tmp_path / "alias").symlink_to(DEFAULT_DIRECTORY)
    for directory in (DEFAULT_DIRECTORY, DEFAULT_DIRECTORY / ".." / "p5", tmp_path / "alias"):
        with pytest.raises(RefusedError, match="is the default one"):
            guard_directory(directory, environment=ALLOWED, start=checkouts.secondary)


def test_a_directory_in_the_primarys_checkout_is_the_primarys(checkouts: Checkouts) -> None:
    """Whether or not anything is there yet."""
    with pytest.raises(RefusedError, match="it lies in"):
        guard_directory(
            checkouts.primary / "runs" / "1", environment=ALLOWED, start=checkouts.secondary
        )


def test_a_directory_that_the_primary_trained_into_is_the_primarys(
    checkouts: Checkouts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nothing is running: what is there is its run. What we trained into is ours."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    monkeypatch.chdir(checkouts.primary)
    Lease.take(RunDirectory.at(theirs)).release()
    monkeypatch.chdir(checkouts.secondary)
    Lease.take(RunDirectory.at(ours)).release()

    guard_directory(ours, environment=ALLOWED)
    with pytest.raises(RefusedError, match="it was last used by process"):
        guard_directory(theirs, environment=ALLOWED)


def test_the_default_port_is_the_primarys(checkouts: Checkouts) -> None:
    """Also with leave; the variable is named."""
    with pytest.raises(RefusedError, match=r"the default one.*AEGIR_GATEWAY_PORT"):
        guard_port(DEFAULT_PORT, environment=ALLOWED, start=checkouts.secondary)


def test_a_role_in_the_environment_goes_before_the_one_detected(
    checkouts: Checkouts, tmp_path: Path
) -> None:
    """Both ways; what is no role is an error."""
    primary, secondary = ({"AEGIR_WORKTREE_ROLE": role} for role in ("primary", "secondary"))
    guard_directory(tmp_path, environment=primary, start=checkouts.secondary)
    with pytest.raises(RefusedError):
        guard_directory(tmp_path, environment=secondary, start=checkouts.primary)
    with pytest.raises(OptionError, match="main"):
        guard_port(1, environment={"AEGIR_WORKTREE_ROLE": "main"}, start=checkouts.primary)


def test_outside_of_any_checkout_there_is_nobody_to_fight(tmp_path: Path) -> None:
    """Unless somebody says that this is a secondary one."""
    guard_directory(DEFAULT_DIRECTORY, environment={}, start=tmp_path)
    guard_port(DEFAULT_PORT, environment={}, start=tmp_path)
    with pytest.raises(NotACheckoutError):
        guard_port(1, environment={"AEGIR_WORKTREE_ROLE": "secondary"}, start=tmp_path)


@pytest.mark.parametrize("text", ["http", "-1", "65536", "8 091", "٣"])
def test_a_port_must_be_one(text: str) -> None:
    """The variable is named, with its value; an empty one counts as unset."""
    with pytest.raises(OptionError, match=f"AEGIR_GATEWAY_PORT, got `{text}`"):
        port_setting({"AEGIR_GATEWAY_PORT": text})
    assert port_setting({"AEGIR_GATEWAY_PORT": ""}).value == DEFAULT_PORT


def test_a_port_of_ones_choice_is_always_free() -> None:
    """0 is whichever is."""
    require_free(0, variable="AEGIR_GATEWAY_PORT")
