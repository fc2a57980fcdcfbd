"""Distil the bundled 6-layer model into a 3-layer one, then search with the small one. About a minute, no network.

Your own corpus and an API as the teacher are a matter of a few settings; on the command line:
luotuo distill --corpus 新闻/ --teacher openai:text-embedding-3-small --student bert-pruned:6 --out runs/mine
"""

import sys
import tempfile
from pathlib import Path

from luotuo_integrations import FAISS, LuotuoEmbeddings
from luotuo_integrations.training import Distiller, TrainConfig

DATA = Path(__file__).parent / "data"


def main(out: Path) -> None:
    config = TrainConfig.from_dict(
        {
            "data": {
                "corpus": [str(DATA / "员工手册"), str(DATA / "产品手册")],
                "least_characters": 60,  # 示例文档短；新闻语料用默认的 300
                "most_characters": 160,
                "dev_count": 25,
            },
            "teacher": {"model": "luotuo-mini"},
            "student": {"build": "bert-pruned:3", "max_tokens": 96},
            "batch": {"size": 16},
            "optimizer": {"epochs": 4, "learning_rate": 4e-4},
            "run": {"out": str(out)},
        }
    )
    result = Distiller(config, show_progress=sys.stderr.isatty()).run(resume=True)  # 中断后再运行，从断点继续
    for name, words in (("spearman_to_teacher", "与老师的排序相关"), ("pair@1", "前半段找后半段的准确率")):
        key = f"dev/{name}"
        print(f"{words}：训练前 {result.before[key]:.3f}，训练后 {result.after[key]:.3f}")
    print(f"报告：{result.report.name}，模型：{result.model.name}/")

    embeddings = LuotuoEmbeddings(str(result.model))
    texts = ["试用期员工暂不享受带薪年休假。", "一线城市住宿标准为每晚不超过四百五十元。", "光伏板不要长时间泡在水里。"]
    vectorstore = FAISS.from_texts(texts, embeddings)
    question = "出差住酒店一晚能报多少"
    print(f"问：{question}")
    print(f"答：{vectorstore.similarity_search(question, k=1)[0].page_content}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "小模型")
