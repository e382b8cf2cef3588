"""The real packages, where they are installed, on models made here: no download."""

import os

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_unlearn import CertifiedClassifier, PublicBackbone, UnlearningCallback
from lightning_unlearn.errors import ModelError
from lightning_unlearn.guarantee.claims import Grade
from tests.helpers.nets import trainer
from tests.helpers.texts import padded, texts

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers", reason="needs transformers")

# What the packages say of each other is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 32, "image_size": 32, "patch_size": 8,
}  # fmt: skip
GPT = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def bert(kind="BertModel", **options):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, **options)
    return getattr(transformers, kind)(config).eval()


def albert():
    return transformers.AlbertModel(
        transformers.AlbertConfig(embedding_size=8, **SIZES, **ENDS)
    )


def gpt(kind):
    config = transformers.GPT2Config(**GPT, **ENDS)
    return getattr(transformers, kind)(config).eval()


def llama():
    config = transformers.LlamaConfig(num_key_value_heads=2, **SIZES, **ENDS)
    return transformers.LlamaModel(config).eval()


@pytest.mark.parametrize(
    ("make", "taps"),
    [
        (bert, [""]),
        (lambda: bert("BertForSequenceClassification"), ["bert"]),
        (albert, [""]),
        (lambda: gpt("GPT2Model"), [""]),
        (lambda: gpt("GPT2LMHeadModel"), ["transformer"]),
        (llama, [""]),
    ],
    ids=["bert", "classifier", "albert", "gpt2", "language model", "llama"],
)
def test_models_of_texts_are_read_at_their_last_layer_and_need_nothing_else(make, taps):
    made = PublicBackbone(make())
    assert made.taps == taps
    assert made.tokens == ("mean", "max")
    rows = made(padded(texts(6)))  # with a column that is no input
    assert rows.shape == (6, 32)
    torch.testing.assert_close(rows.norm(dim=1), torch.full((6,), 8.0))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", [bert, llama])
def test_rows_do_not_depend_on_padding(make, side):
    if (make, side) == (bert, "left"):
        pytest.skip("BERT numbers its places from the left: pad on the right")
    made = PublicBackbone(make())
    rows = made(padded(texts(6), side))
    for row, sample in zip(rows, texts(6), strict=True):
        torch.testing.assert_close(row, made(padded([sample]))[0], rtol=1e-4, atol=1e-4)


def test_two_encoders_are_refused_by_name_and_one_is_read():
    text = {"max_position_embeddings": 20, **SIZES, **ENDS}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=VISION, projection_dim=8
    )
    model = transformers.CLIPModel(config)
    batch = {**padded(texts(4)), "pixel_values": torch.randn(4, 3, 32, 32)}
    samples = [{k: v[i] for k, v in batch.items()} for i in range(4)]
    with pytest.raises(ModelError, match="text_model, vision_model"):
        PublicBackbone(model, public_data=samples)
    pixels = [{"pixel_values": torch.randn(3, 32, 32)} for _ in range(5)]
    made = PublicBackbone(model.vision_model, public_data=pixels)
    assert len(made.taps) == 3
    assert made({"pixel_values": batch["pixel_values"]}).shape == (4, 96)


def test_an_encoder_decoder_is_told_that_it_wants_more():
    config = transformers.T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    with pytest.raises(ModelError, match=r"\(T5Model\) that can be called"):
        PublicBackbone(transformers.T5Model(config))
    assert PublicBackbone(transformers.T5EncoderModel(config)).taps == [""]


class Tokens(list):
    """A list as a dataset, with a column beside it."""

    @property
    def user_id(self):
        return [sample["user_id"] for sample in self]


def certified(model, data, collate=padded):
    net = CertifiedClassifier(PublicBackbone(model), 3)
    callback = UnlearningCallback()
    own = trainer(callback, max_epochs=-1)
    loaders = [DataLoader(data, 16, s, collate_fn=collate) for s in (True, False)]
    own.fit(net, *loaders)
    return net, own


def test_a_bert_is_certified():
    _, own = certified(bert(), Tokens(texts()))
    result = own.unlearn([2, 9], by="user_id")
    assert result.certificate.grade is Grade.CERTIFIED
    assert result.certificate.n_forget == 8


def test_a_dataset_with_a_padding_collator_is_certified_and_forgotten_by_a_filter():
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list(texts())

    class Tokenizer:
        """What DataCollatorWithPadding asks of one."""

        padding_side, deprecation_warnings = "right", {}

        def pad(self, samples, **_):
            return padded([dict(s.items()) for s in samples])

    collate = transformers.DataCollatorWithPadding(Tokenizer())
    columns = data.select_columns(["input_ids", "attention_mask", "label"])
    _, own = certified(bert(), columns, collate)
    result = own.unlearn(data.filter(lambda row: row["user_id"] in (3, 4)))
    assert result.certificate.grade is Grade.CERTIFIED
    assert result.certificate.n_forget == 8


def test_adapters_of_peft_are_read_and_frozen():
    peft = pytest.importorskip("peft", reason="needs the package peft")
    config = peft.LoraConfig(r=2, target_modules=["query"])
    model = peft.get_peft_model(bert(), config)
    _, own = certified(model, Tokens(texts()))
    assert not any(p.requires_grad for p in model.parameters())
    assert own.unlearn([1]).certificate.grade is Grade.CERTIFIED


def test_a_sentence_transformer_is_read_at_its_end_as_it_encodes(tmp_path):
    st = pytest.importorskip("sentence_transformers", reason="needs the package")
    bert().save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    model = st.SentenceTransformer(str(tmp_path), device="cpu")
    public = DataLoader(["a", "b c"], 2, collate_fn=model.preprocess)
    made = PublicBackbone(model, [""], unit_norm=False, scale=1.0, public_data=public)
    some = ["a b", "c a b b"]
    rows = made(model.preprocess(some))
    torch.testing.assert_close(rows, torch.tensor(model.encode(some)))
    assert PublicBackbone(model, public_data=public).n_features == 32
