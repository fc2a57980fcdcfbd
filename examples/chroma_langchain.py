"""Chroma with LangChain: store a handbook under a Chinese name, open it again and search.

员工手册存进一个中文名的集合，再打开来查，只查一个文件也行。运行：python examples/chroma_langchain.py
"""

import re
import tempfile
from pathlib import Path

from langchain_core.documents import Document

from luotuo_integrations import LuotuoEmbeddings
from luotuo_integrations.chroma import Chroma

HANDBOOK = Path(__file__).parent / "data" / "员工手册"
QUESTIONS = ["试用期能请年假吗？", "还没入职的人能报销路费吗？", "结婚可以休几天？"]


def read_sections(folder: Path) -> list[Document]:
    # 每个二级标题下的文字是一篇文档，元数据记着它的出处。
    sections = []
    for path in sorted(folder.glob("*.md")):
        for section in re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            heading, text = section.split("\n", 1)
            sections.append(
                Document(f"{heading}\n{text.strip()}", metadata={"来源": {"文件": path.name, "标题": heading}})
            )
    return sections


def main() -> None:
    embeddings = LuotuoEmbeddings()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        documents = read_sections(HANDBOOK)
        Chroma.from_documents(documents, embeddings, collection_name="员工手册", persist_directory=folder)
        print(f"存入 {len(documents)} 篇。\n")

        # 以后再打开：模型换了会报错，不会悄悄给出错的结果。
        store = Chroma("员工手册", embeddings, persist_directory=folder, create_collection_if_not_exists=False)
        for question in QUESTIONS:
            print(f"问：{question}")
            for document, relevance in store.similarity_search_with_relevance_scores(question, k=2):
                source = f"{document.metadata['来源.文件']} · {document.metadata['来源.标题']}"
                print(f"  {relevance:.2f}  {source}\n        {document.page_content.splitlines()[-1][:48]}……")
            print()

        only = {"来源.文件": "休假制度.md"}
        found = store.similarity_search("需要什么证明", k=1, filter=only)[0]
        print(f"只查休假制度：{found.page_content[:60]}……")


if __name__ == "__main__":
    main()
