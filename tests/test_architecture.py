"""The house keeps its shape: import direction, one door per dependency, sizes, names, configs."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import jsonargparse
import pytest
import yaml

from data_pipeline.building.build import BuildConfig
from foundation.convert import ConvertConfig
from foundation.evaluate import EvaluateConfig
from foundation.export import ExportConfig
from foundation.finetune import FinetuneConfig
from foundation.finetuning.fisher import FisherConfig
from foundation.models import ARCHITECTURES, EnergyModel
from foundation.pretrain import PretrainConfig
from launch.distill import read_distillation
from launch.quickstart import QuickstartConfig
from launch.study import Stages, read_study
from launch.sweep import SweepConfig
from launch.verbs import VERBS, parse

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("data_pipeline", "foundation", "launch")
SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
ALL_CODE = [*SOURCES, *sorted((REPOSITORY / "tests").rglob("*.py"))]
FLOORS = (
    ("foundation.configuration", "foundation.provenance"),
    ("foundation.kernels",),
    ("foundation.nn",),
    ("foundation.models",),
    ("foundation.potential", "foundation.last_layer"),
    ("foundation.recording",),
    ("foundation.checkpoint", "foundation.datasets", "foundation.golden", "foundation.surgery", "foundation.testing"),
    ("foundation.evaluation", "foundation.engine"),
    (
        "foundation.training",
        "foundation.run_folder",
        "foundation.interop",
        "foundation.naming",
        "foundation.releases",
        "foundation.simulation",
    ),
    ("foundation.reports",),
    ("foundation.finetuning",),
    (
        "foundation.pretrain",
        "foundation.finetune",
        "foundation.evaluate",
        "foundation.discovery",
        "foundation.coverage",
        "foundation.uncertainty",
        "foundation.predict",
        "foundation.export_for",
        "foundation.engines",
        "foundation.relax",
        "foundation.md",
        "foundation.inspect",
        "foundation.export",
        "foundation.convert",
        "foundation.released",
        "foundation.publish",
        "foundation.report",
    ),
)
"""Inside foundation: a module imports from its own floor or those before it."""
DOORS = {
    "lightning": ("foundation/training/",),
    "webdataset": ("data_pipeline/store/shards.py",),
    "ase": ("data_pipeline/sources/", "foundation/interop/", "foundation/evaluation/suites/"),
    "jsonargparse": ("launch/parser.py",),
    "yaml": ("launch/yaml_files.py", "foundation/releases/registry.py"),
    "deepspeed": ("foundation/training/lightning_internals.py",),
    "aiohttp": ("data_pipeline/store/remote.py",),
    "fsspec": ("data_pipeline/store/remote.py",),
    "mpi4py": ("data_pipeline/building/build.py",),
    "e3nn": (
        "foundation/kernels/",
        "foundation/nn/",
        "foundation/models/",
        "foundation/interop/sevennet",
        "foundation/engine/",
    ),
    "lmdb": ("data_pipeline/sources/",),
    "h5py": ("data_pipeline/sources/mace_hdf5.py", "foundation/evaluation/suites/crystals/conductivity.py"),
    "requests": ("data_pipeline/corpora/download.py",),
    "huggingface_hub": ("foundation/publish.py",),
    "phono3py": ("foundation/evaluation/suites/crystals/conductivity.py", "foundation/interop/conductivity.py"),
    "phonopy": ("foundation/evaluation/suites/crystals/conductivity.py", "foundation/interop/conductivity.py"),
    "spglib": ("foundation/interop/symmetry.py", "foundation/interop/conductivity.py"),
    "pyarrow": ("foundation/interop/result_files.py",),
    "pymatgen": ("foundation/interop/matching.py",),
    "sevenn": (),
    "wandb": (),
}
"""The only places that may import each dependency."""
WRITERS = {
    "data_pipeline.store.lock.say_who": "the file of a lock is written where it is: another one would not be locked",
    "data_pipeline.corpora.archives._write": "into the folder that unpack() gives its name when it is whole",
    "data_pipeline.corpora.download._append": "a download goes on where it broke off",
    "foundation.checkpoint.write_into": "into the folder that save() and export give its name when it is whole",
    "foundation.checkpoint.write_description": "into the folder that save() and export give its name when it is whole",
    "foundation.checkpoint.write_checksums": "the same",
    "foundation.export.finish": "the same",
    "foundation.last_layer.save": "into a folder that gets its name when it is whole",
    "foundation.kernels.cpu.compiler._compile": "source for the compiler in a temporary folder",
    "foundation.training.probe._Bench._checkpoint": "a temporary file, to measure how long it takes",
    "foundation.training.monitoring.metrics_file.MetricsFile.append": "only appended to, and a torn line is left out",
    "foundation.interop.lines.append_line": "only appended to, and a torn line is left out",
    "foundation.interop.in_lammps.InLammps._rows": "input of LAMMPS in a temporary folder",
    "foundation.interop.in_ipi._run": "input of i-PI in a temporary folder",
    "foundation.interop.lammps_mliap.Unified.save": "into memory",
    "launch.preflight.preflight": "may be a pipe, such as /dev/stdout",
    "launch.jobs.alone": "the file of a lock",
    "launch.jobs.Processes._start": "output of a process",
}
"""Functions that write a file otherwise than by store/durable.py, and why they may."""
CONFIG_CLASSES = {
    "quickstart.yaml": QuickstartConfig,
    "data": BuildConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "recipes": FinetuneConfig,
    "fisher": FisherConfig,
    "sweep": SweepConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "convert": ConvertConfig,
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Return every module that a file imports, `from a import b` as a.b as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor(module: str) -> int | None:
    for number, prefixes in enumerate(FLOORS):
        if any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes):
            return number
    return None


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_packages_import_downwards_only(path: Path) -> None:
    own = PACKAGES.index(path.relative_to(REPOSITORY).parts[0])
    for module in imports(path):
        if module.split(".")[0] in PACKAGES:
            assert PACKAGES.index(module.split(".")[0]) <= own, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_floors_of_foundation_import_downwards_only(path: Path) -> None:
    own = floor(name_of(path))
    if own is None:
        assert not name_of(path).startswith("foundation.") or name_of(path) == "foundation"
        return
    for module in imports(path):
        other = floor(module)
        assert other is None or other <= own, f"{name_of(path)} imports {module} from a floor above"


def test_there_is_no_import_circle() -> None:
    names = {name_of(path): path for path in SOURCES}
    graph = {name: {m for m in imports(path) if m in names and m != name} for name, path in names.items()}
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name in graph if name not in done and graph[name] <= done}
        assert ready, f"a circle among {sorted(set(graph) - done)}"
        done |= ready


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_dependency_has_one_door(path: Path) -> None:
    place = path.relative_to(REPOSITORY).as_posix()
    for module in imports(path):
        doors = DOORS.get(module.split(".")[0])
        assert doors is None or place.startswith(doors or "-"), f"{place} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_saved_for_its_owner_alone(path: Path) -> None:
    # safetensors gives its files the mode 0600, whatever the umask
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if ast.unparse(call.func).rpartition(".")[2] == "save_file"]


def given_by_durable(node: ast.With, given: frozenset[str]) -> frozenset[str]:
    """Return the names of the files and folders in a with statement that durable.py will put in their place."""
    for item in node.items:
        called = ast.unparse(item.context_expr.func) if isinstance(item.context_expr, ast.Call) else ""
        known = called in ("durable.whole_file", "durable.whole_folder", *(f"{name}.open" for name in given))
        if known and isinstance(item.optional_vars, ast.Name):
            given |= {item.optional_vars.id}
    return given


def writes(node: ast.Call) -> bool:
    """Return whether a call writes, renames or flushes a file, by its name and arguments."""
    called = ast.unparse(node.func)
    last = called.rpartition(".")[2]
    if called in ("os.replace", "os.rename", "os.renames", "os.fsync", "shutil.move", "torch.save"):
        return True
    if last in ("write_text", "write_bytes", "savefig", "save_file", "rename"):
        return "." in called
    if last == "replace" and called != "dataclasses.replace":  # of a text, it has two arguments
        return "." in called and len(node.args) == 1
    modes = [each.value for each in [*node.args, *(k.value for k in node.keywords)] if isinstance(each, ast.Constant)]
    return last == "open" and any(isinstance(mode, str) and set(mode) & set("wxa+") for mode in modes)


def writers(node: ast.AST, name: str, given: frozenset[str] = frozenset()) -> set[str]:
    """Return the functions in a tree that write a file that durable.py has not given them."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        name = f"{name}.{node.name}"
    if isinstance(node, ast.With):
        given = given_by_durable(node, given)
    found = set()
    if isinstance(node, ast.Call) and writes(node):
        used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        found = set() if used & given else {name}
    return found.union(*(writers(child, name, given) for child in ast.iter_child_nodes(node)))


