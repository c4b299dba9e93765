"""Sixteen genres as tables: kit, drum rows, figures of bass and chords, instruments, moods."""

from __future__ import annotations

from dataclasses import dataclass

Figure = tuple[tuple[int, int, int], ...]  # (step of 16, length in steps, semitones above the chord's root)

# One bar of bass; 12 is the octave, 7 the fifth.
BASS_FIGURES: dict[str, Figure] = {
    "sixteenths": tuple((s, 1, 0) for s in range(16)),
    "eighths": tuple((s, 2, 0) for s in range(0, 16, 2)),
    "offbeat": tuple((s, 2, 0) for s in range(2, 16, 4)),
    "long": ((0, 10, 0), (10, 6, 0)),
    "roots": ((0, 6, 0), (6, 4, 0), (10, 6, 0)),
    "drone": ((0, 16, 0),),
    "walk": ((0, 4, 0), (4, 4, 4), (8, 4, 7), (12, 4, 9)),
    "funk": ((0, 2, 0), (3, 1, 0), (6, 2, 12), (8, 2, 0), (11, 1, 7), (14, 2, 12)),
    "reggae": ((4, 2, 0), (6, 2, 0), (8, 4, 7), (12, 2, 0)),
    "fifths": ((0, 6, 0), (6, 2, 0), (8, 6, 7), (14, 2, 7)),
    "octaves": tuple((s, 2, 12 * (s // 2 % 2)) for s in range(0, 16, 2)),
    "slow": ((0, 8, 0), (8, 8, 0)),
}
# One bar of chords: (step, length).
CHORD_FIGURES: dict[str, tuple[tuple[int, int], ...]] = {
    "hold": ((0, 16),),
    "halves": ((0, 8), (8, 8)),
    "quarters": ((0, 4), (4, 4), (8, 4), (12, 4)),
    "eighths": tuple((s, 2) for s in range(0, 16, 2)),
    "offbeat": tuple((s, 2) for s in range(2, 16, 4)),
    "stabs": ((0, 2), (6, 2), (10, 2)),
    "skank": ((4, 2), (12, 2)),
    "lazy": ((0, 6), (6, 10)),
    "comp": ((2, 4), (10, 4)),
    "bossa": ((0, 4), (6, 4), (12, 4)),
}
Rows = dict[str, str]


@dataclass(frozen=True)
class Genre:
    kits: tuple[str, ...]
    drums: tuple[Rows, ...]  # rows of 16 steps by sound; x hits, . rests
    basses: tuple[str, ...]
    bass_figures: tuple[str, ...]
    chords: tuple[str, ...]
    chord_figures: tuple[str, ...]
    leads: tuple[str, ...]
    lead_style: str  # "melody", "arpeggio", "riff", "sparse"
    moods: tuple[str, ...]


GENRES: dict[str, Genre] = {
    "techno": Genre(
        ("drum machine",),
        (
            {"k": "x...x...x...x...", "h": "..x...x...x...x."},
            {"k": "x...x...x...x...", "h": "x.x.x.x.x.x.x.x.", "r": "....x.......x..."},
        ),
        ("acid bass", "synth bass"),
        ("sixteenths", "offbeat"),
        ("pad",),
        ("hold",),
        ("synth lead", "8-bit lead"),
        "riff",
        ("dark", "energetic", "aggressive"),
    ),
    "house": Genre(
        ("drum machine",),
        (
            {"k": "x...x...x...x...", "o": "..x...x...x...x.", "r": "....x.......x..."},
            {"k": "x...x...x...x...", "o": "..x...x...x...x.", "h": "x...x...x...x..."},
        ),
        ("synth bass", "sub bass"),
        ("offbeat", "funk"),
        ("organ", "piano", "electric piano"),
        ("offbeat", "stabs"),
        ("voice", "piano"),
        "riff",
        ("groovy", "happy", "energetic"),
    ),
    "trance": Genre(
        ("drum machine",),
        (
            {"k": "x...x...x...x...", "o": "..x...x...x...x."},
            {"k": "x...x...x...x...", "o": "..x...x...x...x.", "r": "....x.......x..."},
        ),
        ("synth bass", "reese bass"),
        ("offbeat", "sixteenths"),
        ("pad", "strings"),
        ("hold",),
        ("synth lead",),
        "arpeggio",
        ("epic", "dreamy", "energetic"),
    ),
    "drum and bass": Genre(
        ("acoustic kit", "drum machine"),
        (
            {"k": "x.........x.....", "s": "....x.......x...", "h": "..x...x.x.....x."},
            {"k": "x.....x...x.....", "s": "....x.......x...", "h": "..x.....x.....x."},
        ),
        ("reese bass", "sub bass"),
        ("long", "slow"),
        ("pad", "electric piano"),
        ("hold",),
        ("synth lead", "bells"),
        "sparse",
        ("dark", "energetic", "aggressive"),
    ),
    "lo-fi hip hop": Genre(
        ("lo-fi kit",),
        (
            {"k": "x.....x.x.......", "s": "....x.......x...", "h": "x.x.x.x.x.x.x.x."},
            {"k": "x.......x.x.....", "s": "....x.......x...", "h": "x.x.x.x.x.x.x.x."},
        ),
        ("upright bass", "sub bass"),
        ("roots", "slow"),
        ("electric piano", "piano", "acoustic guitar"),
        ("lazy", "halves"),
        ("flute", "bells", "saxophone"),
        "sparse",
        ("relaxed", "nostalgic", "calm", "sad"),
    ),
    "trap": Genre(
        ("808 kit",),
        (
            {"k": "x.....x...x.....", "r": "........x.......", "h": "x.x.x.x.x.x.x.xx"},
            {"k": "x.......x.x.....", "r": "........x.......", "h": "x.x.x.xxx.x.x.x."},
        ),
        ("sub bass",),
        ("roots", "long"),
        ("choir", "pad"),
        ("hold",),
        ("bells", "flute", "trumpet"),
        "sparse",
        ("dark", "aggressive"),
    ),
    "ambient": Genre(
        (),
        (),
        ("sub bass",),
        ("drone",),
        ("pad", "strings", "choir"),
        ("hold",),
        ("bells", "flute", "voice"),
        "sparse",
        ("calm", "dreamy", "relaxed"),
    ),
    "rock": Genre(
        ("acoustic kit",),
        (
            {"k": "x.....x.x.......", "s": "....x.......x...", "h": "x.x.x.x.x.x.x.x."},
            {"k": "x.x.....x.x.....", "s": "....x.......x...", "h": "x.x.x.x.x.x.x.x."},
        ),
        ("bass guitar",),
        ("eighths",),
        ("distorted guitar",),
        ("eighths", "quarters"),
        ("distorted guitar",),
        "melody",
        ("energetic", "aggressive", "epic"),
    ),
    "jazz": Genre(
        ("brush kit",),
        (
            {"r": "x...x.x.x...x.x.", "k": "x...............", "s": "............x..."},
            {"r": "x...x.x.x...x.x.", "s": "....x.........x."},
        ),
        ("upright bass",),
        ("walk",),
        ("piano", "electric piano"),
        ("comp",),
        ("saxophone", "trumpet", "piano"),
        "melody",
        ("relaxed", "romantic", "groovy"),
    ),
    "funk": Genre(
        ("acoustic kit",),
        (
            {"k": "x..x..x...x.....", "s": "....x.......x...", "h": "xxxxxxxxxxxxxxxx"},
            {"k": "x.x.......x..x..", "s": "....x..x....x...", "h": "xxxxxxxxxxxxxxxx"},
        ),
        ("bass guitar",),
        ("funk",),
        ("organ", "electric piano", "brass"),
        ("stabs",),
        ("trumpet", "saxophone"),
        "riff",
        ("groovy", "happy", "energetic"),
    ),
    "reggae": Genre(
        ("acoustic kit",),
        (
            {"k": "........x.......", "r": "........x.......", "h": "x.x.x.x.x.x.x.x."},
            {"k": "x.......x.......", "r": "....x.......x...", "h": "..x...x...x...x."},
        ),
        ("sub bass", "bass guitar"),
        ("reggae",),
        ("organ", "accordion"),
        ("skank",),
        ("trumpet", "flute"),
        "melody",
        ("happy", "relaxed"),
    ),
    "chiptune": Genre(
        ("8-bit kit",),
        (
            {"k": "x...x...x...x...", "s": "....x.......x...", "h": "..x...x...x...x."},
            {"k": "x.......x.......", "s": "....x.......x...", "h": "x.x.x.x.x.x.x.x."},
        ),
        ("8-bit bass",),
        ("eighths", "octaves"),
        (),
        (),
        ("8-bit lead",),
        "arpeggio",
        ("happy", "energetic", "nostalgic"),
    ),
    "classical": Genre(
        (),
        (),
        (),
        (),
        ("strings", "piano", "brass"),
        ("halves", "quarters", "hold"),
        ("violin", "piano", "flute"),
        "melody",
        ("romantic", "sad", "calm", "epic"),
    ),
    "synthwave": Genre(
        ("drum machine",),
        (
            {"k": "x...x...x...x...", "s": "....x.......x...", "h": "..x...x...x...x."},
            {"k": "x.......x.......", "s": "....x.......x...", "h": "x.x.x.x.x.x.x.x."},
        ),
        ("synth bass", "reese bass"),
        ("sixteenths", "eighths"),
        ("pad", "strings"),
        ("hold",),
        ("synth lead", "bells"),
        "arpeggio",
        ("nostalgic", "dreamy", "energetic"),
    ),
    "bossa nova": Genre(
        ("brush kit",),
        ({"k": "x.....x.x.....x.", "h": "x.x.x.x.x.x.x.x."}, {"r": "x..x..x...x..x..", "k": "x.....x.x.....x."}),
        ("upright bass",),
        ("fifths",),
        ("acoustic guitar", "piano"),
        ("bossa",),
        ("flute", "voice", "saxophone"),
        "melody",
        ("relaxed", "romantic", "happy"),
    ),
    "disco": Genre(
        ("acoustic kit",),
        (
            {"k": "x...x...x...x...", "s": "....x.......x...", "o": "..x...x...x...x."},
            {"k": "x...x...x...x...", "s": "....x.......x...", "o": "..x...x...x...x.", "h": "x...x...x...x..."},
        ),
        ("bass guitar",),
        ("octaves",),
        ("strings", "brass", "piano"),
        ("stabs", "halves"),
        ("violin", "trumpet"),
        "riff",
        ("groovy", "happy", "energetic"),
    ),
}
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
}
# Degrees of the scale, a chord a bar.
PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 0), (0, 3, 0, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 5, 6), (0, 6, 5, 6), (0, 0, 5, 6)),
    "dorian": ((0, 3, 0, 3), (0, 0, 3, 3), (0, 2, 3, 0)),
    "mixolydian": ((0, 6, 3, 0), (0, 0, 6, 3), (0, 3, 6, 0)),
}
