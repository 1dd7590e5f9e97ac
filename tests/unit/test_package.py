"""The wheel has what is needed, and `docker/install.sh` installs it in an empty environment."""

from __future__ import annotations

import ensurepip
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from dlm_serve import __version__

ROOT = Path(__file__).parent.parent.parent
USE = """
from importlib.metadata import entry_points, requires, version
from importlib.util import find_spec
from packaging.requirements import Requirement
from dlm_serve import bundled

for required in map(Requirement, requires("dlm-serve")):
    if required.marker is None or required.marker.evaluate({"extra": ""}):
        assert required.specifier.contains(version(required.name)), required
[plugin] = entry_points(group="sglang.srt.plugins", name="dlm_serve")
print(version("dlm-serve"), plugin.load().__module__, bundled.expand("nano"), find_spec("dlm_kernels").origin)
"""
"""Compares what is required with what is there, since to resolve it takes pip ten seconds, and imports no PyTorch."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this repository."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    [found] = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with pip and all that this one has, except for dlm-serve."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", symlinks=True)
    [packages] = (folder / "venv" / "lib").glob("*/site-packages")
    [pip] = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    with zipfile.ZipFile(pip) as archive:
        archive.extractall(packages)
    others = folder / "others"
    others.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("dlm_serve", "_dlm_serve", "pip")):
            (others / entry.name).symlink_to(entry)
    (packages / "others.pth").write_text(str(others))
    return folder / "venv"


def test_the_wheel_has_code_weights_kernels_and_license_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"dlm_serve-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"dlm_serve", "dlm_kernels", info}
    assert {
        "dlm_serve/py.typed",
        "dlm_serve/assets/nano/model.safetensors",
        "dlm_kernels/__init__.py",
        f"{info}/licenses/LICENSE",
        f"{info}/entry_points.txt",
    } <= names


def test_the_images_script_installs_it(wheel: Path, environment: Path, tmp_path: Path) -> None:
    """Without network: what it requires must be fulfilled by the packages that are pinned."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    python = str(environment / "bin" / "python")
    variables = {**inherited, "PYTHON": python, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(ROOT / "docker" / "install.sh", wheel, "--no-deps")
    version, plugin, *paths = run(python, "-c", USE).split()
    assert (version, plugin) == (__version__, "dlm_serve.plugin")
    assert all(Path(path).is_relative_to(environment) for path in paths)
    assert (environment / "bin" / "dlm-serve").is_file()
