"""The language check: sure where it speaks, silent where it cannot tell."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from qwen3_embedding.synthesis.completion import estimate_tokens
from qwen3_embedding.synthesis.detect import agreement, detect_language

SENTENCES = {
    "en": "The ferry to the outer islands runs twice a day when the weather allows it.",
    "de": "Die Fähre zu den äußeren Inseln fährt zweimal am Tag, wenn es das Wetter erlaubt.",
    "fr": "Le bac pour les îles part deux fois par jour quand le temps le permet.",
    "es": "El transbordador a las islas sale dos veces al día cuando lo permite el tiempo.",
    "ru": "Паром на дальние острова ходит два раза в день, если это позволяет погода.",
    "uk": "Пором на далекі острови ходить двічі на день, якщо це дозволяє погода.",
    "ja": "天気がよければ、離島へのフェリーは一日に二回出ます。",
    "zh": "如果天气允许，开往外岛的渡轮每天有两班。",
    "zh-Hant": "如果天氣允許，開往外島的渡輪每天有兩班，這個時間會經過學校。",
    "ko": "날씨가 허락하면 외딴섬으로 가는 배는 하루에 두 번 다닌다.",
    "ar": "تسير العبارة إلى الجزر البعيدة مرتين في اليوم إذا كان الطقس مناسبا لذلك.",
    "hi": "मौसम अच्छा हो तो बाहरी द्वीपों के लिए नाव दिन में दो बार चलती है।",
    "sw": "Kivuko cha kwenda visiwa vya mbali hufanya safari mara mbili kwa siku kama hali ya hewa ni nzuri.",
    "tr": "Hava izin verirse uzak adalara giden vapur günde iki kez kalkar ve çok dolu olur.",
    "th": "เรือข้ามฟากไปเกาะนอกวิ่งวันละสองเที่ยวเมื่ออากาศดี",
    "ta": "வானிலை அனுமதித்தால் வெளித் தீவுகளுக்கு படகு ஒரு நாளைக்கு இரண்டு முறை செல்கிறது.",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_sentences_agree_with_their_language_and_no_other(code: str) -> None:
    assert detect_language(SENTENCES[code]) == code
    assert agreement(SENTENCES[code], code) == "yes"
    close = {"zh", "zh-Hant"}
    for other in SENTENCES:
        if other != code and not {code, other} <= close | {"ru", "uk"}:
            assert agreement(SENTENCES[code], other) == "no", other


@pytest.mark.parametrize("text", ["", "42", "GPU RAM", "Kubernetes ingress", "!!! ???", "Oslo 2024"])
def test_what_cannot_be_told_is_unknown(text: str) -> None:
    assert detect_language(text) is None
    assert agreement(text, "de") == "unknown"


def test_a_foreign_script_is_told_from_a_few_letters() -> None:
    assert agreement("погода завтра", "en") == "no"
    assert agreement("weather tomorrow", "ru") == "no"
    assert agreement("東京の天気", "zh") == "no"
    assert agreement("weather tomorrow", "klingon") == "unknown"


def test_names_and_links_in_another_script_do_not_count_against_a_text() -> None:
    assert agreement("如何在 Kubernetes 里使用 kubectl apply 命令更新配置文件 https://example.org/a/b", "zh") == "yes"
    assert agreement("Как обновить Kubernetes с помощью kubectl apply?", "ru") != "no"


def test_token_estimates_are_near_the_published_tokenizers_count() -> None:
    path = Path(__file__).parents[1] / "data" / "qwen3-tokenizer.json.xz"
    tokenizer = Tokenizer.from_str(lzma.decompress(path.read_bytes()).decode("utf-8"))
    for code, sentence in SENTENCES.items():
        real = len(tokenizer.encode(sentence, add_special_tokens=False).ids)
        assert 0.6 * real < estimate_tokens(sentence) < 1.5 * real, code
