"""Keep vectors in a folder: the second run, another thread or another process computes only what is new.

适合反复建库、反复评测：没有改动的文本不再计算。换了模型、提示语或维数，就是另一个向量，不会混淆。
运行：python examples/embedding_cache.py vectors（再运行一次，什么也不必计算）
"""

import sys
import tempfile
import time
from pathlib import Path

from luotuo_integrations import LuotuoEmbeddings
from luotuo_integrations.embedding_cache import EmbeddingCache

PASSAGES = [
    "新员工入职当天领取电脑和门禁卡，领用单由行政存档。",
    "会议室最多提前两周预订，迟到十五分钟自动释放。",
    "打印机在三楼茶水间旁边，彩色打印需要部门编号。",
    "快递统一放在一楼前台，收到短信之后三天内取走。",
    "会议室最多提前两周预订，迟到十五分钟自动释放。",  # 重复的文本只算一次
    "停车位按季度抽签，结果在内网公布。",
]


def main(folder: Path) -> None:
    embeddings = LuotuoEmbeddings(vector_cache=folder, dtype="float32")  # float32 只为下面逐位比较
    cache = EmbeddingCache(folder)
    embeddings.embed_query("预热")  # 先加载模型，下面只计算向量的时间；查询也进缓存

    def embed(passages: list[str]) -> None:
        start = time.perf_counter()
        embeddings.embed_documents(passages)
        milliseconds = 1000 * (time.perf_counter() - start)
        print(f"{len(passages)} 段，{milliseconds:.1f} 毫秒；缓存里有 {len(cache)} 个向量")

    embed(PASSAGES[:5])
    embed(PASSAGES)  # 只算新的一段
    embeddings.embed_query("会议室可以提前多久订？")
    embed(PASSAGES)  # 全部来自缓存

    same = LuotuoEmbeddings(dtype="float32").encode(PASSAGES) - embeddings.encode(PASSAGES)
    print(f"与不用缓存时最多相差 {abs(same).max():.1e}：{'相同' if abs(same).max() < 1e-5 else '不同'}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
