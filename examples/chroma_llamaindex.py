"""Chroma with LlamaIndex: store manuals under a Chinese name, open them again, search and delete.

产品手册存进一个中文名的集合，再打开来查，然后删去一篇。运行：python examples/chroma_llamaindex.py
"""

import re
import tempfile
from pathlib import Path

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import Document

from luotuo_integrations import LuotuoEmbeddings
from luotuo_integrations.llama_chroma import llama_chroma_store

MANUALS = Path(__file__).parent / "data" / "产品手册"
QUESTIONS = ["充电宝放久了不用要注意什么？", "太阳能板淋雨有没有事？", "坏了寄回去修要多久？"]


def read_sections(folder: Path) -> list[Document]:
    # 每个二级标题下的文字是一篇文档，编号是“文件#标题”。
    sections = []
    for path in sorted(folder.glob("*.md")):
        for section in re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            heading, text = section.split("\n", 1)
            metadata = {"文件": path.stem, "标题": heading}
            sections.append(Document(text=text.strip(), id_=f"{path.stem}#{heading}", metadata=metadata))
    return sections


def main() -> None:
    embeddings = LuotuoEmbeddings()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        store = llama_chroma_store("产品手册", embeddings, persist_directory=folder)
        documents = read_sections(MANUALS)
        context = StorageContext.from_defaults(vector_store=store)
        VectorStoreIndex.from_documents(documents, storage_context=context, embed_model=embeddings)
        print(f"存入 {len(documents)} 篇。\n")

        # 以后再打开：给 embed_model 的与打开集合的是同一个对象。
        store = llama_chroma_store("产品手册", embeddings, persist_directory=folder, create=False)
        index = VectorStoreIndex.from_vector_store(store, embed_model=embeddings)
        for question in QUESTIONS:
            print(f"问：{question}")
            for hit in index.as_retriever(similarity_top_k=2).retrieve(question):
                print(f"  {hit.score:.3f}  {hit.metadata['文件']} · {hit.metadata['标题']}\n         {hit.text[:48]}……")
            print()

        best = index.as_retriever(similarity_top_k=1).retrieve(QUESTIONS[0])[0]
        index.delete_ref_doc(f"{best.metadata['文件']}#{best.metadata['标题']}")
        after = index.as_retriever(similarity_top_k=1).retrieve(QUESTIONS[0])[0]
        print(f"删去“{best.metadata['标题']}”之后，第一条是“{after.metadata['标题']}”。")


if __name__ == "__main__":
    main()
