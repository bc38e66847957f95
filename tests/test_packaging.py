"""What a user gets from `pip install`: one top-level package that works alone, quickly and quietly."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "images" / "ISIC_0014809.jpg"
OFFLINE = ("--no-deps", "--no-index", "--disable-pip-version-check", "-q")
DEV_ONLY = ("scipy", "matplotlib", "SimpleITK", "pycocotools", "pytest", "hypothesis", "pandas")


def pip(python: Path, *arguments: str | Path) -> None:
    """Our pip, acting on the environment of another interpreter."""
    done = run([sys.executable, "-m", "pip", "--python", str(python), *map(str, arguments)], python.parent)
    assert done.returncode == 0, done.stderr


def new_environment(folder: Path) -> Path:
    """A clean virtual environment, lent the directories of our dependencies; returns its interpreter.

    A plain path line runs no other .pth file, so an editable install of this package here is not lent with them.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text("".join(p + "\n" for p in sys.path if p.endswith("site-packages")))
    return folder / "bin" / "python"


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    env.pop("PYTHONPATH", None)  # the root of this checkout: pip would find the package there, and install nothing
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def output(python: Path, code: str, cwd: Path) -> str:
    done = run([python, "-c", code], cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is made of, with a file that an earlier build left behind."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    for name in ("activefreq_engine", "kernels"):  # kernels may be linked into the package too
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "kernels"))
    stale = folder / "build" / "lib" / "activefreq_engine" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("raise RuntimeError('left over from an earlier build')\n")
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(Path(sys.executable), "wheel", *OFFLINE, "--no-build-isolation", "-w", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with our wheel, a foreign `kernels`, and a triton and a cupy that tell."""
    folder = tmp_path_factory.mktemp("installed")
    python = new_environment(folder)
    pip(python, "install", *OFFLINE, wheel)
    site = next(folder.glob("lib/python*/site-packages"))
    plant(site / "kernels", "FOREIGN = True\n")
    for name in ("triton", "cupy"):
        plant(site / name, f"import sys\nsys.imported_{name} = True\nraise ImportError('planted')\n")
    return python


def plant(package: Path, text: str) -> None:
    package.mkdir()
    (package / "__init__.py").write_text(text)


def test_the_wheel_holds_one_top_level_package_and_all_its_files(wheel: Path, source: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {n for n in names if ".dist-info/" not in n}
    assert {n.split("/")[0] for n in inside} == {"activefreq_engine"}
    wanted = {"*.py", "*.cu", "*.json", "*.md", "*.safetensors", "*.yaml", "py.typed", "page/*"}
    files = {p for pattern in wanted for p in (source / "activefreq_engine").rglob(pattern)}
    expected = {p.relative_to(source).as_posix() for p in files}
    files = {p for pattern in wanted for p in (source / "kernels").rglob(pattern)}
    expected |= {"activefreq_engine/" + p.relative_to(source).as_posix() for p in files}
    assert inside == expected
    assert {"LICENSE", "NOTICE"} <= {n.split("/")[-1] for n in names - inside}


def test_the_wheel_segments_an_image_beside_a_foreign_kernels(installed: Path, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys({DEV_ONLY!r}))  # importing any of them fails: the core dependencies must do
import torch
compiler = "torch._dynamo" in sys.modules
import kernels, activefreq_engine, activefreq_engine.cli, activefreq_engine.eval
from activefreq_engine import Session
assert kernels.FOREIGN and activefreq_engine.kernels.__name__ == "activefreq_engine.kernels"
assert activefreq_engine.__file__.startswith(sys.prefix), activefreq_engine.__file__
with Session(device="cpu") as session:
    session.set_image({str(EXAMPLE)!r})
    mask = session.click(160, 230).mask
    session.suggest()
assert ("torch._dynamo" in sys.modules) == compiler, "it takes a second or two to import"
print(mask.shape, bool(mask[230, 160]))
"""
    assert output(installed, code, tmp_path) == "(384, 384) True"


def test_the_wheel_installs_the_command(installed: Path, tmp_path: Path) -> None:
    done = run([installed.parent / "activefreq", "info"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "region_stats" in done.stdout


@pytest.mark.parametrize(("said", "required"), [("", "opencv-python"), ("headless", "opencv-python-headless")])
def test_the_installer_chooses_the_build_of_opencv(source: Path, tmp_path: Path, said: str, required: str) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    env = {**os.environ, "ACTIVEFREQ_OPENCV": said}
    subprocess.run(command, cwd=source, env=env, check=True, capture_output=True)
    core = next(tmp_path.glob("*.egg-info/requires.txt")).read_text("utf-8").split("[")[0]
    assert [Requirement(r).name for r in core.split() if "opencv" in r] == [required]
    wrong = subprocess.run(
        command, cwd=source, env={**env, "ACTIVEFREQ_OPENCV": "contrib"}, capture_output=True, text=True
    )
    assert wrong.returncode
    assert "allowed are 'headless'" in wrong.stderr


def test_pyinstaller_finds_our_hook_in_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.metadata import entry_points\n"
        "from pathlib import Path\n"
        "(hooks,) = [e for e in entry_points(group='pyinstaller40') if e.module.startswith('activefreq_engine')]\n"
        "(folder,) = hooks.load()()\n"
        "print(*sorted(p.name for p in Path(folder).glob('hook-*.py')))"
    )
    assert output(installed, code, tmp_path) == "hook-activefreq_engine.cli.py hook-activefreq_engine.py"


def test_importing_is_quick_quiet_and_leaves_gpu_packages_alone(installed: Path, tmp_path: Path) -> None:
    code = """
import sys, time
import torch
before = {n for n in ("triton", "cupy") if hasattr(sys, "imported_" + n)}
start = time.process_time()
import activefreq_engine
from activefreq_engine import AcSelect, Engine, Session, create_model
took = time.process_time() - start
after = {n for n in ("triton", "cupy") if hasattr(sys, "imported_" + n)}
assert after == before, after
sys.exit(f"importing took {took:.1f} s") if took >= 2 else None
"""
    done = run([installed, "-c", code], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FROM_THE_ROOT = """
import activefreq_engine, kernels, kernels.region_stats.reference as deep, activefreq_engine.kernels as canonical
from activefreq_engine import Session
print(kernels is canonical, deep is canonical.region_stats.reference, canonical.__file__)
"""


def test_a_clone_works_where_the_wheel_is_installed_and_where_nothing_is(
    installed: Path, source: Path, tmp_path: Path
) -> None:
    """At the root of a clone Python finds the clone's package first, and kernels/ beside it."""
    expected = f"True True {source / 'kernels' / '__init__.py'}"
    assert output(installed, FROM_THE_ROOT, source) == expected
    assert output(new_environment(tmp_path / "bare"), FROM_THE_ROOT, source) == expected


def test_an_editable_install_imports_no_kernel_twice(source: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "editable")
    pip(python, "install", *OFFLINE, "--no-build-isolation", "-e", source)
    code = """
import kernels.region_stats.reference as deep, kernels, activefreq_engine.kernels as canonical
print(kernels is canonical, deep is canonical.region_stats.reference, canonical.__file__)
"""
    expected = f"True True {source / 'kernels' / '__init__.py'}"
    assert output(python, code, source) == expected  # from the root, where ./kernels is importable
    another = tmp_path / "another clone"
    shutil.copytree(source, another)
    assert output(python, FROM_THE_ROOT, another) == f"True True {another / 'kernels' / '__init__.py'}"
    reverse = "import activefreq_engine.kernels.region_stats as a, kernels.region_stats as b; print(a is b)"
    assert output(python, reverse, source) == "True"


def test_messages_name_the_checkout_and_no_name_on_an_index() -> None:
    """This package is on no index, so whoever claims its name there must not be installed in its place."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "activefreq_engine").rglob("*.py")]
    assert not [path for path in files if "install 'activefreq-engine[" in path.read_text("utf-8")]


def test_the_oldest_versions_are_those_that_the_package_admits(wheel: Path) -> None:
    """Every requirement has a lower bound, constraints/oldest.txt pins it, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        lines = re.findall("^Requires-Dist: (.*)$", archive.read(name).decode(), re.MULTILINE)
    pins = (ROOT / "constraints" / "oldest.txt").read_text("utf-8").splitlines()
    pinned = versions("==", [line for line in pins if line and not line.startswith("#")])
    assert pinned == versions(">=", lines)


def versions(operator: str, requirements: list[str]) -> dict[str, set[Version]]:
    """Package -> the version of each of its requirements, which must have this operator and no other."""
    found: dict[str, set[Version]] = {}
    for requirement in map(Requirement, requirements):
        operators = [s.operator for s in requirement.specifier]
        assert operators == [operator], f"{requirement} needs one version, after {operator}"
        (bound,) = requirement.specifier
        found.setdefault(canonicalize_name(requirement.name), set()).add(Version(Version(bound.version).base_version))
    return found


def test_the_constraints_admit_only_the_cpu_build_of_torch_on_linux() -> None:
    lines = (ROOT / "constraints" / "cpu.txt").read_text("utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for system in ("linux", "darwin", "win32"):
        (torch,) = [r for r in requirements if r.marker is None or r.marker.evaluate({"sys_platform": system})]
        admitted = {v for v in ("2.13.0", "2.13.0+cpu", "2.13.0+cu130", "2.13.1") if torch.specifier.contains(v)}
        assert "2.13.0+cpu" in admitted
        assert admitted == {"2.13.0+cpu"} or system != "linux"
