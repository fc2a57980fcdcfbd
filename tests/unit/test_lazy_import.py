"""What an import brings with it, seen from a fresh process."""

import subprocess
import sys

import pytest

import luotuo_integrations

HEAVY = (
    "chromadb",
    "faiss",
    "huggingface_hub",
    "langchain_core",
    "llama_index",
    "numpy",
    "openai",
    "pydantic",
    "rich",
    "sentence_transformers",
    "tokenizers",
    "torch",
    "transformers",
    "typer",
)


def modules_after(code: str) -> set[str]:
    """The heavy modules in memory after running code in a new Python."""
    listed = f"{code}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", listed], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_package_brings_nothing() -> None:
    assert (
        modules_after("import luotuo_integrations; dir(luotuo_integrations); luotuo_integrations.__version__") == set()
    )


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("from luotuo_integrations import CARDS, DEFAULT_MODEL, ModelCard", set(HEAVY)),
        ("import luotuo_integrations.registry as r; r.resolve(r.DEFAULT_MODEL)", set(HEAVY)),
        # A box with torch and transformers alone can compute vectors.
        (
            "import luotuo_integrations.encoder, luotuo_integrations.luotuo_bert",
            {"langchain_core", "llama_index", "faiss", "chromadb", "sentence_transformers"},
        ),
        # Making, pickling and copying the class needs the two frameworks, but neither torch nor a model.
        (
            "import copy, pickle; from luotuo_integrations import LuotuoEmbeddings; one = LuotuoEmbeddings(); "
            "pickle.loads(pickle.dumps(copy.deepcopy(one))); one.dimension",
            {"torch", "transformers", "tokenizers", "huggingface_hub", "faiss", "chromadb", "sentence_transformers"},
        ),
        ("import luotuo_integrations.cross_encoder", {"langchain_core", "llama_index", "sentence_transformers"}),
        # Of rerankers, too, only using one loads the model.
        (
            "import copy, pickle; from luotuo_integrations import LuotuoReranker; one = LuotuoReranker(model='x'); "
            "pickle.loads(pickle.dumps(copy.deepcopy(one)))",
            {"torch", "transformers", "tokenizers", "llama_index", "sentence_transformers"},
        ),
        (
            "from luotuo_integrations import LuotuoRerank; LuotuoRerank(model='x')",
            {"torch", "transformers", "langchain_core", "sentence_transformers"},
        ),
        ("import luotuo_integrations.evaluation", {"torch", "transformers", "langchain_core", "llama_index"}),
    ],
)
def test_a_room_brings_no_more_than_it_needs(code: str, absent: set[str]) -> None:
    assert modules_after(code) & absent == set()


def test_computing_a_vector_needs_no_framework() -> None:
    code = (
        "import sys\n"
        "for name in ('langchain_core', 'llama_index', 'faiss', 'chromadb', 'sentence_transformers'):\n"
        "    sys.modules[name] = None\n"
        "from luotuo_integrations import Encoder\n"
        "assert Encoder(device='cpu').encode(['试用期可以请年假吗']).shape == (1, 384)\n"
    )
    assert "torch" in modules_after(code)


@pytest.mark.parametrize("name", sorted(set(luotuo_integrations.__all__) - {"__version__"}))
def test_every_name_is_there(name: str) -> None:
    value = getattr(luotuo_integrations, name)
    assert value is getattr(luotuo_integrations, name)
    assert name in dir(luotuo_integrations)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Luotuo'; it has .*LuotuoEmbeddings"):
        _ = luotuo_integrations.Luotuo
    with pytest.raises(ImportError, match="Luotuo"):
        from luotuo_integrations import Luotuo  # noqa: F401
