"""Who may import whom, read from the sources."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections import defaultdict
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import pytest

import calibdask

PACKAGE = Path(calibdask.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
SHARED = {"config", "engine", "io", "report", "select", "stats"}
DOMAINS = sorted(
    path.name
    for path in PACKAGE.iterdir()
    if (path / "__init__.py").exists() and path.name not in SHARED
)
HEAVY = ["astropy", "ctapipe", "dask", "distributed", "numpy", "tables", "xarray"]

# What any module of a domain may take from the package besides its own domain: a module, or a
# package with all in it.
FOR_DOMAINS = {"config", "errors", "flags", "rounding", "schema", "select", "stats", "version"}

# What modules may take besides, by their role: the first pattern of the name that fits. Whatever is
# neither options, tables, a report, a simulator nor a model is a job's file.
ROLES = {
    "*config.py": set(),
    "tables.py": {"io"},  # of schemas that two domains share
    "*report*.py": {"report"},
    "report/*.py": {"report"},
    "simul*.py": {"io", "simulation"},
    "*_simulation.py": {"simulation"},
    "*.py": {"engine.protocol", "io", "report"},
}

# Formulas: model.py of each domain or package within it, and these.
MORE_MODELS = (
    "array/image_size.py",
    "array/network/drift.py",
    "array/network/goodness.py",
    "array/network/pairs.py",
    "array/network/scores.py",
    "array/network/stages.py",
    "array/network/state.py",
    "array/timing_model.py",
    "array/timing_walk.py",
    "muon/intensity.py",
    "muon/intensity_fit.py",
    "muon/ring.py",
    "sensor/photon_transfer.py",
    "sensor/spatial.py",
    "sensor/standard.py",
)
MODELS = sorted({*PACKAGE.rglob("model.py"), *(PACKAGE / name for name in MORE_MODELS)})
PURE = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for path in MODELS}


def _domain(path):
    """Domain of a module, or None: packages within a domain are of the domain."""
    first = path.relative_to(PACKAGE).parts[0]
    return first if first in DOMAINS else None


def _of_role(path):
    within = path.relative_to(PACKAGE / _domain(path))
    role = next(role for role in ROLES if fnmatch(str(within), role) or fnmatch(path.name, role))
    return ROLES[role]


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


@pytest.mark.parametrize("path", [one for one in FILES if _domain(one)], ids=_id)
def test_a_domain_imports_what_its_role_may(path):
    own = {name for name in _own(_imports(path, everywhere=True)) if _is_module(name)}
    allowed = {*FOR_DOMAINS, _domain(path), *_of_role(path)}
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
    "path", [one for one in FILES if one.relative_to(PACKAGE).parts[0] in SHARED], ids=_id
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


# Names that are still defined twice outside of the array's modules; nothing is added here.
TWICE = {
    *("Campaign", "Progress", "Written", "cancel", "connect", "describe", "main"),
    *("exact_sums", "histogram", "load_config", "moments"),
}
HIDING = {"Unit", "Column", "Table", "connect"}


def _public_names():
    """Public classes and functions by the modules that define them."""
    found = defaultdict(set)
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {one.name for one in tree.body if isinstance(one, ast.ClassDef | ast.FunctionDef)}
        for node in tree.body:
            match node:
                case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List() as names):
                    for name in defined.intersection(ast.literal_eval(names)):
                        found[name].add(_id(path))
    return found


def test_public_names_are_unique_over_the_package():
    twice = {name: where for name, where in _public_names().items() if len(where) > 1}
    assert not {name: where for name, where in twice.items() if name not in TWICE}


@pytest.mark.parametrize("module", ["coordinates", "table", "time", "units"])
def test_no_public_name_hides_one_of_astropy(module):
    theirs = import_module(f"astropy.{module}")
    hidden = {
        name: where
        for name, where in _public_names().items()
        if inspect.isroutine(one := getattr(theirs, name, None)) or inspect.isclass(one)
    }
    assert not hidden.keys() - HIDING, hidden


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
