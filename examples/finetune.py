"""Fine-tune a model on some questions and answers: their kind, the loss and the numbers are inferred. About a minute.

On the command line: luotuo finetune --pairs examples/data/questions.jsonl --out runs/faq
"""

import json
import sys
import tempfile
from pathlib import Path

from luotuo_integrations import LuotuoEmbeddings
from luotuo_integrations.training import FineTuner

QUESTIONS = Path(__file__).parent / "data" / "questions.jsonl"


def main(out: Path) -> None:
    rows = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    records = [{"query": row["query"], "positive": row["positive"]} for row in rows]
    tuner = FineTuner.from_pretrained("luotuo-mini", dataset=records, out=out, show_progress=sys.stderr.isatty())
    batch, optimizer = tuner.config.batch, tuner.config.optimizer
    print(f"{len(records)} 条 {tuner.kind.__name__}，损失 {', '.join(tuner.config.loss)}，", end="")
    print(f"批大小 {batch.size}，学习率 {optimizer.learning_rate:.0e}")

    result = tuner.run(epochs=2)
    for key in ("dev/mrr@10", "dev/recall@1"):
        print(f"{key}：微调前 {result.before[key]:.3f}，微调后 {result.after[key]:.3f}")

    vector = LuotuoEmbeddings(str(result.model)).embed_query("试用期可以请年假吗")
    print(f"新模型：{result.model.name}/，向量 {len(vector)} 维")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "问答模型")
