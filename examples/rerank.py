"""Search by vectors, then let a reranker judge what was found. Needs a reranker: a folder, or a name on the hub.

先用向量检索找十块，再用重排模型逐块与问题一起读，按相关度重新排序。包里不带重排模型，要自己指定一个：
  BAAI/bge-reranker-base     中英文，约 1.1 GB，处理器上也能用
  BAAI/bge-reranker-v2-m3    多语言，文本可以更长，约 2.3 GB
  Qwen/Qwen3-Reranker-0.6B   回答“是”或“否”的语言模型，可以写明要求（instruction），宜用显卡

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