def test_files_are_written_whole_by_one_module() -> None:
    found = set().union(*(writers(ast.parse(path.read_text()), name_of(path)) for path in SOURCES))
    assert {name for name in found if not name.startswith("data_pipeline.store.durable.")} == set(WRITERS)


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text(text)",
        "(folder / 'x.json').write_bytes(content)",
        "path.open('w')",
        "path.open(mode='ab')",
        "open(path, 'x')",
        "os.replace(partial, path)",
        "partial.rename(path)",
        "partial.replace(path)",
        "os.fsync(file)",
        "figure.savefig(path, dpi=150)",
        "with durable.whole_file(path) as partial:\n        path.write_text(text)",
    ],
)
def test_a_file_that_is_written_by_hand_is_found(line: str) -> None:
    assert writers(ast.parse(f"def write():\n    {line}"), "module") == {"module.write"}


@pytest.mark.parametrize(
    "line",
    [
        "text.replace('a', 'b')",
        "dataclasses.replace(config)",
        "path.open('rb')",
        "path.open()",
        "with durable.whole_file(path) as partial, partial.open('x') as file:\n        file.write(text)",
        "with durable.whole_folder(path) as folder:\n        (folder / 'x').write_text(text)",
    ],
)
def test_what_writes_no_file_by_hand_is_not_found(line: str) -> None:
    assert writers(ast.parse(f"def write():\n    {line}"), "module") == set()


