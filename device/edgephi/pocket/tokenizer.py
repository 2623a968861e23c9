"""
The tokenizer of edgephi-pocket, of the same structure as Phi-3's, and the prompt form the model was trained on.

Owns how the vocabulary is learned from the generated commands and how a command becomes token ids. Knows no
model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from edgephi.pocket.commands import Split, examples
from edgephi.text.template import WHITE_SPACE

VOCAB_SIZE = 2048
UNK, BOS, EOS = "<unk>", "<s>", "</s>"
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
CONTROL_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
ENDOFTEXT_ID, ASSISTANT_ID, SYSTEM_ID, END_ID, USER_ID = range(VOCAB_SIZE - len(CONTROL_TOKENS), VOCAB_SIZE)
SYSTEM_PROMPTS = (
    "You turn commands into JSON.",
    "You are a helpful assistant.",
    "You are a helpful digital assistant. Please provide safe, ethical and accurate information to the user.",
    "You control a smart home. Answer in JSON.",
    "You are the voice of a robot. Be brief.",
    "Answer with JSON only.",
)

_SPACE = "\u2581"  # what a space looks like inside the vocabulary
_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_ALPHABET = sorted({chr(code).lower() for code in range(33, 127)} | {_SPACE, "°"})
# Where a token may not cross while merges are learned: digits stand alone, JSON keys come with their quotes.
_PIECES = rf"""\d|{_SPACE}?\{{|[",]*"[a-z]+":"?|"?\}}|{_SPACE}?[a-z_']+|{_SPACE}|."""
_CORPUS_EXAMPLES = 60_000
_CORPUS_SEED = 20


def build_tokenizer(corpus: Iterable[str] | None = None) -> Tokenizer:
    """
    Learn the vocabulary.

    Args:
        corpus: Texts to learn merges from; None for generated commands and answers. The same corpus gives the
            same tokenizer.

    Returns:
        A tokenizer with ``<unk>`` 0, ``<s>`` 1, ``</s>`` 2, the bytes 3 to 258, and the control tokens last.
    """
    learner = Tokenizer(models.BPE(unk_token=UNK))
    learner.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    reserved = [UNK, BOS, EOS, *_BYTES]
    num_ordinary = VOCAB_SIZE - len(CONTROL_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=num_ordinary,
        min_frequency=2,
        special_tokens=reserved,
        initial_alphabet=_ALPHABET,
        limit_alphabet=len(_ALPHABET),
        show_progress=False,
    )
    learner.train_from_iterator(_corpus() if corpus is None else corpus, trainer)
    learned: dict[str, Any] = json.loads(learner.to_str())["model"]
    return Tokenizer.from_str(json.dumps(_definition(learned["vocab"], learned["merges"])))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of ``text`` as plain content: what looks like a control token in it is spelled out."""
    tokenizer.encode_special_tokens = True
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def render_prompt(
    tokenizer: Tokenizer, text: str, *, system: str | None = None, history: Sequence[tuple[str, str]] = ()
) -> list[int]:
    """
    Write a command as the prompt the model expects.

        <s> [<|system|> system <|end|>]
        [<|user|> text <|end|> <|assistant|> answer <|end|>] for each earlier command
        <|user|> text <|end|> <|assistant|>

    The newline that Phi-3's template has after each control token is not a token: the added tokens strip white
    space on their right, as in the published Phi-3 tokenizer. A text's own leading white space goes the same way.

    Args:
        tokenizer: From ``build_tokenizer`` or the model folder's tokenizer.json.
        text: What the person said.
        system: A system message, or None for none.
        history: Earlier commands with their answers, oldest first.

    Returns:
        Token ids. The answer follows directly and ends with ``<|end|>``.
    """
    ids = [BOS_ID] if system is None else [BOS_ID, SYSTEM_ID, *encode(tokenizer, system), END_ID]
    for said, answer in history:
        ids += [
            USER_ID,
            *encode(tokenizer, said.lstrip(WHITE_SPACE)),
            END_ID,
            ASSISTANT_ID,
            *encode(tokenizer, answer),
            END_ID,
        ]
    return [*ids, USER_ID, *encode(tokenizer, text.lstrip(WHITE_SPACE)), END_ID, ASSISTANT_ID]


def _corpus() -> Iterator[str]:
    for example in islice(examples(_CORPUS_SEED, Split.TRAIN), _CORPUS_EXAMPLES):
        if example.text.isascii():
            yield example.text
        yield example.answer


def _definition(vocab: dict[str, int], merges: list[Any]) -> dict[str, Any]:
    """Return tokenizer.json: the learned merges in the structure of Llama's and Phi-3's file."""
    if len(vocab) != VOCAB_SIZE - len(CONTROL_TOKENS):
        raise ValueError(
            f"learned {len(vocab)} tokens; {VOCAB_SIZE - len(CONTROL_TOKENS)} are wanted: give a larger corpus"
        )
    specials = [(UNK, UNK_ID, False), (BOS, BOS_ID, False), (EOS, EOS_ID, True)]
    specials += [(token, len(vocab) + i, True) for i, token in enumerate(CONTROL_TOKENS)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": rstrip,
                "normalized": False,
                "special": True,
            }
            for content, token_id, rstrip in specials
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                # The one difference to Phi-3's: nothing in a command depends on case, so capitals cost no learning.
                {"type": "Lowercase"},
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": BOS, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": BOS, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {BOS: {"id": BOS, "ids": [BOS_ID], "tokens": [BOS]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNK,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """Return tokenizer_config.json: the added tokens and the chat template, as Hugging Face reads them."""
    names = {UNK_ID: UNK, BOS_ID: BOS, EOS_ID: EOS, **dict(enumerate(CONTROL_TOKENS, VOCAB_SIZE - len(CONTROL_TOKENS)))}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token_id): {
                "content": content,
                "lstrip": False,
                "normalized": False,
                "rstrip": token_id >= EOS_ID,
                "single_word": False,
                "special": True,
            }
            for token_id, content in names.items()
        },
        "bos_token": BOS,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": UNK,
        "chat_template": (
            "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] "
            "+ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
        ),
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": 512,
        "tokenizer_class": "LlamaTokenizer",
    }
