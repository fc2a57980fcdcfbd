"""FAISS with LlamaIndex: index manuals, keep them on disk, open them again, filter and delete.

产品手册（网页和 PDF）用 LlamaIndex 建索引，存盘，再打开来查。运行：python examples/faiss_llamaindex.py
"""

import tempfile
from pathlib import Path

from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from luotuo_integrations import ChineseNodeParser, FaissVectorStore, LuotuoEmbeddings
from luotuo_integrations.documents import load_documents

MANUALS = Path(__file__).parent / "data" / "产品手册"
QUESTIONS = ["户外电源长期不用怎么存放？", "车载冰箱不制冷怎么办？", "停电时电脑能不关机吗？"]


def main() -> None:
    Settings.embed_model = LuotuoEmbeddings()  # 与 LangChain 用的是同一个类
    documents = [
        Document(text=loaded.page_content, metadata=loaded.metadata, id_=loaded.metadata["source"])
        for loaded in load_documents(MANUALS, suffixes=[".html", ".pdf"]).documents
    ]
    nodes = ChineseNodeParser.from_embeddings(Settings.embed_model, chunk_size=200)(documents)
    store = FaissVectorStore(Settings.embed_model)
    VectorStoreIndex(nodes, storage_context=StorageContext.from_defaults(vector_store=store))
    print(f"{len(documents)} 个文件，切成 {len(store)} 块。\n")

    with tempfile.TemporaryDirectory() as folder:
        store.persist(str(Path(folder) / "产品手册索引"))
        store = FaissVectorStore.from_persist_path(str(Path(folder) / "产品手册索引"), Settings.embed_model)
    index = VectorStoreIndex.from_vector_store(store)

    for question in QUESTIONS:
        print(f"问：{question}")
        for hit in index.as_retriever(similarity_top_k=2).retrieve(question):
            page = f" · 第 {hit.metadata['page']} 页" if "page" in hit.metadata else ""
            print(f"  {hit.score:.3f}  {hit.metadata['headings']}{page}")
            print(f"         {hit.text.strip().splitlines()[-1][:48]}……")
        print()

    pdf = "野灯1500户外电源说明书.pdf"
    filters = MetadataFilters(filters=[MetadataFilter(key="source", value=pdf)])
    hit = index.as_retriever(similarity_top_k=1, filters=filters).retrieve("保修几年？")[0]
    print(f"只查 PDF：{hit.metadata['headings']}，第 {hit.metadata['page']} 页")

    before = len(store)
    index.delete_ref_doc(pdf)
    print(f"删去这个 PDF：{before} 块剩 {len(store)} 块。")


if __name__ == "__main__":
    main()
