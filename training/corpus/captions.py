"""Captions in English and Russian for a score, with varied wording."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from modules.musicgen.tiny.words import NOTE_NAMES
from training.corpus.score import Score

_GENRES_RU = {
    "techno": "техно",
    "house": "хаус",
    "trance": "транс",
    "drum and bass": "драм-н-бейс",
    "lo-fi hip hop": "лоу-фай хип-хоп",
    "trap": "трэп",
    "ambient": "эмбиент",
    "rock": "рок",
    "jazz": "джаз",
    "funk": "фанк",
    "reggae": "регги",
    "chiptune": "чиптюн",
    "classical": "классическая музыка",
    "synthwave": "синтвейв",
    "bossa nova": "босса-нова",
    "disco": "диско",
}
_MOODS = {
    "dark": ("dark", "gloomy", "brooding"),
    "energetic": ("energetic", "upbeat", "driving"),
    "calm": ("calm", "peaceful", "gentle"),
    "happy": ("happy", "cheerful", "sunny"),
    "sad": ("sad", "melancholic"),
    "dreamy": ("dreamy", "ethereal", "atmospheric"),
    "relaxed": ("relaxed", "chill", "mellow"),
    "aggressive": ("aggressive", "heavy"),
    "romantic": ("romantic", "tender", "emotional"),
    "groovy": ("groovy", "danceable"),
    "epic": ("epic", "heroic", "uplifting"),
    "nostalgic": ("nostalgic", "retro"),
}
_MOODS_RU = {
    "dark": ("мрачный", "тёмная"),
    "energetic": ("энергичный", "бодрая"),
    "calm": ("спокойный", "тихая"),
    "happy": ("весёлый", "радостная"),
    "sad": ("грустный", "печальная"),
    "dreamy": ("мечтательный", "атмосферная"),
    "relaxed": ("расслабленный", "плавная"),
    "aggressive": ("агрессивный", "тяжёлая"),
    "romantic": ("романтичный", "тёплая"),
    "groovy": ("грувовый", "танцевальная"),
    "epic": ("эпичный", "героическая"),
    "nostalgic": ("ностальгический", "ретро"),
}
# nominative and instrumental ("with ...")
_PARTS_RU = {
    "sub bass": ("саб-бас", "саб-басом"),
    "synth bass": ("синт-бас", "синт-басом"),
    "acid bass": ("кислотный бас", "кислотным басом"),
    "upright bass": ("контрабас", "контрабасом"),
    "bass guitar": ("бас-гитара", "бас-гитарой"),
    "reese bass": ("риз-бас", "риз-басом"),
    "8-bit bass": ("8-битный бас", "8-битным басом"),
    "piano": ("фортепиано", "фортепиано"),
    "electric piano": ("электропиано", "электропиано"),
    "organ": ("орган", "органом"),
    "pad": ("пэд", "пэдом"),
    "strings": ("струнные", "струнными"),
    "acoustic guitar": ("акустическая гитара", "акустической гитарой"),
    "distorted guitar": ("электрогитара", "электрогитарой"),
    "choir": ("хор", "хором"),
    "accordion": ("аккордеон", "аккордеоном"),
    "brass": ("духовые", "духовыми"),
    "flute": ("флейта", "флейтой"),
    "synth lead": ("синтезатор", "синтезатором"),
    "8-bit lead": ("8-битный лид", "8-битным лидом"),
    "bells": ("колокольчики", "колокольчиками"),
    "marimba": ("маримба", "маримбой"),
    "trumpet": ("труба", "трубой"),
    "voice": ("вокал", "вокалом"),
    "saxophone": ("саксофон", "саксофоном"),
    "violin": ("скрипка", "скрипкой"),
    "acoustic kit": ("акустические барабаны", "акустическими барабанами"),
    "drum machine": ("драм-машина", "драм-машиной"),
    "808 kit": ("808 барабаны", "808 барабанами"),
    "lo-fi kit": ("пыльные барабаны", "пыльными барабанами"),
    "8-bit kit": ("8-битные барабаны", "8-битными барабанами"),
    "brush kit": ("щётки", "щётками"),
    "drums": ("барабаны", "барабанами"),
    "bass": ("бас", "басом"),
}
_PARTS = {
    "pad": "synth pad",
    "acoustic kit": "acoustic drums",
    "808 kit": "808 drums",
    "lo-fi kit": "dusty drums",
    "8-bit kit": "8-bit drums",
    "brush kit": "brushes",
    "voice": "wordless vocals",
}
_ROOTS_RU = ("до", "до-диез", "ре", "ми-бемоль", "ми", "фа", "фа-диез", "соль", "соль-диез", "ля", "си-бемоль", "си")
ALL_PARTS = 0.7  # of the captions name all that plays
Say = Callable[[float], bool]  # whether to name a fact, given how often it is named
_MODES_RU = {"major": "мажор", "minor": "минор", "dorian": "дорийский", "mixolydian": "миксолидийский"}


def _choose(rng: np.random.Generator, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _speed(score: Score) -> str | None:
    return "slow" if score.bpm < 86 else "fast" if score.bpm > 135 else "medium" if 95 < score.bpm < 125 else None


def parts_of(score: Score) -> list[str]:
    """Everything that plays, by its exact name."""
    return ([score.kit] if score.kit else []) + list(dict.fromkeys(score.instruments.values()))


def caption(score: Score, rng: np.random.Generator, *, full: bool = False, language: str | None = None) -> str:
    """One caption. full: name everything (the evaluation's prompts); otherwise each fact is left out now and then.

    language: "en" or "ru"; a coin decides when not given, and wording is drawn from `rng`.
    """
    russian = language == "ru" if language else rng.random() < 0.3

    def say(probability: float) -> bool:
        return full or rng.random() < probability

    parts = _said_parts(score, rng, say)
    names = [(_PARTS_RU[p][0] if russian else _PARTS.get(p, p)) for p in parts]
    rng.shuffle(names)
    pieces = []
    if say(0.45):
        pieces.append(_choose(rng, (_MOODS_RU if russian else _MOODS)[score.mood]))
    if say(0.8):
        pieces.append(_GENRES_RU[score.genre] if russian else score.genre)
    alone = score.shape in {"drums", "solo"}
    if names and alone:
        order = (
            _choose(rng, ["только {}", "соло: {}"])
            if russian
            else _choose(rng, ["{} only", "solo {}", "only {}", "just {}"])
        )
        pieces.append(order.format(names[0]))
    elif names:
        joined = (" и " if russian else " and ").join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])
        pieces.append(joined if russian or rng.random() < 0.3 else f"with {joined}")
    if not score.kit and not alone and say(0.6):
        pieces.append("без барабанов" if russian else _choose(rng, ["no drums", "without drums"]))
    if "bass" not in score.instruments and not alone and say(0.15):
        pieces.append("без баса" if russian else "no bass")
    pieces += _numbers(score, rng, say, russian=russian)
    if not russian and rng.random() < 0.5:
        return ", ".join(pieces)
    head = " ".join(pieces[:2])
    return ", ".join([head, *pieces[2:]])


def _said_parts(score: Score, rng: np.random.Generator, say: Say) -> list[str]:
    """All of the parts, now and then none or some: whoever names parts mostly wants these and no others."""
    parts = parts_of(score)
    if score.shape not in {"drums", "solo"} and not say(ALL_PARTS):
        some = rng.random() < 0.5
        parts = [part for part in parts if some and say(0.5)]
    return [_general(part, score) if rng.random() < 0.35 else part for part in parts]


def _general(part: str, score: Score) -> str:
    return "drums" if part == score.kit else "bass" if part == score.instruments.get("bass") else part


def _numbers(score: Score, rng: np.random.Generator, say: Say, *, russian: bool) -> list[str]:
    out = []
    if say(0.6):
        bpm = round(score.bpm + float(rng.uniform(-0.8, 0.8)))
        out.append(
            _choose(rng, [f"{bpm} ударов в минуту", f"темп {bpm}"])
            if russian
            else _choose(rng, [f"{bpm} bpm", f"tempo {bpm}", f"at {bpm} bpm"])
        )
    elif (speed := _speed(score)) and say(0.6):
        out.append(
            {"slow": "медленно", "fast": "быстро", "medium": "умеренный темп"}[speed]
            if russian
            else {"slow": "slow", "fast": "fast", "medium": "mid-tempo"}[speed]
        )
    if score.shape != "drums" and say(0.6):
        if russian:
            out.append(f"{_ROOTS_RU[score.root]} {_MODES_RU[score.mode]}")
        else:
            out.append(_choose(rng, ["in {} {}", "key of {} {}", "{} {}"]).format(NOTE_NAMES[score.root], score.mode))
    rng.shuffle(out)
    return out
