"""The documentation is true: commands are understood, files and options exist, code runs, and the site builds alone."""

import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from data_pipeline.store.manifest import Manifest
from docs.generate import benchmarks_page, docstrings, files_page, inside, options_page
from foundation.datasets import DatasetConfig
from foundation.pretrain import PretrainConfig
from launch.__main__ import parse
from launch.distill import read_distillation
from launch.study import Stages, read_study
from launch.verbs import VERBS
from launch.words import options_of
from tests.conftest import REPOSITORY
from tests.pages import blocks, commands, run_python

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
CORPUS_OPTIONS = {"corpus", "folder", "download"}
OF_THE_PARSER = {"config", "recipe", "print_config", "help", "traceback", "offline"}
ALIASES = {"train"}
IN_ORDER = "first-fine-tune"
"""Page whose commands and lines of Python run in order in tests/end_to_end/test_first_fine_tune.py."""
TABLES = ("coming-from-mace", "coming-from-sevennet")
"""Pages with options of another program beside those of this one."""
OF_OTHERS = {"scancel": {"signal"}}
"""Options in the text that are another program's."""


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_is_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for words in commands(page.read_text()):
        if "--corpus" not in words:
            parse(words)
        else:
            assert words[words.index("--corpus") + 1] in VERBS["build"].load().epilog


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_target_of_make_exists(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    text = page.read_text()
    for words in [*commands(text, "make"), *(found.split() for found in re.findall(r"`make ([^`]+)`", text))]:
        assert words[0] in targets, words
        for name in re.findall(r"BENCH=([a-z_]+)", " ".join(words[1:])):
            assert name == "name" or (REPOSITORY / f"tests/benchmarks/bench_{name}.py").is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_file_that_is_named_exists(page: Path) -> None:
    tops = "configs|data_pipeline|docs|examples|foundation|launch|model_cards|tests"
    for name in re.findall(rf"`((?:{tops})/[^`\s]*)`", page.read_text()):
        assert (REPOSITORY / name).exists(), name
    for words in commands(page.read_text()):
        for name in (word for word in words if word.startswith("configs/")):
            assert (REPOSITORY / name).is_file(), name


def options() -> set[str]:
    """Return every option of every verb, in full and without the sections that it stands in."""
    found = CORPUS_OPTIONS | OF_THE_PARSER | ALIASES
    loaded = [verb.load() for verb in VERBS.values()]
    for config in (config for each in loaded for config in (each.config, *each.instead.values())):
        ends = Counter(name.rpartition(".")[2] for name in options_of(config))
        found |= {end for end, number in ends.items() if number == 1}
        found |= {name.rstrip("_") for name in config.__dataclass_fields__}
        for name, section in inside(config):
            found |= {f"{name}.{field}" for field in section.__dataclass_fields__} | {name}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_option_in_the_text_exists(page: Path) -> None:
    known = options()
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text()):
        for name in re.findall(r"(?<!\S)--([a-z][\w.-]*)", code):
            if name not in OF_OTHERS.get(code.split()[0], ()):
                assert name.replace("-", "_") in known, code


