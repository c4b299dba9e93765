"""The corpus: seeded scores, captions and sounds that the embedded model is trained on."""

from __future__ import annotations

import numpy as np
import pytest

from modules.musicgen.tiny.words import GENRES as KNOWN_GENRES
from modules.musicgen.tiny.words import INSTRUMENTS, KITS, MODES, understand
from training.codec import layout
from training.corpus import genres, instruments, score
from training.corpus.captions import caption
from training.measure import same_tempo, tempo_bpm
from training.notes import parts_played, pitch_classes, share_inside


def test_a_seed_always_gives_the_same_score_and_the_same_caption() -> None:
    first, second = (score.compose(42, 8) for _ in range(2))
    assert first == second
    assert np.array_equal(layout.tokens(first), layout.tokens(second))
    words = [caption(first, np.random.default_rng(7)) for _ in range(2)]
    assert words[0] == words[1]


def test_the_orchestra_is_as_large_as_promised_and_the_program_knows_all_of_it_by_name() -> None:
    assert len(genres.GENRES) >= 16
    assert len(instruments.PRESETS) >= 24
    assert len(instruments.KITS) >= 6
    assert set(genres.GENRES) == set(KNOWN_GENRES)
    assert set(instruments.PRESETS) == set(INSTRUMENTS)
    assert set(instruments.KITS) == set(KITS)


@pytest.mark.parametrize("genre", list(genres.GENRES))
def test_every_genre_names_only_instruments_and_figures_that_exist(genre: str) -> None:
    table = genres.GENRES[genre]
    assert set(table.basses) <= set(instruments.BASSES)
    assert set(table.chords) <= set(instruments.CHORD_PRESETS)
    assert set(table.leads) <= set(instruments.LEAD_PRESETS)
    assert set(table.kits) <= set(instruments.KITS)
    assert all(len(row) == score.STEPS for rows in table.drums for row in rows.values())


@pytest.mark.parametrize("language", ["en", "ru"])
def test_the_program_reads_out_of_a_caption_what_was_put_in(language: str) -> None:
    for seed in range(120):
        piece = score.compose(seed, 4)
        text = caption(piece, np.random.default_rng(seed), full=True, language=language)
        read = understand(text)
        assert read.unknown == (), text
        assert f"genre:{piece.genre}" in read.attributes, text
        assert read.tempo_bpm == pytest.approx(piece.bpm, rel=0.02), text
        if piece.shape != "drums":
            assert f"root:{instruments_root(piece.root)}" in read.attributes, text
            assert f"mode:{piece.mode}" in read.attributes, text
        if piece.shape == "solo":
            only = [a for a in read.attributes if a.startswith("only:")]
            assert only in ([f"only:{p}"] for p in (*piece.instruments.values(), "bass")), text
        if piece.shape == "no drums":
            assert "no:drums" in read.attributes, text


def instruments_root(pitch_class: int) -> str:
    return ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")[pitch_class]


def test_tempi_cover_60_to_180_within_three_percent() -> None:
    for bpm in range(60, 181):
        assert 3000 / score.quarter_frames(bpm) == pytest.approx(bpm, rel=0.032)


def test_training_never_hears_the_held_out_combinations() -> None:
    shares = [score.held_out(g, c, lead) for g, t in genres.GENRES.items() for c in t.chords for lead in t.leads]
    assert any(shares)
    assert not all(shares)
    for seed in range(300):
        piece = score.compose(seed, 2)
        if {"chords", "lead"} <= set(piece.instruments):
            assert not score.held_out(piece.genre, piece.instruments["chords"], piece.instruments["lead"])


def test_every_sound_of_the_codec_is_nearly_in_tune_and_fits_its_codebook() -> None:
    for layer, table in layout.sounds().items():
        last = max(s.first + instruments.ATTACK_FRAMES + s.loop for s in table.values())
        assert last <= layout.CARD
        errors = [layout.loop_error(s.midis, s.loop) for s in table.values()]
        assert np.mean(errors) < 10, layer
        assert np.percentile(errors, 90) < 15, layer


def test_no_two_sounds_share_a_code() -> None:
    for table in layout.sounds().values():
        codes = np.concatenate([s.codes(60) for s in table.values()])
        assert len(np.unique(codes)) == sum(instruments.ATTACK_FRAMES + s.loop for s in table.values())
        assert codes.min() > 0


def test_a_repeated_bar_is_a_repeated_token_sequence() -> None:
    piece = score.compose(11, 12, genre="techno")
    codes = layout.tokens(piece)
    bar = piece.quarter * 4
    assert np.array_equal(codes[1, bar : bar + 8], codes[1, bar * 5 : bar * 5 + 8]) or piece.shape in {"drums", "solo"}


def test_a_natural_note_has_its_pitch() -> None:
    samples = instruments.note("flute", [69], 50)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    peak_hz = spectrum.argmax() * instruments.SAMPLE_RATE_HZ / len(samples)
    assert peak_hz == pytest.approx(440, abs=2)


def test_a_looped_body_repeats_without_a_seam() -> None:
    sound = layout.sounds()["lead"]["flute", (69,)]
    frames = instruments.ATTACK_FRAMES + 2 * sound.loop
    samples = instruments.note("flute", [69 + layout.TUNING], frames, sound.loop)
    start, length = instruments.ATTACK_FRAMES * instruments.HOP, sound.loop * instruments.HOP
    assert np.allclose(samples[start : start + length], samples[start + length : start + 2 * length], atol=1e-4)


@pytest.mark.parametrize("kit", instruments.KITS)
def test_every_kit_has_its_own_kick(kit: str) -> None:
    others = [instruments.drum_hit(other, "k") for other in instruments.KITS if other != kit]
    mine = instruments.drum_hit(kit, "k")
    assert np.abs(mine).max() > 0.2
    assert all(np.abs(mine - other).max() > 0.05 for other in others)


def test_the_codes_say_which_parts_play() -> None:
    for seed in range(20):
        piece = score.compose(seed, 8)
        playing = {*piece.instruments.values()} | ({piece.kit} if piece.kit else set())
        assert parts_played(layout.tokens(piece), 1) == playing


def test_every_note_of_a_piece_is_inside_its_key_and_not_inside_a_far_one() -> None:
    inside, far = [], []
    for seed in range(20):
        piece = score.compose(seed, 6)
        if piece.shape == "drums":
            continue
        key = (piece.root - MODES[piece.mode]) % 12
        notes = pitch_classes(layout.tokens(piece))
        inside.append(share_inside(notes, key))
        far.append(share_inside(notes, key + 6))
    assert min(inside) > 0.95
    assert np.mean(far) < 0.5


@pytest.mark.parametrize("bpm", [80.0, 120.0])
def test_the_tempo_of_clicks_is_found(bpm: float) -> None:
    clip = np.zeros(6 * 32_000, np.float32)
    for beat in np.arange(0, 5.9, 60 / bpm):
        clip[int(beat * 32_000) :][:400] = np.hanning(400)
    found = tempo_bpm(clip)
    assert same_tempo(found, bpm)
    assert not same_tempo(found, bpm * 1.2)
