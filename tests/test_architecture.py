"""Who may import whom, read from the sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import calibdask

PACKAGE = Path(calibdask.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
SHARED = {"config", "engine", "io", "stats"}
DOMAINS = sorted(
    path.name
    for path in PACKAGE.iterdir()
    if (path / "__init__.py").exists() and path.name not in SHARED
)
HEAVY = ["astropy", "ctapipe", "dask", "distributed", "numpy", "tables", "xarray"]

# What a domain may take from the package besides itself: module, or package with all in it.
FOR_DOMAINS = {
    "stats",
    "select",
    "config",
    "errors",
    "engine.protocol",
    "flags",
    "schema",
    "version",
}
MORE_FOR_GLUE = {
    "calibration.py": {"io"},  # the only place of a domain that reads and writes
    "pairwise.py": {"io"},  # what calibrations of the array share
    "cross.py": {"io"},
    "timing.py": {"io"},
    "calibrate.py": {"io"},  # writes the frames that it calibrates
    "tables.py": {"io"},  # tables that another domain reads are declared there
    "camera.py": {"io"},  # makes the camera file of one image
    "metadata.py": {"io"},  # of frames: what stands beside them
    "report.py": {"report"},
    "timing_report.py": {"report"},
    "cross_report.py": {"report"},
    "image_report.py": {"report"},
    "drift_report.py": {"report"},
    "spectacle.py": {"io"},  # products in another software's format
}

# Formulas that fill more than one file.
MORE_MODELS = ("muon/intensity.py", "muon/ring.py", "sensor/spatial.py", "sensor/standard.py")
MODELS = sorted([*PACKAGE.rglob("model.py"), *(PACKAGE / name for name in MORE_MODELS)])
PURE = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for path in MODELS}


def _imports(path, *, everywhere):
    """Absolute names of what a module imports: at its top level, or anywhere in it."""
    found = []

    def walk(nodes):
        for node in nodes:
            match node:
                case ast.Import():
                    found.extend(alias.name for alias in node.names)
                case ast.ImportFrom(level=0, module=str(module)):
                    found.append(module)
                    if module.startswith("calibdask"):
                        found.extend(f"{module}.{alias.name}" for alias in node.names)
                case ast.ImportFrom():
                    raise AssertionError(f"{path}: relative import")
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    walk(node.orelse)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() if not everywhere:
                    pass
                case _:
                    walk(ast.iter_child_nodes(node))

    walk(ast.parse(path.read_text(encoding="utf-8")).body)
    return found


def _roots(names):
    return {name.partition(".")[0] for name in names}


def _own(names):
    """Modules of the package itself, without its name; of ``from m import n`` only m counts."""
    return {name.removeprefix("calibdask.") for name in names if name.startswith("calibdask.")}


def _is_module(name):
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _id(value):
    return str(value.relative_to(PACKAGE)) if isinstance(value, Path) else str(value)


def test_there_is_something_to_check():
    assert "array" in DOMAINS
    assert len(FILES) > 30


def test_the_reader_of_imports_sees_them(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import only_types\nelse:\n    import otherwise\n"
        "try:\n    import tried.deep\nexcept ImportError:\n    pass\n"
        "class Holder:\n    import inside\n"
        "def function():\n    from calibdask.engine import dask\n"
    )
    assert _roots(_imports(path, everywhere=False)) == {"typing", "otherwise", "tried", "inside"}
    assert "calibdask.engine.dask" in _imports(path, everywhere=True)


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_only_the_executor_and_the_sites_know_dask(path):
    names = _roots(_imports(path, everywhere=True))
    if _id(path) != "engine/dask.py" and path.parent.name != "sites":
        assert not names & {"dask", "distributed", "dask_jobqueue"}


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_what_is_slow_to_import_is_imported_when_needed(path):
    names = _roots(_imports(path, everywhere=False))
    allowed = {"engine/dask.py": {"distributed"}}.get(_id(path), set())
    if path.parent.name == "io":
        allowed = {"tables"}
    assert not names & ({*HEAVY, "matplotlib", "scipy"} - {"numpy"}) - allowed


@pytest.mark.parametrize("path", [one for one in FILES if one.parent.name in DOMAINS], ids=_id)
def test_a_domain_imports_what_domains_may(path):
    own = {name for name in _own(_imports(path, everywhere=True)) if _is_module(name)}
    allowed = {*FOR_DOMAINS, path.parent.name} | MORE_FOR_GLUE.get(path.name, set())
    # A simulation writes files in the real format: it is its own small world.
    if path.name in ("simulate.py", "simulate_images.py"):
        allowed |= {"io"}
    strangers = {
        name
        for name in own
        if not any(name == one or name.startswith(f"{one}.") for one in allowed)
        and name != "engine"
    }
    assert not strangers


@pytest.mark.parametrize("path", [one for one in FILES if one.parent.name in DOMAINS], ids=_id)
def test_a_domain_names_no_batch_system(path):
    found = re.findall(
        r"slurm|sbatch|torque\b|qsub", path.read_text(encoding="utf-8"), re.IGNORECASE
    )
    assert not found


def test_only_sites_ask_for_a_site_by_its_name():
    for path in FILES:
        if path.parent.name == "sites":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                values = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
                assert not {"local", "slurm", "torque"} & {*map(str, values)}, (path, node.lineno)


@pytest.mark.parametrize("path", MODELS, ids=_id)
def test_a_model_is_pure_maths(path):
    names = _imports(path, everywhere=True)
    roots = _roots(names) - set(sys.stdlib_module_names) - {"__future__"}
    assert roots <= {"numpy", "scipy", "numba", "astropy", "calibdask"}
    assert all(name == "astropy.units" for name in names if name.startswith("astropy"))
    own = {name for name in _own(names) if _is_module(name)}
    assert all(name.partition(".")[0] in ("stats", "errors") for name in own - PURE)
    assert not _roots(names) & {"os", "pathlib", "io", "time", "datetime", "random", "socket"}


@pytest.mark.parametrize(
    "path", [one for one in FILES if one.parent.name in ("stats", "engine", "io")], ids=_id
)
def test_what_domains_share_knows_no_domain(path):
    own = {name for name in _own(_imports(path, everywhere=True)) if _is_module(name)}
    assert not {name.partition(".")[0] for name in own} & set(DOMAINS)


@pytest.mark.parametrize("module", ["calibdask", "calibdask.cli"])
def test_the_command_line_starts_light(module):
    code = f"import sys, {module}; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_calibration_can_be_written_without_dask():
    code = (
        "import sys, calibdask.api, calibdask.engine.run, calibdask.engine.protocol\n"
        "heavy = {'dask', 'distributed', 'ctapipe', 'xarray'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_nothing_from_a_file_is_executed(path):
    """No pickle, no eval, no unsafe YAML: what is read stays data."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    picklers = _roots(_imports(path, everywhere=True)) & {"pickle", "cloudpickle", "marshal"}
    assert not picklers
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id=name):
                    assert name not in ("eval", "exec", "compile", "__import__"), node.lineno
                case ast.Attribute(value=ast.Name(id="yaml"), attr=name):
                    if name in ("load", "load_all"):
                        loader = [key for key in node.keywords if key.arg == "Loader"]
                        assert loader or len(node.args) > 1, node.lineno
                    assert name not in ("unsafe_load", "full_load", "unsafe_load_all"), node.lineno
                case ast.Attribute(value=ast.Name(id="np"), attr="load"):
                    (allow,) = [one.value for one in node.keywords if one.arg == "allow_pickle"]
                    assert allow.value is False, node.lineno


def _circle_of(module, graph):
    """Modules that a module imports, directly or not, and that import it; also through types."""

    def reached(start):
        found, todo = set(), [start]
        while todo:
            new = graph[todo.pop()] - found
            found |= new
            todo += new
        return found

    return {other for other in reached(module) if module in reached(other)}


def test_no_modules_import_each_other_in_a_circle():
    names = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    graph = {}
    for name, path in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("calibdask."):
                module = node.module.removeprefix("calibdask.")
                inner = {f"{module}.{alias.name}" for alias in node.names}
                found |= inner & names.keys() or {module}
        graph[name] = found & names.keys() - {name}
    circles = {frozenset(circle) for name in graph if (circle := _circle_of(name, graph))}
    assert not circles
