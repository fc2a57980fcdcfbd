"""Question answering with ChatGLM, GLM-4, Qwen or any model behind an OpenAI-compatible server.

先用 vLLM、Ollama、llama.cpp、Xinference 等起一个服务，再运行：
python examples/chatglm_qa.py --base-url http://localhost:8000/v1 --model glm-4-9b-chat
"""

import argparse
import tempfile
from pathlib import Path

from luotuo_integrations import KnowledgeBase, openai_compatible

MANUALS = Path(__file__).parent / "data" / "产品手册"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://localhost:8000/v1", help="address of the server")
    parser.add_argument("--model", default="glm-4-9b-chat", help="name of the model on that server")
    parser.add_argument("--documents", type=Path, default=MANUALS, help="folder of documents")
    parser.add_argument("question", nargs="?", default="野灯 1500 长期不用，应该怎么存放？")
    arguments = parser.parse_args()

    llm = openai_compatible(arguments.base_url, arguments.model, max_tokens=512)
    # 这里用临时文件夹；不写 store，索引就存在文档旁边的 .luotuo 里，下次只读改过的文件。
    with tempfile.TemporaryDirectory() as store:
        knowledge_base = KnowledgeBase(arguments.documents, store=store, llm=llm)
        report = knowledge_base.sync(show_progress=True)
        print(f"{len(report.added)} 个文件，{report.chunks} 块。\n")

        for question in (arguments.question, "你好，今天天气怎么样？"):
            print(f"问：{question}\n答：", end="")
            stream = knowledge_base.stream(question)
            for piece in stream:  # 模型写一点，打印一点
                print(piece, end="", flush=True)
            print("\n")
            for source in stream.answer.sources:  # 只留下答案里引用过的
                print(f"  [{source.number}] {source.title}\n      {source.quote}")
            if not stream.answer.found:
                print("  （文档里没有，没有去问模型，或者模型也这么说。）")
            print()


if __name__ == "__main__":
    main()
