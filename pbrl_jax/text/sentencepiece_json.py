"""A SentencePiece model in the form that transformers and vLLM read: `tokenizer.json` and `tokenizer_config.json`.

Written beside `tokenizer.model` when a policy is exported. What is written gives the ids of the SentencePiece model, or
is not written: both are asked for the same texts first. Only special tokens that a text spells out differ, which
transformers reads as the tokens.
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
"""Model types for which transformers puts a tokenizer class of theirs in the place of whatever class is named."""
OWN_MODULE, OWN_CLASS = "tokenization_sentencepiece", "SentencePieceTokenizerFast"
#: A class of the folder's own stands above theirs. With trust_remote_code it is run; without, tokenizer.json is read
#: as it is, which is the same thing.
OWN_SOURCE = f'''"""tokenizer.json as it is, for any model type."""

from transformers import PreTrainedTokenizerFast


class {OWN_CLASS}(PreTrainedTokenizerFast):
    """Reads tokenizer.json; adds nothing."""
'''
TEXTS = (
    "Jibu ni 12. 答案是 12。 คำตอบคือ 12", "  two  spaces \n\nand lines\n", "", " ", "1", "x=3,4; «ok» 🙂 \\boxed{12}\t",
)  # fmt: skip
"""Compared beside every piece of the vocabulary."""
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
"""Kinds of pieces, as SentencePiece numbers them."""
UNIGRAM, BPE = 1, 2


def write_tokenizer_json(
    tokenizer: SentencePieceTokenizer, directory: str | os.PathLike, begin: bool = True, model_type: str = ""
) -> str:
    """Write both files into a folder; "" where they stand, else why there are none.

    With `begin` every text gets a beginning-of-sequence token, as prompts of a policy do. For some values of the
    config's `model_type` a third file keeps transformers from reading the two in its own way.
    """
    folder = epath.Path(directory)
    core, problem = converted(tokenizer, begin)
    if core is None:
        for name in TOKENIZER_FILES[:2]:
            (folder / name).unlink(missing_ok=True)
        return problem
    text = core.to_str()
    (folder / "tokenizer.json").write_text(text)
    piece = tokenizer.processor.id_to_piece
    named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_ids[0], "pad_token": tokenizer.pad_id,
             "unk_token": tokenizer.processor.unk_id()}  # fmt: skip
    settings: dict[str, Any] = {name: piece(i) for name, i in named.items() if i is not None}
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


def converted(tokenizer: SentencePieceTokenizer, begin: bool = True) -> tuple[Any, str]:
    """(tokenizers.Tokenizer, "") with the ids of the SentencePiece model, or (None, why there is none)."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Tokenizer, processors

    messages: Any = sentencepiece_model_pb2  # its classes are made when it is imported
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
    # A piece inside a word, and one at the beginning of a text.
    surfaces = [piece for piece in tokenizer.pieces() if piece and "\ufffd" not in piece]
    texts = [*TEXTS, *surfaces, *(f"a{piece}1{piece}" for piece in surfaces)]
    found = core.encode_batch(texts, add_special_tokens=False)
    wrong = [t for t, ids, one in zip(texts, tokenizer.encode_batch(texts), found, strict=True) if ids != one.ids]
    return (None, f"it would give other ids for {len(wrong)} texts, as {wrong[0]!r}") if wrong else (core, "")


def _model(proto, unknown: int):
    from tokenizers import models

    pieces = proto.pieces
    byte_fallback = proto.trainer_spec.byte_fallback
    if proto.trainer_spec.model_type == UNIGRAM:
        return models.Unigram([(piece.piece, piece.score) for piece in pieces], unknown, byte_fallback)
    ids = {piece.piece: i for i, piece in enumerate(pieces)}
    normal = {piece.piece: piece.score for piece in pieces if piece.type == NORMAL}
    # Of two merges that could be done, SentencePiece does that which makes the piece of the higher score.
    merges = [
        (left, right)
        for piece in sorted(normal, key=lambda piece: normal[piece], reverse=True)
        for left, right in ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        if left in normal and right in normal
    ]
    # `ignore_merges`: a piece of the user's stands alone before the model, and is taken as it is.
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
    """Cuts a text at the user's own pieces, the longest first: they never join their neighbours."""
    from tokenizers import Regex, pre_tokenizers

    own = sorted((piece.piece for piece in proto.pieces if piece.type == USER), key=len, reverse=True)
    return pre_tokenizers.Split(Regex("|".join(map(re.escape, own))), "isolated") if own else None


def _decoder(prefix: bool):
    from tokenizers import decoders

    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
