"""Students: what is built is what was described, and it loads where models load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GlmConfig,
    GlmModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from luotuo_integrations.encoder import Encoder
from luotuo_integrations.errors import ModelNotFoundError
from luotuo_integrations.model_folder import DenseSettings, ModelSettings, read_settings
from luotuo_integrations.modeling import EmbeddingModel, make_head
from luotuo_integrations.registry import ASSETS, DEFAULT_MODEL
from luotuo_integrations.tokenization import TextTokenizer
from luotuo_integrations.training.backbones import keep_layers, spread_layers
from luotuo_integrations.training.strategies import (
    StrategySettings,
    apply_strategy,
    finish_strategy,
    parameter_groups,
)
from luotuo_integrations.training.student_spec import StudentSpec
from luotuo_integrations.training.students import build_student

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"骆驼走过沙漠带水", *[f"##{one}" for one in "骆驼走过沙漠带水"]]
TEXTS = ["camel walk camels walking", "骆驼 desert"]
PIECES += ["camel", "walk", "##ing", "##s", "desert", "water", "sand", "query", ":"]


def random_base(folder: Path, backbone: Any, *, pad_id: int = 0, heads: int = 0, **settings: Any) -> Path:
    """Save a tiny random model with a WordPiece tokenizer, whose padding id may be moved."""
    pieces = [*PIECES[1 : 1 + pad_id], PIECES[0], *PIECES[1 + pad_id :]]
    core = Tokenizer(models.WordPiece({text: index for index, text in enumerate(pieces)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[SEP]", pieces.index("[SEP]")), ("[CLS]", pieces.index("[CLS]"))]
    core.post_processor = processors.BertProcessing(*special)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=32, **names)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    dense = [DenseSettings(f"{2 + index}_Dense", "Tanh") for index in range(heads)]
    made = ModelSettings(**({"max_tokens": 32, "prompts": {"query": "query: "}} | settings), heads=dense)
    weights = [make_head(torch.randn(24, 32, generator=torch.Generator().manual_seed(9)), activation="Tanh")] * heads
    return EmbeddingModel(backbone, made, weights).save(folder, tokenizer)


def bert(layers: int = 6, **sizes: Any) -> BertModel:
    config = BertConfig(num_hidden_layers=layers, max_position_embeddings=32, **(SIZES | sizes))
    return BertModel(config, add_pooling_layer=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_base(tmp_path_factory.mktemp("bases") / "bert底座", bert(), pooling="cls")


def vectors(folder: Path, texts: list[str], kind: Any = "passage") -> torch.Tensor:
    return torch.from_numpy(Encoder(folder, device="cpu").encode(texts, kind=kind))


def test_layers_are_spread_evenly_up_to_the_last() -> None:
    assert spread_layers(12, 6) == [1, 3, 5, 7, 9, 11]
    assert spread_layers(12, 5) == [1, 3, 6, 8, 11]
    assert spread_layers(3, 3) == [0, 1, 2]
    assert spread_layers(7, 1) == [6]
    for wanted in (0, 4):
        with pytest.raises(ValueError, match=f"{wanted} layers cannot be kept of a base with 3; choose 1 to 3"):
            spread_layers(3, wanted)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("bert", StudentSpec()),
        ("bert-pruned:6", StudentSpec(layers=(6,))),
        ("bert-pruned:1,3,5+vocab:24000", StudentSpec(layers=(1, 3, 5), vocabulary=24000)),
        ("vocab:800 + bert", StudentSpec(vocabulary=800)),
        ("random:6x384", StudentSpec(random=(6, 384))),
        ("glm:/models/a+b", StudentSpec(glm=("/models/a+b", (4, 384)))),
        ("glm:C:/models/glm:6x512", StudentSpec(glm=("C:/models/glm", (6, 512)))),
        ("luotuo-mini", StudentSpec(base="luotuo-mini")),
        ("./没有的文件夹", StudentSpec(base="./没有的文件夹")),
        ("BAAI/bge-small-zh-v1.5+vocab:8000", StudentSpec(base="BAAI/bge-small-zh-v1.5", vocabulary=8000)),
    ],
)
def test_a_description_is_read(text: str, spec: StudentSpec) -> None:
    assert StudentSpec.parse(text) == spec


def test_a_folder_whose_name_has_a_plus_sign_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a+b").mkdir()
    assert StudentSpec.parse(str(tmp_path / "a+b")) == StudentSpec(base=str(tmp_path / "a+b"))


@pytest.mark.parametrize(
    "text",
    [
        *("", "brt", "bert-pruned:", "bert-pruned:1;3", "vocab:0", "vocab:many", "random:6", "random:2x33", "glm:"),
        *("bert+", "bert+bert", "bert-pruned:2+random:2x32", "vocab:9+vocab:9"),
    ],
)
def test_a_bad_description_shows_the_grammar(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bert-pruned:1,3,5 .*\n(.*\n)*Examples: ") as caught:
        build_student(text, tmp_path / "student")
    assert repr(text) in str(caught.value)


def test_the_base_as_it_is_gives_its_vectors(base: Path, tmp_path: Path) -> None:
    texts = ["骆驼走过沙漠", "camels walking", ""]
    for spec, other in (("bert", base), (str(base), Path("nowhere"))):
        folder = build_student(spec, tmp_path / spec.replace("/", "_"), base=other)
        assert torch.equal(vectors(folder, texts, "query"), vectors(base, texts, "query"))


@pytest.mark.parametrize(("spec", "kept"), [("bert-pruned:3", [1, 3, 5]), ("bert-pruned:0,4,5", [0, 4, 5])])
def test_pruned_layers_are_those_of_the_base(base: Path, tmp_path: Path, spec: str, kept: list[int]) -> None:
    student = EmbeddingModel.load(build_student(spec, tmp_path / "student", base=base))
    whole = EmbeddingModel.load(base)
    assert student.backbone.config.num_hidden_layers == 3
    assert student.settings == whole.settings
    whole.backbone.encoder.layer = torch.nn.ModuleList([whole.backbone.encoder.layer[index] for index in kept])
    ids, mask = torch.tensor([[2, 5, 6, 7, 3]]), torch.ones(1, 5, dtype=torch.long)
    torch.testing.assert_close(student(ids, mask), whole(ids, mask), rtol=0, atol=1e-6)


def backbones() -> dict[str, Any]:
    sizes = SIZES | {"num_hidden_layers": 4}
    local = {"local_attention": 4, "global_attn_every_n_layers": 2}
    return {
        "xlm-roberta": XLMRobertaModel(XLMRobertaConfig(**sizes, pad_token_id=1), add_pooling_layer=False),
        "modernbert": ModernBertModel(ModernBertConfig(**sizes, **TOKENS, **local)),
        "distilbert": DistilBertModel(DistilBertConfig(vocab_size=60, dim=32, n_layers=4, n_heads=2, hidden_dim=48)),
    }


@pytest.mark.parametrize("kind", ["xlm-roberta", "modernbert", "distilbert"])
def test_other_architectures_are_pruned_too(kind: str, tmp_path: Path) -> None:
    base = random_base(tmp_path / "base", backbones()[kind], pad_id=kind == "xlm-roberta")
    model = EmbeddingModel.load(build_student("bert-pruned:2+vocab:24", tmp_path / "student", base=base, texts=TEXTS))
    assert model.backbone.config.num_hidden_layers == 2
    assert len(model.backbone.get_input_embeddings().weight) == 24
    whole = EmbeddingModel.load(base).backbone
    pruned = EmbeddingModel(keep_layers(whole, [1, 3]), model.settings)
    new, old = (TextTokenizer(folder).encode(["骆驼走过"])[0] for folder in (tmp_path / "student", base))
    mask = torch.ones(1, len(new), dtype=torch.long)
    torch.testing.assert_close(model(torch.tensor([new]), mask), pruned(torch.tensor([old]), mask), rtol=0, atol=1e-5)
    if kind == "modernbert":
        assert model.backbone.config.layer_types == [whole.config.layer_types[index] for index in (1, 3)]


def test_layers_out_of_range_are_named(base: Path, tmp_path: Path) -> None:
    for spec, named in (("bert-pruned:7", "7 layers cannot"), ("bert-pruned:1,6", "layers 1,6 are out of range")):
        with pytest.raises(ValueError, match=named):
            build_student(spec, tmp_path / "student", base=base)
    with pytest.raises(ValueError, match=r"layers 3,1 are out of range or order; this base has 0 to 5"):
        build_student("bert-pruned:3,1", tmp_path / "student", base=base)
    with pytest.raises(ValueError, match="Linear keeps its layers in none of"):
        keep_layers(torch.nn.Linear(2, 2), [0])
    assert not (tmp_path / "student").exists()


def test_a_pruned_vocabulary_keeps_what_its_texts_and_prompts_need(base: Path, tmp_path: Path) -> None:
    folder = build_student("vocab:25", tmp_path / "student", base=base, texts=iter(TEXTS))
    vocabulary = TextTokenizer(folder).tokenizer.get_vocab()
    left = [text for text in PIECES if text not in {"##ing", "desert", "water", "sand"}]  # ##s is a character
    assert vocabulary == {text: index for index, text in enumerate(left)}
    kept_text = ["骆驼走过沙漠", "camel walks", "漠:", "query骆"]
    torch.testing.assert_close(
        vectors(folder, kept_text, "query"), vectors(base, kept_text, "query"), rtol=0, atol=1e-5
    )
    assert EmbeddingModel.load(folder).backbone.config.vocab_size == 25


def test_texts_with_lone_surrogates_are_counted(base: Path, tmp_path: Path) -> None:
    build_student("vocab:25", tmp_path / "student", base=base, texts=["\ud800 camel", *TEXTS])


def test_the_bundled_model_cuts_texts_of_kept_pieces_as_before(tmp_path: Path) -> None:
    text = "公司的员工每年可以请五天年假, please ask your manager。"
    folder = build_student("bert-pruned:1+vocab:9465", tmp_path / "b", texts=[text, text, "沙漠 caravan"])
    whole = build_student("bert-pruned:1", tmp_path / "a")
    assert TextTokenizer(folder).tokenizer.tokenize(text) == TextTokenizer(whole).tokenizer.tokenize(text)
    torch.testing.assert_close(vectors(folder, [text]), vectors(whole, [text]), rtol=0, atol=1e-5)
    kept = set(TextTokenizer(folder).tokenizer.get_vocab())
    assert {*TextTokenizer(whole).tokenizer.tokenize("query: passage: "), "<s>", "<pad>", "</s>", "<unk>", "龜"} <= kept
    assert {*TextTokenizer(whole).tokenizer.tokenize(text), "沙漠"} <= kept
    assert "▁caravan" not in kept


def test_ids_in_the_configuration_move_with_their_tokens(tmp_path: Path) -> None:
    base = random_base(tmp_path / "base", bert(1, pad_token_id=22), pad_id=22)
    folder = build_student("vocab:25", tmp_path / "student", base=base, texts=TEXTS)
    backbone = EmbeddingModel.load(folder).backbone
    assert backbone.config.pad_token_id == TextTokenizer(folder).pad_id == 21
    assert backbone.get_input_embeddings().padding_idx == 21


def test_a_padding_id_that_positions_hang_on_may_not_move(tmp_path: Path) -> None:
    config = XLMRobertaConfig(**SIZES, num_hidden_layers=1, pad_token_id=22)
    base = random_base(tmp_path / "base", XLMRobertaModel(config, add_pooling_layer=False), pad_id=22)
    with pytest.raises(ValueError, match="padding token's id would move from 22 to 21, and this model counts"):
        build_student("vocab:25", tmp_path / "student", base=base, texts=TEXTS)


def test_a_random_student_has_the_size_that_was_asked_for(base: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    first, same, other = (
        EmbeddingModel.load(
            build_student("random:2x96+vocab:25", tmp_path / str(index), base=base, texts=TEXTS, seed=seed)
        )
        for index, seed in enumerate((0, 0, 1))
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    config = first.backbone.config
    sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert sizes == (2, 96, 3, 384)
    assert config.vocab_size == 25
    assert config.max_position_embeddings == 32
    weight = first.backbone.encoder.layer[1].output.dense.weight
    assert torch.equal(weight, same.backbone.encoder.layer[1].output.dense.weight)
    assert not torch.equal(weight, other.backbone.encoder.layer[1].output.dense.weight)


def test_a_head_is_made_where_the_dimensions_differ(base: Path, tmp_path: Path) -> None:
    student = EmbeddingModel.load(build_student("bert", tmp_path / "a", base=base, teacher_dimension=640))
    assert student.dimension == 640
    (head,) = student.heads
    assert student.settings.heads[0].activation == "Identity"
    assert head[0].weight.std().item() == pytest.approx(32**-0.5, rel=0.05)
    assert not head[0].bias.any()
    assert not EmbeddingModel.load(build_student("bert", tmp_path / "b", base=base, teacher_dimension=32)).heads


def test_a_head_stays_or_gives_way(tmp_path: Path) -> None:
    base = random_base(tmp_path / "base", bert(2), heads=1)
    old = EmbeddingModel.load(base).heads[0][0].weight
    for name, dimension in (("a", None), ("b", 24)):
        kept = EmbeddingModel.load(build_student("bert", tmp_path / name, base=base, teacher_dimension=dimension))
        assert torch.equal(kept.heads[0][0].weight, old)
        assert kept.settings.heads[0].activation == "Tanh"
    replaced = EmbeddingModel.load(build_student("bert", tmp_path / "c", base=base, teacher_dimension=40))
    assert [tuple(head[0].weight.shape) for head in replaced.heads] == [(40, 32)]
    assert not EmbeddingModel.load(build_student("random:1x32", tmp_path / "d", base=base)).heads


def test_settings_carry_over_or_give_way(base: Path, tmp_path: Path) -> None:
    folder = build_student("bert", tmp_path / "a", base=base, prompts={"passage": "水:"}, pooling="mean", max_tokens=16)
    settings = EmbeddingModel.load(folder).settings
    assert settings.prompts == {"query": "query: ", "passage": "水:"}
    assert (settings.pooling, settings.max_tokens, settings.normalize) == ("mean", 16, True)
    assert Encoder(folder, device="cpu").max_length == 16
    longer = build_student("random:1x32", tmp_path / "b", base=base, max_tokens=64)
    assert Encoder(longer, device="cpu").max_length == 64


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompts": {"document": "a"}}, r"a prompt for 'document' cannot be used: prompts are for query and passage"),
        ({"pooling": "median"}, r"pooling='median' cannot be used.*one of cls, mean"),
        ({"max_tokens": 33}, "max_tokens=33 is out of range: this student takes 3 to 32"),
        ({"max_tokens": 2}, "max_tokens=2 is out of range"),
        ({"prefix_tokens": -1}, "prefix_tokens=-1: give 0 or more"),
        ({"teacher_dimension": 0}, "teacher_dimension=0 cannot be used"),
    ],
)
def test_bad_settings_are_named_and_nothing_is_written(
    base: Path, tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        build_student("bert", tmp_path / "student", base=base, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        build_student("bert", tmp_path, base="no such model")
    with pytest.raises(ModelNotFoundError):
        build_student("bert", tmp_path / "student", base="no such model")


def test_with_one_prompt_queries_are_embedded_as_passages(base: Path, tmp_path: Path) -> None:
    folder = build_student("bert", tmp_path / "a", base=base, prompts={"passage": "水:"}, one_prompt=True)
    assert read_settings(folder, None).prompts == {"query": "水:", "passage": "水:"}


@pytest.mark.parametrize("bundled", [False, True])
def test_prefix_tokens_stand_before_both_prompts(base: Path, tmp_path: Path, bundled: bool) -> None:
    source = DEFAULT_MODEL if bundled else base
    folder = build_student("bert-pruned:1", tmp_path / "student", base=source, prefix_tokens=3)
    model, old = EmbeddingModel.load(folder), EmbeddingModel.load(ASSETS / DEFAULT_MODEL if bundled else base)
    tokens, plain = TextTokenizer(folder), TextTokenizer(ASSETS / DEFAULT_MODEL if bundled else base)
    known = len(plain.tokenizer)
    words, old_words = (one.backbone.get_input_embeddings().weight for one in (model, old))
    assert len(words) == known + 3 == model.backbone.config.vocab_size
    assert torch.equal(words[:known], old_words[:known])
    mean = old_words[:known].mean(dim=0)
    assert 0 < (words[known:] - mean).abs().max() < 0.5 * old_words[:known].std()
    for kind in ("query", "passage"):
        ids = tokens.encode([model.settings.prompts[kind] + "骆驼 walk"])[0]
        assert ids == [known, known + 1, known + 2, *plain.encode([old.settings.prompts[kind] + "骆驼 walk"])[0]]
        assert tokens.add_special(ids, 32)[: len(tokens.prefix) + 3] == [*plain.prefix, known, known + 1, known + 2]
    with pytest.raises(ValueError, match="has prefix tokens already"):
        build_student("bert", tmp_path / "again", base=folder, prefix_tokens=1)


def test_rows_beyond_the_tokenizer_give_way_to_prefix_tokens(tmp_path: Path) -> None:
    base = random_base(tmp_path / "base", bert(1, vocab_size=80))
    model = EmbeddingModel.load(build_student("vocab:25", tmp_path / "a", base=base, prefix_tokens=2, texts=TEXTS))
    assert len(model.backbone.get_input_embeddings().weight) == 27
    assert json.loads((tmp_path / "a" / "config.json").read_text())["vocab_size"] == 27


def test_a_student_loads_in_sentence_transformers_with_equal_vectors(base: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    spec = "bert-pruned:2+vocab:25"
    folder = build_student(spec, tmp_path / "a", base=base, texts=TEXTS, prefix_tokens=2, teacher_dimension=40)
    texts = ["骆驼走过沙漠", "camel walks"]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts, prompt_name="query")
    torch.testing.assert_close(torch.from_numpy(theirs), vectors(folder, texts, "query"), rtol=0, atol=1e-5)


def test_a_glm_student_is_built_behind_its_frozen_glm(base: Path, tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 1, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 3}
    glm = tmp_path / "glm"
    GlmModel(GlmConfig(**SIZES, **sizes)).save_pretrained(glm)
    TextTokenizer(base).tokenizer.save_pretrained(glm)
    options = {"max_tokens": 20, "prompts": {"query": "问:"}, "pooling": "cls"}
    folder = build_student(f"glm:{glm}:2x64", tmp_path / "student", teacher_dimension=40, **options)
    model = EmbeddingModel.load(folder)
    assert (model.hidden_size, model.dimension, len(model.backbone.bert.encoder.layer)) == (64, 40, 2)
    settings = model.settings
    assert (settings.max_tokens, settings.pooling, settings.prompts["query"]) == (20, "cls", "问:")
    for wrong in ({"prefix_tokens": 1}, {"spec": f"vocab:20+glm:{glm}"}):
        with pytest.raises(ValueError, match="no words of its own"):
            build_student(**({"spec": f"glm:{glm}", "folder": tmp_path / "other"} | wrong))
    with pytest.raises(ValueError, match="GlmEncoderConfig does not hold a number of layers"):
        build_student("bert-pruned:1", tmp_path / "other", base=folder)
    with pytest.raises(ValueError, match="GlmEncoder has no word embedding of its own"):
        build_student("bert", tmp_path / "other", base=folder, prefix_tokens=1)


def test_the_glm_of_a_student_never_learns(base: Path, tmp_path: Path) -> None:
    glm = tmp_path / "glm"
    sizes = {"num_hidden_layers": 1, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 3}
    GlmModel(GlmConfig(**SIZES, **sizes)).save_pretrained(glm)
    TextTokenizer(base).tokenizer.save_pretrained(glm)
    model = EmbeddingModel.load(build_student(f"glm:{glm}:2x64", tmp_path / "student"))
    ids, mask = torch.tensor([[2, 5, 6, 7, 3]]), torch.ones(1, 5, dtype=torch.long)
    frozen = {name for name, _ in model.named_parameters() if name.startswith("backbone.glm.")}
    for settings in (StrategySettings(layer_decay=0.5, freeze_embeddings=True), StrategySettings("lora")):
        apply_strategy(model, settings)
        assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if name in frozen)
        plain = model(ids, mask)
        groups = parameter_groups(model, settings, learning_rate=0.01, weight_decay=0.1)
        assert {"layer 0", "layer 1"} <= {group["name"] for group in groups}
        model(ids, mask).square().sum().backward()
        torch.optim.AdamW(groups).step()
        assert not torch.equal(model(ids, mask), plain)
        finish_strategy(model, settings)
        assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    assert not any("lora" in name for name in model.state_dict())