@pytest.mark.parametrize("name", TABLES)
def test_options_beside_those_of_another_program_exist(name: str) -> None:
    known = {each for verb in VERBS.values() for each in options_of(verb.load().config)}
    known |= ALIASES | OF_THE_PARSER | set(DatasetConfig.__dataclass_fields__)
    ends = known | {each.rpartition(".")[2] for each in known}
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \|", (REPOSITORY / "docs" / f"{name}.md").read_text(), flags=re.MULTILINE)
    found = [word for row in rows for code in re.findall(r"`(?!foundation)([^`]+)`", row) for word in code.split()]
    options = [word.lstrip("-") for word in found if re.fullmatch(r"--[\w.]+|[a-z_]+(\.[a-z_]+)*", word)]
    assert len(options) > 15
    values = {"or", "config", "blocks", "offline", "stratified_huber", "reewc"}
    assert [option for option in options if option not in ends | values] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_block_of_yaml_is_accepted_by_the_verb_in_its_title(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert len(blocks(text, "yaml")) == len(blocks(text, "yaml title="))
    for verb, block in re.findall(r'```yaml title="(\w+)"\n(.*?)```', text, flags=re.DOTALL):
        assert isinstance(yaml.safe_load(block), dict)
        (tmp_path / "block.yaml").write_text(block)
        if verb == "study":
            Stages(read_study(tmp_path / "block.yaml", quick=True), tmp_path, parse)
            continue
        if verb == "distill":
            Stages(read_distillation(tmp_path / "block.yaml", quick=True).study(), tmp_path, parse)
            continue
        parse([verb, "--config", str(REPOSITORY / "configs/pretrain/small.yaml"), "--config", f"{tmp_path}/block.yaml"])


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "```py" in page.read_text() and page.stem != IN_ORDER],
    ids=lambda path: path.stem,
)
def test_the_lines_of_python_run(
    page: Path, tmp_path: Path, emt_manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/data").mkdir(parents=True)
    (tmp_path / "runs/data/quickstart").symlink_to(emt_manifest.root)
    run_python(page.read_text())


def test_the_generated_pages_are_complete() -> None:
    page, files = options_page(), files_page()
    verbs = {entry.load().config: verb for verb, entry in VERBS.items()}
    for config, verb in verbs.items():
        assert f"## foundation {verb}\n" in page
        for _, section in inside(config):
            assert (f"### {section.__name__}\n" in page) == (section not in verbs)
    assert "| `fit` | [FitOptions](#fitoptions) |  |" in page
    rate = page.split("### OptimConfig\n")[1].split("| `optim.learning_rate` |")[1].split("\n")[0]
    assert re.fullmatch(r" number \| `0\.002` \| Highest learning rate; .* \| refused \|", rate)
    # a fine-tuning has defaults of its own
    assert "`learning_rate: 0.0007`, `weight_decay: 0.0`" in page.split("## foundation finetune\n")[1]
    assert docstrings(PretrainConfig).keys() == PretrainConfig.__dataclass_fields__.keys()
    for file in (path for package in ("data_pipeline", "foundation", "launch") for path in Path(package).rglob("*.py")):
        assert file.name == "__init__.py" or f"- `{file.name}`: " in files.split(f"### {file.parent}\n")[1]
    names = {path.stem.removeprefix("bench_") for path in (REPOSITORY / "tests/benchmarks").glob("bench_*.py")}
    assert {row.split("`")[1] for row in benchmarks_page().splitlines()[2:]} == names


class Fetched(HTMLParser):
    """Addresses that a browser fetches for a page: all but those of links, which a reader has to click."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.classes |= set(values.get("class", "").split())
        if tag != "a":
            self.addresses += [values[name] for name in ("src", "srcset", "href", "data", "poster") if name in values]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does it: a broken link, anchor or image is an error."""
    out = tmp_path_factory.mktemp("site")
    words = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_in_the_site_and_nothing_is_left_to_generate(site: Path) -> None:
    for page in (*(path.relative_to(REPOSITORY) for path in PAGES), *Path("examples").glob("*.py")):
        built = site / ("index.html" if page.name == "README.md" else page.with_suffix(".html"))
        assert built.is_file(), built
        assert "<!-- options" not in built.read_text()
    assert "fit.lanes" in (site / "search/search_index.json").read_text()


def test_a_browser_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = Fetched()
        fetched.feed(page.read_text())
        assert [address for address in fetched.addresses if re.match(r"(\w+:)?//", address)] == [], page
        # what the theme would load from elsewhere for diagrams and for the numbers of a repository
        assert not fetched.classes & {"mermaid", "md-source"}, page
    for style in site.rglob("*.css"):
        text = style.read_text()
        assert re.findall(r"@import[^;]*|url\(['\"]?(?:\w+:)?//[^)]*\)", text) == [], style
