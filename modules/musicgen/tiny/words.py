"""What the embedded model understands of a prompt: English and Russian music words -> attributes.

The text encoder is a hand-written reader, not a network: a model of this size cannot learn language, but it can learn
what "tempo 120" or "solo piano" sounds like. Words that mean nothing to it are reported, never guessed.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

MAX_CHARS = 20_000  # a longer prompt says nothing new; reading stops here
NOTE_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
MODES = {"major": 0, "minor": 9, "dorian": 2, "mixolydian": 7}  # degree of the parent major scale
TEMPO_BPM = (30.0, 300.0)  # a number outside is not a tempo

# name -> (English forms, Russian forms); a form ending in * is a prefix, several words are a phrase.
GENRES: dict[str, tuple[str, str]] = {
    "techno": ("techno", "техно*"),
    "house": ("deep house|tech house|house", "дип хаус*|хаус*"),
    "trance": ("psytrance|trance", "транс|транса|трансе"),
    "drum and bass": (
        "drum and bass|drum & bass|drum n bass|drum'n'bass|dnb|d&b|jungle",
        "драм н бейс*|драм энд бейс*|драм-н-бейс*|драмнбейс*|днб|джангл*",
    ),
    "lo-fi hip hop": (
        "lo-fi hip hop|lofi hip hop|lo-fi hip-hop|lofi hip-hop|lo fi|lo-fi|lofi|hip hop|hip-hop|chillhop|boom bap",
        "лоу-фай хип-хоп*|лоу фай|лоу-фай|лофай|лоуфай|хип-хоп*|хип хоп*|хипхоп*",
    ),
    "trap": ("trap|drill", "трэп*|треп|трепа|дрилл*"),
    "ambient": ("ambient|drone|new age|soundscape*", "эмбиент*|амбиент*|дроун"),
    "rock": (
        "hard rock|punk rock|indie rock|rock|metal|punk|grunge",
        "рок|рока|роке|рок-*|метал|метала|металл*|панк*|гранж*",
    ),
    "jazz": ("swing jazz|jazz*|bebop|swing", "джаз*|свинг*|бибоп*"),
    "funk": ("funk*", "фанк*"),
    "reggae": ("reggae|dub|ska", "регги|рэгги|даб|ска"),
    "chiptune": ("chiptune*|chip tune|8-bit music|video game*|game music|retro game", "чиптюн*|видеоигр*|игров*"),
    "classical": (
        "classical|classic|baroque|chamber music|orchestral|cinematic|symphon*",
        "классическ*|классик*|барокк*|камерн*|оркестров*|кинематограф*|симфон*",
    ),
    "synthwave": (
        "synthwave|synth wave|retrowave|outrun|80s|eighties|1980s",
        "синтвейв*|ретровейв*|80-х|80х|восьмидесят*",
    ),
    "bossa nova": ("bossa nova|bossanova|bossa|samba|latin", "босса нов*|боссанов*|босса-нов*|босанов*|самб*|латин*"),
    "disco": ("disco*|nu disco", "диско"),
}
GENRE_MODES: dict[str, tuple[str, ...]] = {
    "techno": ("minor", "dorian"),
    "house": ("minor", "major"),
    "trance": ("minor",),
    "drum and bass": ("minor",),
    "lo-fi hip hop": ("dorian", "minor", "major"),
    "trap": ("minor",),
    "ambient": ("major", "dorian", "mixolydian"),
    "rock": ("minor", "mixolydian", "major"),
    "jazz": ("dorian", "major", "mixolydian"),
    "funk": ("dorian", "mixolydian"),
    "reggae": ("major", "mixolydian"),
    "chiptune": ("major", "minor"),
    "classical": ("major", "minor"),
    "synthwave": ("minor",),
    "bossa nova": ("major", "dorian"),
    "disco": ("minor", "dorian", "major"),
}
GENRE_BPM: dict[str, tuple[int, int]] = {
    "techno": (122, 145),
    "house": (116, 128),
    "trance": (132, 145),
    "drum and bass": (160, 176),
    "lo-fi hip hop": (68, 92),
    "trap": (128, 150),
    "ambient": (60, 80),
    "rock": (100, 145),
    "jazz": (96, 150),
    "funk": (96, 116),
    "reggae": (66, 86),
    "chiptune": (120, 165),
    "classical": (66, 120),
    "synthwave": (84, 112),
    "bossa nova": (116, 138),
    "disco": (112, 126),
}
ANY_BPM = (84, 132)  # where a prompt names no genre
SPEED_BPM = {"slow": (60, 85), "medium": (96, 124), "fast": (136, 176)}
MOODS: dict[str, tuple[str, str]] = {
    "dark": ("dark*|gloomy|ominous|sinister|brooding", "темн*|мрачн*|зловещ*"),
    "energetic": ("energetic|energy|upbeat|lively|driving|powerful|intense", "энергичн*|заводн*|бодр*|мощн*|драйв*"),
    "calm": (
        "calm*|peaceful|serene|quiet|gentle|soft|soothing|meditative|sleep*",
        "спокойн*|тих*|нежн*|мягк*|умиротвор*|медитат*",
    ),
    "happy": ("happy|cheerful|joyful|sunny|bright|fun|playful", "весел*|радостн*|солнечн*|счастлив*|светл*|игрив*"),
    "sad": ("sad*|melanchol*|sorrowful|gloom|lonely|mournful", "грустн*|печальн*|меланхол*|тоскл*|одинок*"),
    "dreamy": (
        "dreamy|dream*|ethereal|atmospheric|floating|spacey|cosmic",
        "мечтательн*|атмосферн*|воздушн*|космическ*|эфирн*",
    ),
    "relaxed": ("relax*|chill*|laid-back|laid back|mellow|smooth|easy going", "расслабл*|чил*|плавн*|лениво*|ленив*"),
    "aggressive": ("aggressive|heavy|hard|angry|brutal|fierce", "агрессивн*|тяжел*|жестк*|зл*"),
    "romantic": ("romantic|love|tender|warm|emotional|beautiful", "романтич*|любов*|тепл*|эмоцион*|красив*"),
    "groovy": ("groovy|groove|funky|danceable|dance|party", "грув*|танцевальн*|вечеринк*"),
    "epic": (
        "epic|heroic|triumphant|majestic|uplifting|euphoric",
        "эпичн*|эпическ*|героич*|торжествен*|величеств*|эйфорич*",
    ),
    "nostalgic": ("nostalgic|retro|vintage|old school|old-school", "ностальгич*|ретро|винтаж*|олдскул*"),
}
INSTRUMENTS: dict[str, tuple[str, str]] = {
    "sub bass": ("sub bass|sub-bass|808 bass", "саб-бас*|саб бас*|суббас*"),
    "synth bass": ("synth bass|synthesizer bass|saw bass", "синт-бас*|синтезаторн* бас*|синтбас*"),
    "acid bass": ("acid bass|acid line|acid|303", "эсид*|кислотн* бас*|кислотн*|эйсид*"),
    "upright bass": ("upright bass|double bass|contrabass|acoustic bass", "контрабас*"),
    "bass guitar": ("bass guitar*|electric bass|slap bass", "бас-гитар*|басгитар*|бас гитар*"),
    "reese bass": ("reese bass|reese", "риз бас*|рис бас*|риз-бас*"),
    "8-bit bass": ("8-bit bass|8 bit bass|chip bass", "8-битн* бас*|8 битн* бас*"),
    "piano": ("grand piano|piano*", "пиано|фортепиан*|роял*|пианин*"),
    "electric piano": (
        "electric piano*|rhodes|wurlitzer|e-piano",
        "электропиан*|электрическ* пиан*|родес*|электрическ* фортеп*",
    ),
    "organ": ("hammond organ|hammond|organ|organs", "орган|органа|органом|органе|органн*|хаммонд*"),
    "pad": ("synth pad*|pads|pad", "пэд*|пад|пады|падом|подклад*"),
    "strings": ("string section|string ensemble|strings|string orchestra", "струнн*"),
    "acoustic guitar": (
        "acoustic guitar*|classical guitar|nylon guitar|spanish guitar|guitar|guitars",
        "акустическ* гитар*|классическ* гитар*|гитар*",
    ),
    "distorted guitar": (
        "distorted electric guitar*|distorted guitar*|electric guitar*|overdriven guitar*|distortion|power chords",
        "электрогитар*|электрическ* гитар*|дисторшн*|перегруж* гитар*|искажен* гитар*",
    ),
    "choir": ("choir*|choral|chorus", "хор|хора|хором|хоре|хоров*"),
    "accordion": ("accordion*", "аккордеон*|баян*|гармош*"),
    "brass": ("brass section|brass|horns|horn section", "медн* духов*|духов*|брасс*"),
    "flute": ("flute*", "флейт*"),
    "synth lead": (
        "synth lead*|lead synth*|saw lead|synthesizer*|synths|synth|lead",
        "синтезатор*|синт|синты|синта|синтом|лид|лида",
    ),
    "8-bit lead": (
        "8-bit square lead|8-bit lead|8 bit lead|chip lead|square lead|8-bit|8 bit|8bit",
        "8-битн* лид*|8-битн*|8 бит*|восьмибитн*",
    ),
    "bells": (
        "tubular bells|bells|bell|glockenspiel|music box|celesta",
        "колокол*|глокеншпил*|музыкальн* шкатулк*|челест*",
    ),
    "marimba": ("marimba*|xylophone*|vibraphone*|kalimba*", "маримб*|ксилофон*|вибрафон*|калимб*"),
    "trumpet": ("trumpet*|trombone*", "труба|трубы|трубой|трубу|тромбон*"),
    "voice": (
        "wordless vocal*|female vocal*|male vocal*|vocals|vocal|voice|voices|singing|singer",
        "вокал*|голос*|пение|пением|поет",
    ),
    "saxophone": ("saxophone*|sax", "саксофон*|сакс"),
    "violin": ("solo violin|violin*|fiddle|cello*", "скрипк*|скрипич*|виолончел*"),
}
KITS: dict[str, tuple[str, str]] = {
    "acoustic kit": (
        "acoustic drum*|live drum*|rock drum*|drum kit|drumkit",
        "акустическ* барабан*|жив* барабан*|ударн* установк*",
    ),
    "drum machine": (
        "drum machine*|electronic drum*|electronic beat*|909",
        "драм-машин*|драм машин*|электронн* барабан*|электронн* бит*",
    ),
    "808 kit": ("808 drum*|808s|808 kit|808", "808 барабан*|808-*"),
    "lo-fi kit": ("dusty drum*|lo-fi drum*|lofi drum*|vinyl drum*", "пыльн* барабан*|лоу-фай барабан*|лоуфай барабан*"),
    "8-bit kit": ("8-bit drum*|8 bit drum*|chip drum*", "8-битн* барабан*|8 битн* барабан*|чип барабан*"),
    "brush kit": ("brushes|brushed drum*|jazz drum*|brush drum*", "щетк*|щеточк*|джазов* барабан*"),
}
GROUPS: dict[str, tuple[str, str]] = {
    "drums": ("drums|drum|beats|beat|percussion*|rhythm", "барабан*|ударн*|бит|бита|битом|биты|перкусс*|ритм*"),
    "bass": ("bassline*|bass line*|bass", "бас|баса|басом|басы|басов*|бас-лини*"),
    "melody": ("melod*|tune", "мелоди*"),
    "chords": ("chords|chord|harmony|accompaniment", "аккорд*|гармони*|аккомпан*"),
}
SPEEDS: dict[str, tuple[str, str]] = {
    "slow": ("very slow|slow*|downtempo|adagio|largo", "медленн*|неспешн*|адажио"),
    "medium": (
        "mid-tempo|midtempo|mid tempo|medium tempo|moderate*|andante",
        "среднем темпе|средн* темп*|умеренн*|анданте",
    ),
    "fast": ("very fast|fast*|quick*|rapid|uptempo|up-tempo|allegro|presto", "быстр*|стремительн*|аллегро|престо"),
}
_MODE_FORMS = {
    "major": "major|maj|dur|мажор*|мажорн*",
    "minor": "minor|moll|минор*|минорн*",
    "dorian": "dorian|дорийск*",
    "mixolydian": "mixolydian|миксолидийск*",
}
_NEGATIONS = "no|without|not|minus|excluding|except|без|нет|не|кроме"
_ONLY = "only|just|nothing but|alone|a cappella|только|лишь|исключительно|один|одни|одна"
_SOLO = "solo|unaccompanied|соло|сольн*"
_JOIN = "and|or|nor|with|plus|и|или|ни|с|со|на|для"
# Said about music often, and they carry nothing that this model could follow.
_STOP = (
    "a|an|the|of|in|at|to|for|by|from|on|as|is|it|its|this|that|some|very|more|less|style|track|song|music|tune|piece|"
    "loop|background|instrumental|bpm|tempo|key|featuring|feat|like|sound|sounds|sounding|make|me|please|"
    "в|во|к|из|от|до|по|о|об|как|это|этот|очень|стиле|стиль|трек|трека|песня|песню|музыка|музыку|музыки|музыкой|"
    "композиция|композицию|темп|темпе|темпом|тональность|тональности|удар|ударов|минуту|сделай|мне|пожалуйста|фон|фоновая"
)
_RU_NOTES = {"до": 0, "ре": 2, "ми": 4, "фа": 5, "соль": 7, "ля": 9, "си": 11}
_LETTERS = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11, "h": 11}


def _attribute_names() -> tuple[str, ...]:
    names = [f"genre:{g}" for g in GENRES] + [f"mood:{m}" for m in MOODS] + [f"speed:{s}" for s in SPEEDS]
    names += [f"root:{n}" for n in NOTE_NAMES] + [f"mode:{m}" for m in MODES] + [f"scale:{n}" for n in NOTE_NAMES]
    parts = [*INSTRUMENTS, *KITS, *GROUPS]
    return tuple(names + [f"{how}:{part}" for how in ("with", "no", "only") for part in parts] + ["solo"])


ATTRIBUTES = _attribute_names()  # the order is the model's embedding table: append only


@dataclass(frozen=True)
class Understanding:
    """What a prompt says in the model's own terms.

    attributes: names out of ATTRIBUTES, in canonical order, without repeats.
    tempo_bpm: beats a minute where the prompt names a number.
    unknown: words that the model does not know, in the order of their first appearance.
    """

    attributes: tuple[str, ...] = ()
    tempo_bpm: float | None = None
    unknown: tuple[str, ...] = ()

    def parts(self, how: str) -> tuple[str, ...]:
        """The parts that are asked for "with" others, "only" or with "no"; all that is said of one kind."""
        return tuple(name.removeprefix(f"{how}:") for name in self.attributes if name.startswith(f"{how}:"))

    def first(self, what: str) -> str:
        """The first genre, mood, speed, root or mode, "" where the prompt has none."""
        return next(iter(self.parts(what)), "")


def modes_in(genre: str, mood: str) -> list[str]:
    """The modes that a genre has in a mood; "" for none in particular."""
    usual = GENRE_MODES.get(genre, ("minor", "major"))
    modes = [m for m in usual if mood not in {"dark", "sad", "aggressive"} or m in {"minor", "dorian"}] or list(usual)
    if mood in {"happy", "romantic"}:
        modes = [m for m in modes if m in {"major", "mixolydian"}] or modes
    return modes


def bpm_in(genre: str, mood: str) -> tuple[float, float]:
    """The tempi that a genre has in a mood: its slower half where that is calm, its faster half where it is lively."""
    low, high = GENRE_BPM.get(genre, ANY_BPM)
    middle = (low + high) / 2
    if mood in {"calm", "sad", "relaxed"}:
        return low, middle
    return (middle, high) if mood in {"energetic", "aggressive"} else (low, high)


def unknown_words(prompt: str) -> tuple[str, ...]:
    """Words of the prompt that the embedded model does not know."""
    return understand(prompt).unknown


def _form_regex(forms: str) -> str:
    def one(form: str) -> str:
        text = re.escape(form).replace(r"\*", r"\w*").replace(r"\ ", r"[\s-]+")
        return text if form.endswith("*") else text + r"(?!\w)"

    return "|".join(one(f) for f in sorted(forms.split("|"), key=len, reverse=True))


def _forms() -> list[tuple[str, str, str]]:
    """All known forms as (form, kind, value); longer forms are tried first, so phrases win over their words."""
    out: list[tuple[str, str, str]] = []
    tables = (
        ("genre", GENRES),
        ("mood", MOODS),
        ("speed", SPEEDS),
        ("part", INSTRUMENTS),
        ("part", KITS),
        ("part", GROUPS),
    )
    for kind, table in tables:
        for name, languages in table.items():
            out += [(form, kind, name) for forms in languages for form in forms.split("|")]
    for mode, forms in _MODE_FORMS.items():
        out += [(form, "mode", mode) for form in forms.split("|")]
    for kind, forms in (("no", _NEGATIONS), ("only", _ONLY), ("solo", _SOLO), ("join", _JOIN), ("stop", _STOP)):
        out += [(form, kind, "") for form in forms.split("|")]
    return sorted(out, key=lambda f: (f[0].count(" ") + f[0].count("-"), len(f[0].rstrip("*"))), reverse=True)


@lru_cache(maxsize=1)
def _reader() -> tuple[dict[str, list[tuple[re.Pattern[str], str, str]]], re.Pattern[str], re.Pattern[str]]:
    """Forms by first letter, and the patterns of keys and tempi."""
    by_letter: dict[str, list[tuple[re.Pattern[str], str, str]]] = {}
    for form, kind, value in _forms():
        by_letter.setdefault(form[0], []).append((re.compile(_form_regex(form)), kind, value))
    modes = _form_regex("|".join(_MODE_FORMS.values()))
    key = re.compile(
        rf"(?P<note>[a-h]|{'|'.join(sorted(_RU_NOTES, key=len, reverse=True))})\s*-?\s*"
        rf"(?P<sign>#|♯|♭|sharp|flat|диез|бемоль|b(?=\s*-?\s*(?:{modes}|m\b)))?\s*-?\s*(?P<mode>(?:{modes})|m(?!\w))(?!\s+key)"
    )
    tempo = re.compile(
        r"(?P<bpm>\d{2,3}(?:[.,]\d+)?)\s*-?\s*(?:bpm|beats per minute|уд(?:ар\w*)?\.?\s*(?:в|/)\s*мин\w*|бпм|bmp)"
        r"|(?:tempo|темп\w*|bpm|бпм)\s*(?:of|is|:|=|-)?\s*(?P<bpm2>\d{2,3}(?:[.,]\d+)?)(?!\w)"
    )
    return by_letter, key, tempo


def _normalise(prompt: str) -> str:
    text = unicodedata.normalize("NFKC", prompt[:MAX_CHARS]).casefold().replace("ё", "е")
    return re.sub(r"[‐-―−]", "-", text).replace("’", "'")


def _read(text: str) -> tuple[list[tuple[str, str]], float | None, tuple[str, ...]]:
    """Split a normalised prompt into (kind, value) items, its tempo and its unknown words."""
    by_letter, key_form, tempo_form = _reader()
    items: list[tuple[str, str]] = []
    bpm: float | None = None
    unknown: dict[str, None] = {}
    at = 0
    word = re.compile(r"[\w#♯♭'&-]+")
    while at < len(text):
        if not (text[at].isalnum()):
            items += [("stop", ".")] if text[at] in ".;!?\n" else []
            at += 1
            continue
        if tempo := tempo_form.match(text, at):
            value = float((tempo["bpm"] or tempo["bpm2"]).replace(",", "."))
            bpm = value if TEMPO_BPM[0] <= value <= TEMPO_BPM[1] else bpm
            at = tempo.end()
        elif key := key_form.match(text, at):
            items.append(("key", f"{_pitch_class(key['note'], key['sign'])} {_mode(key['mode'])}"))
            at = key.end()
        else:
            for pattern, kind, value_name in by_letter.get(text[at], ()):
                if found := pattern.match(text, at):
                    items.append((kind, value_name))
                    at = found.end()
                    break
            else:
                rest = word.match(text, at)
                end = rest.end() if rest else at + 1
                unknown.setdefault(text[at:end].strip("-'&"))
                items.append(("unknown", ""))
                at = end
    return items, bpm, tuple(unknown)


def _pitch_class(note: str, sign: str | None) -> int:
    step = _RU_NOTES[note] if note in _RU_NOTES else _LETTERS[note]
    if sign in {"#", "♯", "sharp", "диез"}:
        return (step + 1) % 12
    return (step - 1) % 12 if sign else step


def _mode(word: str) -> str:
    if word == "m":
        return "minor"
    return next(m for m, forms in _MODE_FORMS.items() if re.match(_form_regex(forms), word))


def _parts(items: list[tuple[str, str]]) -> list[str]:
    """Instruments with how they were asked for: "with:piano", "no:drums", "only:drums", "solo"."""
    out: list[str] = []
    how, recent = "with", []
    for index, (kind, value) in enumerate(items):
        if kind == "part":
            out.append(f"{how}:{value}")
            recent.append(len(out) - 1)
            solo_after = index + 1 < len(items) and items[index + 1][0] in {"only", "solo"}
            if how == "with" and solo_after:
                # "drums and bass only": the word stands behind what it is about
                for i in recent:
                    out[i] = out[i].replace("with:", "only:")
        elif kind in {"no", "only"}:
            how = kind
        elif kind == "solo" and not (index and items[index - 1][0] == "part"):
            how = "only"
        elif kind not in {"join", "genre", "mood"} or (kind == "join" and how == "no" and value == "."):
            how, recent = ("with" if kind == "stop" else how), [] if kind == "stop" else recent
        if kind == "genre" and how == "no":
            how = "with"
    if sum(a.startswith("only:") for a in out) == 1:
        out.append("solo")
    return out


def understand(prompt: str | None) -> Understanding:
    """Read a prompt. Never raises; an empty or wholly unknown prompt gives no attributes.

    Only the first MAX_CHARS characters are read.
    """
    if not prompt or not prompt.strip():
        return Understanding()
    items, bpm, unknown = _read(_normalise(prompt))
    found = {f"{kind}:{value}" for kind, value in items if kind in {"genre", "mood", "speed", "mode"}}
    for kind, value in items:
        if kind == "key":
            root, mode = value.split()
            found |= {f"root:{NOTE_NAMES[int(root)]}", f"mode:{mode}"}
            found.add(f"scale:{NOTE_NAMES[(int(root) - MODES[mode]) % 12]}")
    found |= set(_parts(items))
    return Understanding(tuple(a for a in ATTRIBUTES if a in found), bpm, unknown)
