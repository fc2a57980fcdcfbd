"""Fit a query mapper on questions and answers, save it, search with it. Half a minute, no network.

On the command line: luotuo mapper fit --pairs examples/data/questions.jsonl --out faq.mapper
"""

import sys
import tempfile
from pathlib import Path

from luotuo_integrations import FAISS, LuotuoEmbeddings
from luotuo_integrations.mapper import LinearQueryMapper
from luotuo_integrations.pair_files import read_pairs

QUESTIONS = Path(__file__).parent / "data" / "questions.jsonl"


def main(out: Path) -> None:
    pairs = read_pairs(QUESTIONS)
    embeddings = LuotuoEmbeddings()
    vectorstore = FAISS.from_texts(list({answer for _, answer in pairs}), embeddings)  # 先存文档，之后不必重建

    mapper = embeddings.fit_mapper(pairs)
    report = mapper.report
    print(f"{report['pairs']} 对问答；留出的问题：MRR 不用映射 {report['mrr_without']}，用最好的映射 {report['mrr']}")
    if mapper.is_identity:  # 60 对太少时常见：没有把握更好，就不改动
        print("没有哪种方法确实更好，映射什么也不改")
    else:
        print(f"方法：{report['method']}，强度 {report['strength']}")

    mapper.save(out)
    embeddings.mapper = LinearQueryMapper.load(out)  # 此后这个对象的查询都经过映射，向量库里的查询也一样
    question = "出差住酒店一晚能报多少"
    print(f"问：{question}")
    print(f"答：{vectorstore.similarity_search(question, k=1)[0].page_content}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "faq.mapper")