MOST_READS = 40
"""Reads of a mapping by a constant name that are allowed in all: a record that crosses rooms has a class."""
FORMATS = (
    "data_pipeline/sources/",
    "foundation/interop/",
    "foundation/convert.py",
    "data_pipeline/store/block.py",
    "data_pipeline/store/lock.py",
    "data_pipeline/store/manifest.py",
    "foundation/evaluation/held_out.py",
    "foundation/training/fault_tolerance/checkpoints.py",
    "foundation/training/fault_tolerance/reading.py",
    "foundation/training/fault_tolerance/stored_potential.py",
    "foundation/training/monitoring/metrics_file.py",
)
"""Rooms and files that read what others write, or both write and read a format of their own."""
READERS = re.compile(r"_?(from|read|parse|load|describe)(_|$)|on_load_checkpoint$")
"""Names of functions that turn the content of a file into objects."""
NAMED_NUMBERS = {"arrays", "_arrays", "tensors", "sums", "_seen", "extras", "state", "group", "environ", "headers"}
"""Names of mappings of arrays and tensors, of torch's state of an optimizer, of the environment, of HTTP's headers."""


def reads_by_name(path: Path) -> list[str]:
    """Return every `mapping["name"]`, `.get("name")` and `.pop("name")` of a file that a class should stand for."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    readers = (node for node in nodes if isinstance(node, ast.FunctionDef) and READERS.match(node.name))
    inside = {id(each) for node in readers for each in ast.walk(node)}
    found = []
    for node in nodes:
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            base, key = node.value, node.slice
        elif isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute):
            base, key = node.func.value, node.args[0] if node.func.attr in ("get", "pop") else None
        else:
            continue
        if id(node) in inside or not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            continue
        name = ast.unparse(base).rpartition(".")[2]
        # a type and a table of constants begin with a capital; a metric of the log has a slash
        if name not in NAMED_NUMBERS and not name[0].isupper() and "/" not in key.value:
            found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    return found


def test_records_that_cross_rooms_have_classes_and_are_not_read_by_names() -> None:
    outside = [path for path in SOURCES if not path.relative_to(REPOSITORY).as_posix().startswith(FORMATS)]
    found = [read for path in outside for read in reads_by_name(path)]
    assert len(found) <= MOST_READS, "\n".join(found)


REACHES_INSIDE = ("foundation/training/lightning_internals.py", "launch/parser.py")
"""The files that reach inside Lightning and DeepSpeed, and inside argparse: one for each."""
DOCUMENTED = {"os._exit", "sys._current_frames"}
"""Names with an underscore that Python's documentation has."""
OF_NAMED_TUPLES = {"_fields", "_replace", "_asdict", "_make"}
"""Names that every named tuple has."""


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_private_attributes_are_reached_by_who_defines_them(path: Path) -> None:
    if path.relative_to(REPOSITORY).as_posix() in REACHES_INSIDE:
        return
    nodes = list(ast.walk(ast.parse(path.read_text())))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in nodes:
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            of_self = isinstance(node, ast.Name) or getattr(node.value, "id", "") in ("self", "cls")
            own |= {node.id if isinstance(node, ast.Name) else node.attr} if of_self else set()
    for node in nodes:
        named = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        name = named.rpartition(".")[2]
        private = name.startswith("_") and not name.endswith("__") and name not in OF_NAMED_TUPLES
        assert not private or name in own or named in DOCUMENTED, f"{name_of(path)} reaches {named}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nobody_but_the_models_and_converters_knows_an_architecture(path: Path) -> None:
    interop = tuple(f"foundation.interop.{name}" for name in ("sevennet", "behler_parrinello"))
    if name_of(path).startswith(("data_pipeline", "foundation.models", "foundation.engine", *interop)):
        return
    concrete = {config.__name__ for config in ARCHITECTURES.values()}
    networks = [each for each in EnergyModel.__subclasses__() if each.__module__.startswith("foundation.")]
    concrete |= {network.__name__ for network in networks}
    modules = {config.__module__ for config in ARCHITECTURES.values()}
    assert len(concrete) == 2 * len(ARCHITECTURES)
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    found = {module for module in imports(path) if module in modules or module.rpartition(".")[2] in concrete}
    assert not (names & concrete) | found


