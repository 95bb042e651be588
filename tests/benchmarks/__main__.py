"""`python -m tests.benchmarks [name]` runs one benchmark, or all; --config and dotted overrides as everywhere."""

import importlib
import pkgutil
import sys

import jsonargparse

import tests.benchmarks

modules = [module.name for module in pkgutil.iter_modules(tests.benchmarks.__path__)]
names = [name.removeprefix("bench_") for name in modules if name.startswith("bench_")]
arguments = sys.argv[1:]
chosen = [arguments.pop(0)] if arguments and not arguments[0].startswith("-") else names
for name in chosen:
    if name not in names:
        sys.exit(f"there is no benchmark {name!r}; there are {', '.join(names)}")
    benchmark = importlib.import_module(f"tests.benchmarks.bench_{name}")
    benchmark.run(jsonargparse.auto_cli(benchmark.Config, args=arguments))
