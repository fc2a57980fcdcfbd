"""Which search is best for your documents and questions: vectors, keywords, or both? With intervals and significance.

用一批问题比较三种检索：每个问题给出答案原文（positive），含有这段原文的块就算找到。
命令行：luotuo evaluate --store examples/data --questions examples/data/questions.jsonl
没有问题集时先造一份：luotuo questions 文档文件夹 --out 问题.jsonl（给 --llm 更接近用户的问法）
"""

import tempfile
from pathlib import Path

from luotuo_integrations import KnowledgeBase
from luotuo_integrations.pair_files import Question, read_questions
from luotuo_integrations.question_making import questions_from_text
from luotuo_integrations.retrieval_report import RetrievalReport, evaluate_retrieval

DATA = Path(__file__).parent / "data"


def show(title: str, report: RetrievalReport) -> None:
    print(f"{title}：{len(report.queries)} 个问题，{report.passages} 块")
    for search, measures in report.means.items():
        ndcg = measures["ndcg@10"]
        print(
            f"  {search:8} recall@5 {measures['recall@5']['mean']:.3f}  "
            f"nDCG@10 {ndcg['mean']:.3f}（95 % 区间 {ndcg['low']:.2f} 到 {ndcg['high']:.2f}）"
        )
    for search, difference in report.differences.items():
        print(f"  {search} 比 vector：nDCG@10 {difference['difference']:+.3f}，p = {difference['p']:.4f}")


def main() -> None:
    with tempfile.TemporaryDirectory() as index:
        knowledge_base = KnowledgeBase(DATA, store=index)
        knowledge_base.sync()
        store = knowledge_base.vectorstore

        report = evaluate_retrieval(store, read_questions(DATA / "questions.jsonl"))
        show("人写的问题", report)
        missed = [query for query, rank in zip(report.queries, report.ranks["vector"], strict=True) if rank is None]
        print(f"  前十条里没有答案的，例如：{missed[0]}")

        # 由标题和首句造的问题与原文用词相同，比用户的问题容易得多：只宜比较设置，不宜当作成绩。
        made = questions_from_text(store.core.find(), limit=60)
        show("由文档造的问题", evaluate_retrieval(store, [Question(row.query, row.positive) for row in made.rows]))


if __name__ == "__main__":
    main()
