"""A SentencePiece model as `tokenizer.json` and `tokenizer_config.json`, for transformers and vLLM.

Written beside `tokenizer.model` when a policy is exported, and only if both tokenizers give the same ids for a set of
texts. They differ only for special tokens that are spelled out in a text, which transformers encodes as those tokens.
"""

import hashlib
import json
import os
import re
from typing import Any

from etils import epath

from pbrl_jax.text.tokenizers import SENTENCEPIECE_RECORD, TOKENIZER_FILES, SentencePieceTokenizer

SPACE = "\u2581"
OWN_CLASSES = ("qwen2",)
"""Model types for which transformers ignores the configured tokenizer class and uses its own."""
OWN_MODULE, OWN_CLASS = "tokenization_sentencepiece", "SentencePieceTokenizerFast"
#: A class in the folder takes precedence over that. With trust_remote_code it is used; without, tokenizer.json is read
#: unchanged, with the same result.
OWN_SOURCE = f'''"""tokenizer.json as it is, for any model type."""

from transformers import PreTrainedTokenizerFast


class {OWN_CLASS}(PreTrainedTokenizerFast):
    """Reads tokenizer.json; adds nothing."""
'''
TEXTS = (
    "Jibu ni 12. 答案是 12。 คำตอบคือ 12", "  two  spaces \n\nand lines\n", "", " ", "1", "x=3,4; «ok» 🙂 \\boxed{12}\t",
)  # fmt: skip
"""Texts that are compared, in addition to every piece of the vocabulary."""
NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4
"""SentencePiece's kinds of pieces."""
UNIGRAM, BPE = 1, 2


def write_tokenizer_json(
    tokenizer: SentencePieceTokenizer, directory: str | os.PathLike, begin: bool = True, model_type: str = ""
) -> str:
    """Write both files into a folder. Returns "" where they were written, else the reason why not.

    With `begin` every text gets a beginning-of-sequence token, as a policy's prompts do. For the model types of
    OWN_CLASSES a third file keeps transformers from replacing the tokenizer class.
    """
    folder = epath.Path(directory)
    core, problem = convert(tokenizer, begin)
    if core is None:
        for name in TOKENIZER_FILES[:2]:
            (folder / name).unlink(missing_ok=True)
        return problem
    text = core.to_str()
    (folder / "tokenizer.json").write_text(text)
    piece = tokenizer.processor.id_to_piece
    specials = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_ids[0], "pad_token": tokenizer.pad_id,
                "unk_token": tokenizer.processor.unk_id()}  # fmt: skip
    settings: dict[str, Any] = {name: piece(i) for name, i in specials.items() if i is not None}
    settings |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        SENTENCEPIECE_RECORD: hashlib.sha256(text.encode()).hexdigest(),
    }
    if model_type in OWN_CLASSES:
        settings["auto_map"] = {"AutoTokenizer": [None, f"{OWN_MODULE}.{OWN_CLASS}"]}
        (folder / f"{OWN_MODULE}.py").write_text(OWN_SOURCE)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return ""


def convert(tokenizer: SentencePieceTokenizer, begin: bool = True) -> tuple[Any, str]:
    """(tokenizers.Tokenizer with the ids of the SentencePiece model, ""), or (None, the reason why not)."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, processors

    messages: Any = sentencepiece_model_pb2  # its classes are created at import, so type checkers do not see them
    proto = messages.ModelProto.FromString(tokenizer.model_bytes)
    if proto.trainer_spec.model_type not in (UNIGRAM, BPE):
        return None, "its model is neither BPE nor unigram"
    core = Tokenizer(_model(proto, tokenizer.processor.unk_id()))
    core.normalizer = _normalizer(proto.normalizer_spec)
    core.pre_tokenizer, core.decoder = _user_pieces(proto), _decoder(proto.normalizer_spec.add_dummy_prefix)
    core.add_special_tokens([
        AddedToken(piece.piece, special=True, normalized=False)
        for piece in proto.pieces
        if piece.type in (CONTROL, UNKNOWN)
    ])  # fmt: skip
    if begin and tokenizer.bos_id is not None:
        first = proto.pieces[tokenizer.bos_id].piece
        core.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A $B", special_tokens=[(first, tokenizer.bos_id)]
        )
    # Every piece at the beginning of a text and inside a word.
    surfaces = [piece for piece in tokenizer.pieces() if piece and "\ufffd" not in piece]
    texts = [*TEXTS, *surfaces, *(f"a{piece}1{piece}" for piece in surfaces)]
    encodings = core.encode_batch(texts, add_special_tokens=False)
    wrong = [t for t, ids, new in zip(texts, tokenizer.encode_batch(texts), encodings, strict=True) if ids != new.ids]
    return (None, f"it would give other ids for {len(wrong)} texts, as {wrong[0]!r}") if wrong else (core, "")


def _model(proto, unknown: int):
    from tokenizers import models

    pieces = proto.pieces
    byte_fallback = proto.trainer_spec.byte_fallback
    if proto.trainer_spec.model_type == UNIGRAM:
        return models.Unigram([(piece.piece, piece.score) for piece in pieces], unknown, byte_fallback)
    ids = {piece.piece: i for i, piece in enumerate(pieces)}
    normal = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
    # Of two possible merges, SentencePiece takes the one whose result has the higher score.
    merges = [
        (left, right)
        for piece in sorted(normal, key=lambda piece: normal[piece], reverse=True)
        for left, right in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        if left in normal and right in normal
    ]
    # `ignore_merges`: user-defined pieces, which the pre-tokenizer isolates, are not results of merges.
    return models.BPE(
        ids, merges, unk_token=pieces[unknown].piece, fuse_unk=True, byte_fallback=byte_fallback, ignore_merges=True
    )


def _normalizer(spec):
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _user_pieces(proto):
    """A pre-tokenizer that isolates user-defined pieces, the longest first, so that they never merge with others."""
    from tokenizers import Regex, pre_tokenizers

    pieces = sorted((piece.piece for piece in proto.pieces if piece.type == USER), key=len, reverse=True)
    return pre_tokenizers.Split(Regex("|".join(map(re.escape, pieces))), "isolated") if pieces else None


def _decoder(prefix: bool):
    from tokenizers import decoders

    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
