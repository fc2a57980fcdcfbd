"""The arrows of docs/architecture.md are those of the code: none that is not drawn, none drawn that is not there."""

import ast
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from luotuo_integrations import training

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "luotuo_integrations"
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ANYBODY = {"_optional", "errors"}
FRAMEWORKS = {"langchain_core", "langchain_text_splitters", "langchain_chroma", "llama_index"}
# Dropped by their makers, or more than is needed: nothing of ours may come to lean on them.
NEVER = {
    "langchain",
    "langchain_community",
    "langchain_classic",
    "sentence_transformers",
    "httpx",
    "dill",
    "cloudpickle",
}
MOST_LINES = 350
MOST_LINES_OF_A_FUNCTION = 60


def module_names() -> list[str]:
    """``encoder``, ``store.core`` and so on, without the packages' own ``__init__``."""
    paths = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return [".".join(path.parts) for path in paths if path.name != "__init__"]


MODULES = module_names()
PACKAGES = {name.split(".")[0] for name in MODULES if "." in name}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))


@cache
def imports(name: str) -> frozenset[str]:
    """Dotted names that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def rooms_imported(name: str) -> set[str]:
    """Our own modules that a module imports."""
    ours = {dotted.removeprefix("luotuo_integrations.") for dotted in imports(name) if "luotuo_integrations." in dotted}
    return {room for room in MODULES if any(one == room or one.startswith(f"{room}.") for one in ours)}


def block(heading: str) -> str:
    """The fenced block under a heading of the document."""
    return DOCUMENT.split(f"## {heading}\n", 1)[1].split("```", 2)[1]


def drawn_arrows() -> set[tuple[str, str]]:
    """(A, B) for each drawn A -> B: B may import A. A name before a colon is the package that a line is about."""
    arrows = set()
    package = ""
    for line in re.sub(r",\n\s+", ", ", block("Arrows")).splitlines():
        about = re.match(r"(\w+):\s+", line)
        package = about[1] + "." if about else package if line.startswith(" ") else ""
        for statement in re.split(r"\s{2,}", line[about.end() if about else 0 :].strip()):
            groups = [[package + name for name in group.split(", ")] for group in statement.split(" -> ")]
            arrows |= {(a, b) for left, right in pairwise(groups) for a in left for b in right}
    return arrows


DRAWN = drawn_arrows()


def drawn_above(name: str) -> set[str]:
    """What a module may import: what is drawn to it, and what is drawn to its package."""
    return {a for a, b in DRAWN if b in {name, name.split(".")[0]}}


def test_the_drawing_is_read() -> None:
    assert ("registry", "modeling") in DRAWN
    assert ("store.index", "store.reader") in DRAWN
    assert ("store", "knowledge_base") in DRAWN
    assert ("modeling", "registry") not in DRAWN


def test_every_name_in_the_drawing_is_a_room() -> None:
    assert {name for arrow in DRAWN for name in arrow} - set(MODULES) - PACKAGES == set()


@pytest.mark.parametrize("name", MODULES)
def test_a_room_imports_along_drawn_arrows_only(name: str) -> None:
    allowed = drawn_above(name) | ANYBODY
    missing = {room for room in rooms_imported(name) if room not in allowed and room.split(".")[0] not in allowed}
    assert not missing, f"draw these in docs/architecture.md, or do without them: {sorted(missing)} -> {name}"


@pytest.mark.parametrize(("above", "below"), sorted(DRAWN))
def test_a_drawn_arrow_is_there(above: str, below: str) -> None:
    users = [name for name in MODULES if name == below or name.startswith(f"{below}.")]
    used = set().union(*(rooms_imported(user) for user in users))
    assert any(room == above or room.startswith(f"{above}.") for room in used), "erase it in docs/architecture.md"


def test_arrows_run_one_way() -> None:
    seen: set[str] = set()

    def walk(name: str, road: tuple[str, ...]) -> None:
        assert name not in road, " -> ".join((*road, name))
        if name not in seen:
            for room in rooms_imported(name):
                walk(room, (*road, name))
            seen.add(name)

    for name in MODULES:
        walk(name, ())


def test_nobody_imports_the_command_line() -> None:
    assert [name for name in MODULES if "cli" in rooms_imported(name)] == []


@pytest.mark.parametrize("name", MODULES)
def test_every_room_is_named_in_the_list_of_files(name: str) -> None:
    package, _, last = name.rpartition(".")
    files = block("Files")
    if package:
        paragraph = re.search(rf"^  {package}/.*(\n {{10,}}.*)*", files, re.MULTILINE)
        assert paragraph is not None
        assert re.search(rf"\b{last}\b", paragraph[0])
    else:
        assert re.search(rf"\b{last}\.py\b", files)


def test_every_file_in_the_list_is_there() -> None:
    listed = set(re.findall(r"\b(\w+)\.py\b", block("Files"))) - {"combinations"}
    assert listed - {"__init__"} - set(MODULES) == set()


def below_embeddings() -> set[str]:
    found: set[str] = set()
    waiting = ["embeddings"]
    while waiting:
        for room in rooms_imported(waiting.pop()) - found:
            found.add(room)
            waiting.append(room)
    return found


def framework_free() -> list[str]:
    packaged = {name for name in MODULES if name.split(".")[0] in {"store", "parsing", "training"}}
    measures = {"evaluation", "significance", "similarity_metrics"}
    judging = {"rerank_prompts", "rerank_models", "cross_encoder", "rerank_settings"}
    others = {"luotuo_bert", "causal_model", "chinese_tokens", "snippets"}
    return sorted(below_embeddings() | packaged | ANYBODY | measures | judging | others)


def test_the_encoder_and_its_kin_lie_below_the_embeddings() -> None:
    assert {"registry", "modeling", "encoder", "tokenization", "coalescing", "texts"} <= set(framework_free())


@pytest.mark.parametrize("name", framework_free())
def test_rooms_below_know_no_framework(name: str) -> None:
    assert {dotted.split(".")[0] for dotted in imports(name)} & FRAMEWORKS == set()


@pytest.mark.parametrize("name", MODULES)
def test_nothing_leans_on_what_is_wound_down(name: str) -> None:
    assert {dotted.split(".")[0] for dotted in imports(name)} & NEVER == set()


def test_pickles_are_read_in_one_place_alone() -> None:
    """Only the import of folders that LangChain's own FAISS wrote: through a list of what a pickle may hold."""
    readers = {name for name in MODULES if "pickle" in {dotted.split(".")[0] for dotted in imports(name)}}
    assert readers <= {"legacy_faiss"}


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_short(name: str) -> None:
    source = (PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_LINES
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            start = (first.end_lineno or 0) if told else node.lineno
            assert (node.end_lineno or 0) - start <= MOST_LINES_OF_A_FUNCTION, node.name


def test_only_its_own_commands_import_training() -> None:
    users = {name for name in MODULES if any(room.startswith("training.") for room in rooms_imported(name))}
    assert {name for name in users if not name.startswith("training.")} == {"cli_training"}


def test_the_front_of_training_names_what_is_there_and_imports_nothing() -> None:
    front = ast.parse((PACKAGE / "training" / "__init__.py").read_text(encoding="utf-8"))
    top = {ast.unparse(node) for node in front.body if isinstance(node, ast.Import | ast.ImportFrom)}
    assert top == {"import importlib", "from typing import TYPE_CHECKING, Any"}
    for name in training.__all__:
        assert isinstance(getattr(training, name), type), name


def test_other_packages_have_empty_fronts() -> None:
    for package in PACKAGES - {"training"}:
        front = ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
        assert [node for node in front.body if not isinstance(node, ast.Expr)] == []
