"""Search by vectors, then let a reranker judge what was found. Needs a reranker: a folder, or a name on the hub.

先用向量检索找十块，再用重排模型逐块与问题一起读，按相关度重新排序。包里不带重排模型，要自己指定一个：
  BAAI/bge-reranker-base     中英文，问题和段落共 512 个词元，处理器上也能用
  BAAI/bge-reranker-v2-m3    多语言，共 8192 个词元，宜用显卡
  Qwen/Qwen3-Reranker-0.6B   回答“是”或“否”的语言模型，可以写明要求（instruction），共 8192 个词元，宜用显卡

内存：处理器上用 float32，三个模型约 1.1、2.3、2.4 GB；显卡上用半精度，各减一半。
时间：每一段都要和问题一起重算，段数、字数翻倍，时间也翻倍；嫌慢就少找几段，或者把文档切短。
长文：放不下的段落只看开头，并警告有几段被截断；所以先把文档切成小块，再建库。
分数：同一个模型的相关度可以跨问题比较，与向量的余弦、与别的模型都不能比；min_score 要看过自己的数据再定。

运行：python examples/rerank.py BAAI/bge-reranker-base "试用期可以请年假吗？"
"""

import argparse
from pathlib import Path

from langchain_core.documents import Document

from luotuo_integrations import FAISS, ChineseTextSplitter, LuotuoEmbeddings, LuotuoReranker, load_documents

HANDBOOK = Path(__file__).parent / "data" / "员工手册"


def show(title: str, found: list[Document]) -> None:
    print(title)
    for rank, document in enumerate(found, start=1):
        relevance = document.metadata.get("relevance_score")
        score = "" if relevance is None else f"{relevance:.3f}  "
        print(f"  {rank}. {score}{' '.join(document.page_content.split())[:40]}……")


def main(model: str, question: str) -> None:
    embeddings = LuotuoEmbeddings()
    splitter = ChineseTextSplitter.from_embeddings(embeddings, chunk_size=200)
    vectorstore = FAISS.from_documents(splitter.split_documents(load_documents(HANDBOOK).documents), embeddings)
    reranker = LuotuoReranker(model=model, top_n=3)  # 第一次使用时才装入模型

    print(f"问：{question}")
    found = vectorstore.similarity_search(question, k=10)  # 向量检索快，先多找一些
    show("向量检索的顺序：", found)
    show("重排之后，只留三条：", reranker.compress_documents(found, question))  # 逐对读问题和段落，慢而准


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="重排模型的文件夹，或它在 hub 上的名字，如 BAAI/bge-reranker-base")
    parser.add_argument("question", nargs="?", default="试用期可以请年假吗？")
    options = parser.parse_args()
    main(options.model, options.question)
