"""Every example runs, and prints what it promises."""

import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core import Settings

from tests.openai_stub import OpenAIStubServer
from tests.tiny_rerankers import save_bert

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _settings_as_before() -> Iterator[None]:
    """LlamaIndex's settings are global, and an example sets them."""
    before = Settings._embed_model
    yield
    Settings._embed_model = before


def printed(name: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    argv = sys.argv
    try:
        sys.argv = [name, *arguments]
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = argv
    return capsys.readouterr().out


def test_each_example_is_short_named_in_the_readme_and_tested() -> None:
    examples = sorted(EXAMPLES.glob("*.py"))
    assert len(examples) >= 6
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    tests = Path(__file__).read_text(encoding="utf-8")
    for example in examples:
        text = example.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60, example.name
        assert f"`{example.name}`" in readme
        assert f'printed("{example.stem}"' in tests


def test_faiss_langchain(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("faiss_langchain", capsys)
    assert out.startswith("2 个文件，切成 ")
    assert out.count("问：") == 3
    assert "差旅管理办法.docx · 差旅管理办法 > 一线城市住宿标准" in out
    assert "每月 10 日发放" in out
    only = out[out.index("只查薪酬福利：") : out.index("删去")]
    assert re.findall(r"^  (\S+) · ", only, re.MULTILINE) == ["薪酬福利.html"] * 3
    before, after = re.search(r"：(\d+) 块剩 (\d+) 块", out).groups()
    assert 0 < int(after) < int(before)


def test_faiss_llamaindex(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("faiss_llamaindex", capsys)
    assert out.startswith("2 个文件，切成 ")
    assert "野灯 1500 户外电源说明书 > 14 野灯 1500 长期存放 · 第 3 页" in out
    assert "不制冷或制冷慢的排查" in out
    assert re.search(r"只查 PDF：野灯 1500 户外电源说明书 > .*保修，第 \d 页", out)
    before, after = re.search(r"：(\d+) 块剩 (\d+) 块", out).groups()
    assert 0 < int(after) < int(before)


def test_chroma_langchain(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("chroma_langchain", capsys)
    assert re.search(r"存入 \d+ 篇。", out)
    assert "休假制度.md · " in out
    assert "只查休假制度：" in out


def test_chroma_llamaindex(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("chroma_llamaindex", capsys)
    assert "野灯600户外电源说明书 · 野灯 600 长期存放" in out
    first, then = re.search(r"删去“(.+)”之后，第一条是“(.+)”。", out).groups()
    assert first != then


def test_chatglm_qa_with_a_stub_for_the_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    manual = EXAMPLES / "data" / "产品手册" / "野灯1500户外电源说明书.pdf"
    shutil.copy(manual, tmp_path)
    options = ("--documents", str(tmp_path))
    with OpenAIStubServer("充到百分之五十左右，再关机存放[1]。", models=["glm-4-9b-chat"]) as stub:
        out = printed("chatglm_qa", capsys, "--base-url", stub.base_url, "--model", "glm-4-9b-chat", *options)
    assert "答：充到百分之五十左右，再关机存放[1]。" in out
    assert re.findall(r"^  \[(\d)\] ", out, re.MULTILINE) == ["1"]
    assert "长期存放" in out
    assert len(stub.requests) == 1  # small talk is not sent to the model
    assert stub.requests[0]["stream"]
    assert "答：文档中没有找到与这个问题相关的内容。" in out


def test_mapper(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = printed("mapper", capsys, str(tmp_path / "faq.mapper"))
    assert out.startswith("60 对问答；留出的问题：MRR 不用映射 0.")
    assert "映射什么也不改" in out or "方法：" in out
    assert "住宿" in out.partition("答：")[2]
    assert (tmp_path / "faq.mapper").is_file()


def test_embedding_cache(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = printed("embedding_cache", capsys, str(tmp_path / "向量"))
    assert re.findall(r"缓存里有 (\d+) 个", out) == ["5", "6", "7"]
    assert "：相同" in out
    again = printed("embedding_cache", capsys, str(tmp_path / "向量"))
    assert re.findall(r"缓存里有 (\d+) 个", again) == ["7", "7", "7"]


def test_local_model_folder(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("local_model_folder", capsys)
    assert "model.safetensors" in out
    assert "向量维数 384，查询提示语 'query: '" in out
    assert "：相同" in out


def test_distill(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = printed("distill", capsys, str(tmp_path / "小模型"))
    before, after = (float(one) for one in re.search(r"排序相关：训练前 ([\d.]+)，训练后 ([\d.]+)", out).groups())
    assert after > before
    assert "报告：report.md，模型：model/" in out
    assert "答：一线城市住宿标准为每晚不超过四百五十元。" in out
    assert (tmp_path / "小模型" / "report.md").is_file()


def test_finetune(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = printed("finetune", capsys, str(tmp_path / "问答模型"))
    assert "60 条 Pair，损失 softmax，批大小 15" in out
    before, after = (float(one) for one in re.search(r"mrr@10：微调前 ([\d.]+)，微调后 ([\d.]+)", out).groups())
    assert after >= before
    assert "向量 384 维" in out


def test_rerank(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = printed("rerank", capsys, str(save_bert(tmp_path / "重排模型")), "出差住宿标准是多少？")
    assert out.startswith("问：出差住宿标准是多少？")
    before, after = out.split("重排之后，只留三条：")
    found = re.findall(r"^  \d+\. (.+)……$", before, re.MULTILINE)
    kept = re.findall(r"^  \d+\. (0\.\d{3})  (.+)……$", after, re.MULTILINE)
    assert (len(found), len(kept)) == (10, 3)
    assert {text for _, text in kept} <= set(found)
    assert [score for score, _ in kept] == sorted((score for score, _ in kept), reverse=True)


def test_hybrid(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("hybrid", capsys)
    assert out.count("问：") == 2
    code, paraphrase = out.split("问：")[1:]
    assert re.search(r"关键词 +.*XK-2093", code)
    assert re.search(r"混合 +.*XK-2093", code)
    assert re.search(r"关键词 +（没有找到）", paraphrase)
    assert re.search(r"混合 +.*信息安全部", paraphrase)


def test_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("evaluate", capsys)
    written, made = out.split("由文档造的问题")
    assert written.startswith("人写的问题：60 个问题，184 块\n")
    numbers = re.compile(r"^  (\w+) +recall@5 .*nDCG@10 ([\d.]+)（", re.MULTILINE)
    ndcg = {search: float(one) for search, one in numbers.findall(written)}
    assert list(ndcg) == ["vector", "keyword", "hybrid"]
    assert ndcg["vector"] > ndcg["keyword"]
    assert written.count("p = ") == 2
    assert "前十条里没有答案的，例如：" in written
    assert all(float(easier) > ndcg[search] for search, easier in numbers.findall(made))
