"""What Airflow finds out about us, by each of its doors."""

import json
import os
import subprocess
import sys
import sysconfig
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.providers_manager import ProvidersManager
from airflow.sdk import BaseOperator
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

import lclstream.operators
from lclstream.operators.provider import get_provider_info

ROOT = Path(__file__).parents[2]

LIST_PLUGINS = """
import json
from airflow import plugins_manager
plugins, errors = plugins_manager._get_plugins()
print(json.dumps([[p.name, str(p.source)] for p in plugins if "lcl" in str(p.name)]))
print(json.dumps(errors))
"""


def test_every_name_is_importable() -> None:
    for name in lclstream.operators.__all__:
        assert getattr(lclstream.operators, name).__name__ == name
    assert lclstream.operators.__all__ == sorted(lclstream.operators.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'lclstream.operators' has no attribute 'x'"):
        lclstream.operators.x  # noqa: B018


def test_every_module_named_to_airflow_exists() -> None:
    info = get_provider_info()
    modules = [
        module
        for kind in ("operators", "hooks", "triggers")
        for module in info[kind][0]["python-modules"]
    ]
    for module in modules:
        import_module(module)
    for place in info["extra-links"]:
        module, _, name = place.rpartition(".")
        assert getattr(import_module(module), name)().name


def test_airflow_accepts_the_provider_and_its_connection_types() -> None:
    manager: Any = cast("Any", ProvidersManager)()
    assert manager.providers["lclstream"].data["name"] == "LCLStream"
    hooks = cast("Any", ProvidersManagerTaskRuntime)().hooks
    for kind in ("lclstream", "lclstream_elog"):
        hook = hooks[kind]
        assert hook is not None
        assert hook.connection_type == kind


def test_operators_have_annotated_keyword_arguments() -> None:
    for name in lclstream.operators.__all__:
        kind = getattr(lclstream.operators, name)
        if issubclass(kind, BaseOperator):
            fields = set(kind.template_fields)
            assert fields <= set(kind.__init__.__annotations__) | {"transfer"}


def plugins(site_packages: str, *, folder: Path, paths: list[Path]) -> tuple[Any, Any]:
    """Ask a fresh Airflow which plug-ins of ours it has, and what went wrong."""
    environment = {
        **os.environ,
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(folder),
        "PYTHONPATH": os.pathsep.join([site_packages, *map(str, paths)]),
    }
    # -S: the site-packages of the environment announce the distribution.
    run = subprocess.run(
        [sys.executable, "-S", "-c", LIST_PLUGINS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found, errors = run.stdout.strip().splitlines()[-2:]
    return json.loads(found), json.loads(errors)


@pytest.fixture
def without_distribution(tmp_path: Path) -> str:
    """Return site-packages with everything but our own distribution."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "lclstream" not in entry.name and entry.suffix != ".pth":
            (folder / entry.name).symlink_to(entry)
    return str(folder)


def components() -> list[Path]:
    return [path.parent for path in ROOT.glob("*/lclstream")]


def test_plugin_comes_once_where_both_doors_are_open() -> None:
    site_packages = sysconfig.get_paths()["purelib"]
    found, errors = plugins(site_packages, folder=ROOT / "plugins", paths=components())
    assert [name for name, _ in found] == ["lclstream"]
    assert "EntryPoint" in found[0][1]
    assert errors == {}


def test_plugin_comes_by_folder_where_nothing_is_installed(without_distribution: str) -> None:
    found, errors = plugins(without_distribution, folder=ROOT / "plugins", paths=components())
    assert [name for name, _ in found] == ["lclstream"]
    assert "lclstream_plugin.py" in found[0][1]
    assert errors == {}
