"""Vectors and keywords together: what one side misses, the other finds.

向量找意思，关键词找型号、编号、人名。混合检索两边都查，再合成一个排序。
运行：python examples/hybrid.py
"""

from luotuo_integrations import FAISS, HybridRetriever, LuotuoEmbeddings

TEXTS = [
    "XK-2093 卡纸时先打开后盖，取出纸张。",
    "XK-2039 卡纸时先抽出纸盒，再关机重启。",
    "墨盒用完后，请联系行政部领取新的。",
    "丢失电脑要在两小时内上报信息安全部。",
    "试用期员工每年有五天年假。",
    "出差住宿每晚不超过四百五十元。",
]
QUESTIONS = ["XK-2093", "笔记本被偷，找谁？"]


def main() -> None:
    store = FAISS.from_texts(TEXTS, LuotuoEmbeddings())
    # weights=(向量, 关键词) 默认各半；filter、lambda_mult（多样性）、rerank（重排）也可以在这里给。
    retriever = HybridRetriever.from_store(store, k=1)
    for question in QUESTIONS:
        print(f"问：{question}")
        by_words = [document.page_content for document, _ in store.keyword_search(question, k=1)]
        print(f"  向量    {store.similarity_search(question, k=1)[0].page_content}")
        print(f"  关键词  {by_words[0] if by_words else '（没有找到）'}")
        print(f"  混合    {retriever.invoke(question)[0].page_content}")


if __name__ == "__main__":
    main()
