"""What this machine has of what lorimer can use: versions, devices, extras, the embedded model."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

import lorimer

# Extras that a user may want, and what for; the others are for work on lorimer itself.
_EXTRAS = {
    "pictures": "text-to-image models",
    "optimizers": "optimisers other than AdamW and SGD",
    "quantised": "base models kept in 8 or 4 bits",
    "peft": "comparing files with the PEFT package",
    "tensorboard": "curves in TensorBoard",
    "wandb": "curves in Weights & Biases",
    "mlflow": "curves in MLflow",
    "trackio": "curves in trackio",
}
_REQUIRED = "required"
_EMBEDDED = Path(lorimer.__file__).parent / "models" / "embedded"


@dataclass(frozen=True)
class Package:
    """One package that lorimer uses.

    Attributes:
        wanted: the versions lorimer accepts, e.g. ">=0.42".
        found: the installed version, or None.
        fits: whether it is installed in a version lorimer accepts.
    """

    name: str
    wanted: str
    found: str | None
    fits: bool


@dataclass(frozen=True)
class Health:
    """What `lorimer doctor` shows.

    Attributes:
        memory_bytes: main memory of the machine.
        devices: what torch can compute on, e.g. ("cpu, 2 threads", "cuda:0, NVIDIA H200, 139 GiB").
        packages: extra (or "required") -> its packages.
        embedded_bytes: size of the base model inside the package; None where it is missing.
    """

    lorimer: str
    python: str
    system: str
    memory_bytes: int
    devices: tuple[str, ...]
    packages: dict[str, tuple[Package, ...]]
    embedded_bytes: int | None

    @property
    def works(self) -> bool:
        """Whether everything that lorimer can't do without is there."""
        return all(package.fits for package in self.packages[_REQUIRED])

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {**asdict(self), "works": self.works}

    def lines(self) -> list[str]:
        """The same for a person; what is missing comes with the command that installs it."""
        embedded = "missing: install lorimer again"
        if self.embedded_bytes is not None:
            embedded = f"{self.embedded_bytes / 1e6:.1f} MB, in the package"
        return [
            _row("lorimer", f"{self.lorimer}, Python {self.python}, {self.system}"),
            _row("memory", f"{self.memory_bytes / 2**30:.1f} GiB"),
            *(_row("device", device) for device in self.devices),
            _row("embedded", embedded),
            *(line for extra, packages in self.packages.items() for line in _package_lines(extra, packages)),
        ]


def examine() -> Health:
    """Look at this machine and this installation."""
    groups: dict[str, tuple[Package, ...]] = {_REQUIRED: _packages(None)}
    groups |= {extra: _packages(extra) for extra in _EXTRAS}
    torch_is_there = any(package.name == "torch" and package.found for package in groups[_REQUIRED])
    files = [path for path in _EMBEDDED.rglob("*.safetensors") if path.is_file()]
    return Health(
        lorimer=lorimer.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        memory_bytes=_memory_bytes(),
        devices=_devices() if torch_is_there else (),
        packages=groups,
        embedded_bytes=sum(path.stat().st_size for path in files) if files else None,
    )


def _packages(extra: str | None) -> tuple[Package, ...]:
    """The packages of an extra, or for None those always needed, as lorimer's own metadata names them."""
    requirements = [Requirement(text) for text in metadata.requires("lorimer") or []]
    wanted = [
        each
        for each in requirements
        if (each.marker is None) == (extra is None)
        and (each.marker is None or each.marker.evaluate({"extra": extra or ""}))
    ]
    return tuple(_package(requirement) for requirement in wanted)


def _package(requirement: Requirement) -> Package:
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Package(requirement.name, str(requirement.specifier), None, fits=False)
    fits = requirement.specifier.contains(found, prereleases=True)
    return Package(requirement.name, str(requirement.specifier), found, fits)


def _memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _devices() -> tuple[str, ...]:
    import torch

    devices = [f"cpu, {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps, the graphics processor of this Mac")
    return tuple(devices)


def _package_lines(extra: str, packages: tuple[Package, ...]) -> list[str]:
    fitting = [f"{package.name} {package.found}" for package in packages if package.fits]
    lines = [_row(extra, ", ".join(fitting))] if fitting else []
    if all(package.fits for package in packages):
        return lines
    problems = [
        f"{package.name} is missing"
        if package.found is None
        else f"{package.name} {package.found} does not fit {package.wanted}"
        for package in packages
        if not package.fits
    ]
    purpose = "lorimer does not work without" if extra == _REQUIRED else f"only for {_EXTRAS[extra]}"
    command = "pip install lorimer" if extra == _REQUIRED else f'pip install "lorimer[{extra}]"'
    return [*lines, _row(extra, f"{', '.join(problems)} ({purpose}): {command}")]


def _row(label: str, text: str) -> str:
    return f"{label:<12} {text}"
