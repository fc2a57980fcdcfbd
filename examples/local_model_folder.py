"""A model in a folder: export the bundled model to open float32 weights, load the folder, get the same vectors.

把包里的模型导出成普通的文件夹（sentence-transformers 也能读），再从这个文件夹加载。自己微调的模型也这样用。
运行：python examples/local_model_folder.py
"""

import tempfile
from pathlib import Path

from luotuo_integrations import LuotuoEmbeddings

TEXTS = ["试用期员工可以请年假吗？", "一线城市住宿标准为每晚不超过四百五十元。", "丢失电脑要在两小时内上报。"]


def main() -> None:
    bundled = LuotuoEmbeddings(dtype="float32", backend="torch")  # 照原样加载，才能另存
    encoder = bundled.encoder
    with tempfile.TemporaryDirectory() as temporary:
        folder = encoder.model.save(Path(temporary) / "我的模型", encoder.tokenizer.tokenizer)
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.relative_to(folder)}")

        # 文件夹里写着池化方式、提示语和归一化，不必再说一遍，也不联网。
        local = LuotuoEmbeddings(folder, dtype="float32")
        difference = abs(local.encode(TEXTS) - bundled.encode(TEXTS)).max()
        print(f"\n向量维数 {local.dimension}，查询提示语 {local.encoder.prompts['query']!r}")
        print(f"与包里的模型最多相差 {difference:.1e}：{'相同' if difference < 1e-5 else '不同'}")

        question, *passages = TEXTS
        cosines = local.encode(passages) @ local.encode([question], "query")[0]
        for passage, cosine in zip(passages, cosines, strict=True):
            print(f"  {cosine:.3f}  {passage}")


if __name__ == "__main__":
    main()
