"""Belebele: a passage, a question and four answers, in 122 languages and scripts (Bandarkar et al. 2023; CC-BY-SA-4.0).

Prompts and choices are those of lm-evaluation-harness 0.4.13 (tasks belebele_*). All 900 rows are test rows, so that
few-shot examples from them, as in the harness, would leak; none are used here.
"""

from typing import Any

from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.eval.benchmarks.common import Dataset
from pbrl_jax.eval.benchmarks.multiple_choice import LETTERS, choice_benchmark

SHORT = (
    "en=eng_Latn am=amh_Ethi ar=arb_Arab as=asm_Beng bn=ben_Beng bg=bul_Cyrl bo=bod_Tibt ca=cat_Latn cs=ces_Latn "
    "da=dan_Latn de=deu_Latn el=ell_Grek es=spa_Latn et=est_Latn eu=eus_Latn fa=pes_Arab fi=fin_Latn fr=fra_Latn "
    "gu=guj_Gujr ha=hau_Latn he=heb_Hebr hi=hin_Deva hr=hrv_Latn hu=hun_Latn hy=hye_Armn id=ind_Latn ig=ibo_Latn "
    "is=isl_Latn it=ita_Latn ja=jpn_Jpan jv=jav_Latn ka=kat_Geor kk=kaz_Cyrl km=khm_Khmr kn=kan_Knda ko=kor_Hang "
    "ky=kir_Cyrl lo=lao_Laoo lt=lit_Latn lv=lvs_Latn mk=mkd_Cyrl ml=mal_Mlym mr=mar_Deva ms=zsm_Latn mt=mlt_Latn "
    "my=mya_Mymr ne=npi_Deva nl=nld_Latn no=nob_Latn pa=pan_Guru pl=pol_Latn pt=por_Latn ro=ron_Latn ru=rus_Cyrl "
    "si=sin_Sinh sk=slk_Latn sl=slv_Latn so=som_Latn sq=als_Latn sr=srp_Cyrl sv=swe_Latn sw=swh_Latn ta=tam_Taml "
    "te=tel_Telu tg=tgk_Cyrl th=tha_Thai tl=tgl_Latn tr=tur_Latn uk=ukr_Cyrl ur=urd_Arab uz=uzn_Latn vi=vie_Latn "
    "wo=wol_Latn xh=xho_Latn yo=yor_Latn zh=zho_Hans zu=zul_Latn "
)
OTHERS = (
    "acm_Arab afr_Latn apc_Arab arb_Latn ars_Arab ary_Arab arz_Arab azj_Latn bam_Latn ben_Latn ceb_Latn ckb_Arab "
    "fuv_Latn gaz_Latn grn_Latn hat_Latn hin_Latn ilo_Latn kac_Latn kea_Latn khk_Cyrl kin_Latn lin_Latn lug_Latn "
    "luo_Latn mri_Latn npi_Latn nso_Latn nya_Latn ory_Orya pbt_Arab plt_Latn shn_Mymr sin_Latn sna_Latn snd_Arab "
    "sot_Latn ssw_Latn sun_Latn tir_Ethi tsn_Latn tso_Latn urd_Latn war_Latn zho_Hant "
)
LANGUAGES = dict(pair.split("=") for pair in SHORT.split()) | {name: name for name in OTHERS.split()}
"""Our language code (the data set's name, if there is none) -> the data set's name."""
DATASET = Dataset(
    "belebele", "facebook/belebele", ("{config}.jsonl", "data/{config}.jsonl", "{config}/{split}-*.parquet")
)


def read(row: dict[str, Any], number: int, errors: RowErrors) -> tuple[str, str, str]:
    """(passage and question, text up to the answer, gold letter) of a row, whose gold answer counts from 1."""
    passage = errors.text(number, "flores_passage", row.get("flores_passage"))
    question = errors.text(number, "question", row.get("question"))
    values = [errors.text(number, f"mc_answer{i}", row.get(f"mc_answer{i}")) for i in (1, 2, 3, 4)]
    gold = str(row.get("correct_answer_num"))
    if gold not in ("1", "2", "3", "4"):
        errors.add(number, f"correct_answer_num is {gold!r}, expected 1, 2, 3 or 4")
    lines = "\n".join(f"{letter}: {value}" for letter, value in zip(LETTERS, values, strict=True))
    letter = LETTERS[int(gold) - 1] if gold in ("1", "2", "3", "4") else ""
    return f"{passage} {question}", f"P: {passage}\nQ: {question}\n{lines}\nAnswer:", letter


BENCHMARK = choice_benchmark("belebele", LANGUAGES, DATASET, read=read)