@pytest.mark.parametrize("path", ALL_CODE, ids=name_of)
def test_files_functions_and_names_keep_the_house_rules(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 500
    assert path.stem not in {"utils", "util", "common", "helpers", "base", "misc", "v2"}
    assert "from __future__ import annotations" not in text or path == Path(__file__)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{name_of(path)}.{node.name} is too long"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_parses_into_its_config_class(path: Path, tmp_path: Path) -> None:
    place = path.relative_to(REPOSITORY / "configs").parts[0]
    if place == "suite":
        parse(["evaluate", "--model", "m", "--suites", path.stem])
        return
    if place in ("study", "distill"):  # with all steps
        for quick in (False, True):
            study = read_study(path, quick=quick) if place == "study" else read_distillation(path, quick=quick).study()
            Stages(study, tmp_path, parse)
        return
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CONFIG_CLASSES[place], fail_untyped=True)
    # a recipe lies below options that name the rest
    given = {"start": "s", "data": "d", "out": "o"} if place == "recipes" else {}
    parser.parse_object(given | yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "tests" / "benchmarks").glob("bench_*.py")), ids=name_of)
def test_every_benchmark_can_be_started(path: Path) -> None:
    # they run by hand only, and would be found broken by whoever wants a number
    benchmark = importlib.import_module(name_of(path))
    assert callable(benchmark.run)
    assert dataclasses.is_dataclass(benchmark.Config())


PAGES = [REPOSITORY / "README.md", *(REPOSITORY / "model_cards").rglob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]


HEADLESS = ("What", "Which", "How", "Whether", "Where")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_docstrings_begin_with_a_noun_or_an_imperative(path: Path) -> None:
    # of modules, classes, functions and fields: they are the help of the command line too
    headless = []
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", None)
        for text in body if isinstance(body, list) else ():
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                first = str(text.value.value).split()[:1]
                headless += [text.lineno] if first and first[0].strip(":,") in HEADLESS else []
    assert not headless, f"{name_of(path)}, lines {headless}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_is_named_by_a_page_or_a_test(path: Path) -> None:
    name = path.relative_to(REPOSITORY).as_posix()
    texts = [file.read_text() for file in (*PAGES, *(REPOSITORY / "tests").rglob("*.py"))]
    listed = f"`{path.stem}`"  # in the list of recipes of docs/training.md
    assert any(name in text or (path.parent.name == "pretrain" and listed in text) for text in texts)


def test_configs_are_frozen_keyword_only_and_without_public_methods() -> None:
    for config_class in (verb.load().config for verb in VERBS.values()):
        parameters = config_class.__dataclass_params__
        assert parameters.frozen
        assert all(field.kw_only for field in dataclasses.fields(config_class))
        public = [n for n in vars(config_class) if not n.startswith("_") and callable(vars(config_class)[n])]
        assert not public, f"{config_class.__name__} has methods {public}"
