"""The distribution installs exactly one import package, complete, and it works from another folder."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "mmln_pipeline", "workflows", "bids_app"]
FOLDERS = {
    "mmln_pipeline": "mmln_pipeline",
    "workflows": "mmln_pipeline/workflows",
    "bids_app": "mmln_pipeline/bids_app",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy of the sources, so that no stale build folder reaches it."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    target = tmp_path_factory.mktemp("dist")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True)
    return next(target.glob("*.whl"))


@pytest.fixture(scope="module")
def members(wheel):
    """Names of the wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_installs_one_import_package(members):
    top = {name.split("/")[0] for name in members}
    assert {name for name in top if not name.endswith(".dist-info")} == {"mmln_pipeline"}


def test_wheel_has_every_module(members):
    modules = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {"mmln_pipeline/workflows/__init__.py", "mmln_pipeline/bids_app/__init__.py"} <= modules
    assert modules - members == set()


def test_wheel_has_every_data_file(members):
    data = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc", ".c", ".so"}  # those of other Pythons may stand here
    }
    assert {"mmln_pipeline/weights/mmln.safetensors", "mmln_pipeline/weights/mmln.json"} <= data
    assert "mmln_pipeline/atlas/tables/structures28.tsv" in data
    assert data - members == set()


def test_wheel_has_the_compiled_passes(members):
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no compiler here: the package is built without them")
    assert any(re.fullmatch(r"mmln_pipeline/machine/_native\..*", name) for name in members)


def test_wheel_carries_the_licence_and_the_commands(wheel, members):
    assert any(re.search(r"\.dist-info/(licenses/)?LICENSE$", name) for name in members)
    with zipfile.ZipFile(wheel) as archive:
        entry_points = next(name for name in members if name.endswith("entry_points.txt"))
        text = archive.read(entry_points).decode()
    assert "mmln = mmln_pipeline.cli:main" in text
    assert "mmln-bids = mmln_pipeline.bids_app.run:main" in text


def test_weights_are_small(members, wheel):
    with zipfile.ZipFile(wheel) as archive:
        sizes = [archive.getinfo(name).file_size for name in members if name.endswith(".safetensors")]
    assert max(sizes) < 8_000_000


def test_installed_copy_works_from_another_folder(wheel, tmp_path):
    site = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(site)!r})
        sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
        import mmln_pipeline.bids_app.run, mmln_pipeline.cli, mmln_pipeline.workflows, mmln_pipeline.weights
        loaded = [m for n, m in sys.modules.items() if n.split(".")[0] == "mmln_pipeline"]
        assert all(m.__file__.startswith({str(site)!r}) for m in loaded), loaded
        print([card["name"] for card in mmln_pipeline.weights.list_models()])
    """
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "mmln" in run.stdout


def list_imports():
    """Top-level names of other packages that the source folders import, with one file that does."""
    found = {}
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "mmln_pipeline"}}


def test_what_is_imported_is_declared_and_nothing_else():
    setup = (ROOT / "setup.py").read_text()
    needed = setup[setup.index("install_requires") : setup.index("extras_require")]
    trained = re.search(r"TRAIN = \[(.*)\]", setup)[1]
    converted = re.search(r"CONVERT = \[(.*)\]", setup)[1]
    compared = re.search(r"COMPARE = \[(.*)\]", setup)[1]
    named = re.findall(r'["\']([A-Za-z][\w-]*)>=', needed + trained + converted + compared)
    declared = {name.lower().replace("_", "-") for name in named}
    providers = packages_distributions()
    imported = {providers.get(name, [name])[0].lower().replace("_", "-"): path for name, path in list_imports().items()}
    strangers = {name: path for name, path in imported.items() if name not in declared}
    # FireANTs runs in an environment of its own; who wants objects of TorchIO has it.
    assert set(strangers) <= {"fireants", "torchio"}, strangers
    assert declared - set(imported) - {"tomli", "einops"} == set()  # before Python 3.11 only; what MONAI's ViT needs


def test_nothing_posix_only_is_imported_at_the_top():
    posix = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
    at_top = [
        (str(path.relative_to(ROOT)), name)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        if name in posix
    ]
    assert at_top == []


def test_constraints_pin_every_requirement():
    setup = (ROOT / "setup.py").read_text()
    required = re.findall(r'["\']([A-Za-z][\w-]*)>=', setup)
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {name.lower().replace("_", "-") for name in required} - {n.replace("_", "-") for n in pinned} == set()
