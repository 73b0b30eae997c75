"""`lorimer doctor` names what is missing or too old, with the command that mends it."""

from __future__ import annotations

from importlib import metadata
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from lorimer.ops import doctor
from tests.unit.cli.running import lorimer


def _versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Pretend that packages are installed in these versions, or not at all."""
    real = metadata.version

    def version(name: str) -> str:
        found = versions.get(name, "real")
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return real(name) if found == "real" else found

    monkeypatch.setattr(metadata, "version", version)


def test_a_missing_extra_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    _versions(monkeypatch, diffusers=None)
    ran = lorimer("doctor")
    assert ran.code == 0  # optional
    line = next(line for line in ran.out.splitlines() if "diffusers is missing" in line)
    assert line.endswith('pip install "lorimer[pictures]"')


def test_what_is_too_old_is_named_with_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    _versions(monkeypatch, torch="1.13.0")
    ran = lorimer("doctor")
    assert ran.code == 4
    assert "torch 1.13.0 does not fit >=" in ran.out and "does not work without" in ran.out


def test_without_torch_it_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    _versions(monkeypatch, torch=None)
    health = doctor.examine()
    assert not health.works and health.devices == ()
    assert "torch is missing" in "\n".join(health.lines())


def test_a_newer_version_and_a_local_build_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    _versions(monkeypatch, torch="99.0.0rc1+cpu")
    assert doctor.examine().works


def test_graphics_processors_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda index: SimpleNamespace(name="H200", total_memory=139 * 2**30),
    )
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    text = "\n".join(doctor.examine().lines())
    assert "cuda:0, H200, 139 GiB" in text and "mps" in text


def test_an_installation_without_the_embedded_model_says_so() -> None:
    with mock.patch.object(doctor, "_EMBEDDED", doctor._EMBEDDED / "missing"):
        health = doctor.examine()
    assert health.embedded_bytes is None and "embedded     missing" in "\n".join(health.lines())
