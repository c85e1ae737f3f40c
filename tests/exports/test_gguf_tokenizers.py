"""Tokenizers in GGUF files: those that llama.cpp has, and what is left out with the reason."""

import json

import numpy as np
import pytest
import transformers as t
from gguf import GGUFReader
from gguf_models import LAYER, build, field, in_llama, policy, real
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

import tiny
from skipsearch.exports.export import export
from skipsearch.exports.gguf import byte_level, proof
from skipsearch.exports.gguf.rules import NoVocabulary
from skipsearch.exports.gguf.target import FILE, Gguf
from skipsearch.exports.gguf.vocabulary import CONTROL, UNUSED, USER_DEFINED, vocabulary_of
from skipsearch.exports.target import Source
from skipsearch.policies.errors import ProofError

TRAINING = ["the quick brown fox, doesn't it? 12345678 12345678", "  def f(x):\n    return x", "naïve 東京 мир"] * 3


def byte_level_tokenizer(cut, ignore_merges=False, normalizer=None, bos=False):
    words = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    words.pre_tokenizer, words.decoder = cut, decoders.ByteLevel()
    if normalizer:
        words.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre.ByteLevel.alphabet(),
        special_tokens=["<bos>", "<eos>"],
        show_progress=False,
    )
    words.train_from_iterator(TRAINING, trainer)
    if bos:
        words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    made = t.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>")
    made.add_tokens(["<tool>"])
    return made


def piece_tokenizer(prefix=True, keep=lambda pair: True):
    """As SentencePiece makes them: every pair of tokens that together are a token is merged."""
    pieces = ["▁", *"abcdehlortw", "he", "ll", "lo", "▁a", "hell", "ello", "hello", "▁hello", "or", "▁w", "▁wor", "ld"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [(piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece))]
    merges = [pair for pair in merges if vocabulary.keys() >= set(pair) and keep(pair)]
    words = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def split(expression):
    return pre.Sequence([pre.Split(Regex(expression), "isolated"), pre.ByteLevel(False, use_regex=False)])


TOKENIZERS = {
    "gpt-2": lambda: byte_level_tokenizer(pre.ByteLevel(False)),
    "smollm": lambda: byte_level_tokenizer(pre.Sequence([pre.Digits(True), pre.ByteLevel(False)])),
    "llama-bpe": lambda: byte_level_tokenizer(split(byte_level.LLAMA3), ignore_merges=True, bos=True),
    "smaug-bpe": lambda: byte_level_tokenizer(split(byte_level.LLAMA3)),
    "qwen2": lambda: byte_level_tokenizer(split(byte_level.QWEN2), normalizer=normalizers.NFC()),
    "default": piece_tokenizer,
}
NO_VOCABULARY = {
    "words": (tiny.tokenizer, "of the type WordLevel, expected BPE"),
    "another split": (lambda: byte_level_tokenizer(split(r"\d|\D+")), "no pre-tokenizer that cuts words like"),
    "whole words": (lambda: byte_level_tokenizer(split(byte_level.QWEN2), True), "no pre-tokenizer that cuts words"),
    "lowercase": (lambda: byte_level_tokenizer(pre.ByteLevel(False), normalizer=normalizers.Lowercase()), "Lowercase"),
    "a merge that is missing": (lambda: piece_tokenizer(keep=lambda pair: pair != ("hell", "o")), "never merges"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_that_llama_cpp_has(name, tmp_path):
    tokenizer, model = TOKENIZERS[name](), build(vocab_size=512)
    notes = Gguf().write(policy(l1=LAYER), Source(model, tokenizer), tmp_path)
    reader = GGUFReader(tmp_path / FILE)
    kind = "llama" if name == "default" else "gpt2"
    assert f"tokenizer: {kind}, {name}" in notes
    assert [field(reader, f"tokenizer.ggml.{key}") for key in ("model", "pre")] == [kind, name]
    tokens, types = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert len(tokens) == 512 and set(types[len(tokenizer) :]) == {UNUSED}
    assert field(reader, "tokenizer.ggml.add_bos_token") is (name in ("llama-bpe", "default"))
    if name != "default":
        assert types[tokens.index("<bos>")] == CONTROL and types[tokens.index("<tool>")] == USER_DEFINED
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        assert field(reader, "tokenizer.ggml.merges") == [" ".join(pair) for pair in described["model"]["merges"]]


def test_earlier_merges_have_higher_scores():
    scores = vocabulary_of(piece_tokenizer(), 512).rules.scores
    assert scores["he"] > scores["ll"] > scores["hell"] > scores["hello"] and "h" not in scores


@pytest.mark.parametrize("name", NO_VOCABULARY)
def test_other_tokenizers_are_left_out_with_the_reason(name, tmp_path):
    make, reason = NO_VOCABULARY[name]
    with pytest.raises(NoVocabulary, match=reason):
        vocabulary_of(make(), 512)
    notes = Gguf().write(policy(l1=LAYER), Source(build(vocab_size=512), make()), tmp_path)
    assert any(note.startswith("no tokenizer") and reason in note for note in notes)
    reader = GGUFReader(tmp_path / FILE)
    assert field(reader, "tokenizer.ggml.model") == "no_vocab" and field(reader, "llama.vocab_size") == 512


def test_more_tokens_than_rows_are_no_vocabulary():
    with pytest.raises(NoVocabulary, match="and the embedding has 100 rows"):
        vocabulary_of(TOKENIZERS["gpt-2"](), 100)


def test_texts_are_compared_one_by_one():
    results = {"text 0": np.array([1, 2]), "text 1": np.array([3])}
    proof.check_texts({"a": [1, 2], "b": [3]}, results)
    with pytest.raises(ProofError, match="other tokens") as caught:
        proof.check_texts({"a": [1, 2], "b": [4]}, results)
    assert caught.value.details == ("text 'b'", "found [3]", "expected [4]")


class TestLlama:
    pytestmark = real

    @pytest.mark.parametrize("name", TOKENIZERS)
    def test_makes_the_same_tokens(self, name, tmp_path):
        source = Source(build(vocab_size=512), TOKENIZERS[name]())
        export(policy(l1=LAYER), source, Gguf(in_llama), tmp_path / "out")

    def test_a_wrong_pre_tokenizer_is_found(self, tmp_path, monkeypatch):
        monkeypatch.setitem(byte_level.NAMES, (("words",), False), "smollm")
        source = Source(build(vocab_size=512), TOKENIZERS["gpt-2"]())
        with pytest.raises(ProofError, match="tokenizer makes other tokens"):
            export(policy(l1=LAYER), source, Gguf(in_llama), tmp_path / "out")
