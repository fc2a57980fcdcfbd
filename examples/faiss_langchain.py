"""FAISS with LangChain: read a handbook, split it, store it, open it again and search.

读员工手册里的 Word 和网页，按句切块，存进 FAISS，再打开来查。运行：python examples/faiss_langchain.py
"""

import tempfile
from pathlib import Path

from luotuo_integrations import FAISS, ChineseTextSplitter, LuotuoEmbeddings
from luotuo_integrations.documents import load_documents
from luotuo_integrations.qa import place

HANDBOOK = Path(__file__).parent / "data" / "员工手册"
QUESTIONS = ["未入职的同事可以出差吗？", "在北京住酒店，一晚最多报多少钱？", "每个月几号发工资？"]


def main() -> None:
    embeddings = LuotuoEmbeddings()
    documents = load_documents(HANDBOOK, suffixes=[".docx", ".html"]).documents
    chunks = ChineseTextSplitter.from_embeddings(embeddings, chunk_size=200).split_documents(documents)
    store = FAISS.from_documents(chunks, embeddings)
    print(f"{len(documents)} 个文件，切成 {len(chunks)} 块。\n")

    with tempfile.TemporaryDirectory() as folder:
        store.save_local(Path(folder) / "员工手册索引")
        # 以后再打开：换了模型会报错，不会悄悄给出错的结果。
        store = FAISS.load_local(Path(folder) / "员工手册索引", embeddings)

    for question in QUESTIONS:
        print(f"问：{question}")
        for document, cosine in store.similarity_search_with_score(question, k=2):
            print(
                f"  {cosine:.3f}  {place(document)}\n         {document.page_content.strip().splitlines()[-1][:48]}……"
            )
        print()

    # 过滤在检索之前：最近的 k 块都来自这一个文件。
    only = {"source": "薪酬福利.html"}
    retriever = store.as_retriever(search_kwargs={"k": 3, "filter": only})
    print("只查薪酬福利：")
    for document in retriever.invoke("出差有补贴吗？"):
        print(f"  {place(document)}")

    travel = {"source": {"$contains": "差旅"}}
    before = len(store)
    store.delete(filter=travel)
    print(f"\n删去差旅管理办法：{before} 块剩 {len(store)} 块。")


if __name__ == "__main__":
    main()
