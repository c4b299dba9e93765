"""The orchestra: every sound of the corpus, synthesised here from sines and seeded noise.

A note is additive: harmonics whose levels move from a bright attack to a steady body. With `loop_frames` every partial
is rounded to the loop's own frequency grid, so the body repeats without a seam; that is what the codec's codewords are
cut from. Without it the note has its true pitch and a natural decay; that is what the corpus' audio is rendered from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 32_000
FRAME_RATE_HZ = 50
HOP = SAMPLE_RATE_HZ // FRAME_RATE_HZ  # samples in a frame
ATTACK_FRAMES = 3  # frames before a note's body repeats

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Preset:
    """How one instrument sounds.

    body, bright: level of harmonic h (from 1) in the steady part and added at the attack.
    attack_s: time to full level. fall_s: time constant of the bright part.
    hold, decay_s: the level falls towards `hold` with this time constant (hold 1: sustained).
    partials: frequency ratios where they are not the harmonic series.
    noise: level of the attack's noise, noise_hz: its band. breath: steady noise. tremolo: depth of the swell.
    """

    body: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    gain: float = 0.3
    bright: float = 0.0
    attack_s: float = 0.003
    fall_s: float = 0.02
    hold: float = 1.0
    decay_s: float = 1.0
    cutoff_hz: float = 7000.0
    partials: Sequence[float] = field(default=())
    noise: float = 0.0
    noise_hz: tuple[float, float] = (500.0, 4000.0)
    breath: float = 0.0
    tremolo: float = 0.0
    formants: Sequence[tuple[float, float]] = field(default=())


def _saw(h: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / h


def _square(h: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(h % 2 == 1, 1.0 / h, 0.0)


def _fixed(*levels: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    table = np.array(levels)
    return lambda h: np.where(h <= len(table), table[np.minimum(h.astype(int) - 1, len(table) - 1)], 0.0)


def _power(exponent: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda h: h**-exponent


PRESETS: dict[str, Preset] = {
    # basses
    "sub bass": Preset(_fixed(1, 0.14, 0.05), 0.62, attack_s=0.006),
    "synth bass": Preset(_saw, 0.5, bright=0.6, cutoff_hz=700, fall_s=0.03),
    "acid bass": Preset(_saw, 0.42, bright=2.5, cutoff_hz=480, fall_s=0.03, formants=((950, 350),)),
    "upright bass": Preset(_power(1.7), 0.8, bright=0.5, hold=0.05, decay_s=0.35, noise=0.06, noise_hz=(300, 1500)),
    "bass guitar": Preset(_power(1.25), 0.6, bright=0.8, hold=0.35, decay_s=0.5, cutoff_hz=2200, noise=0.05),
    "reese bass": Preset(_power(0.8), 0.36, cutoff_hz=900, tremolo=0.5, attack_s=0.01),
    "8-bit bass": Preset(_square, 0.42),
    # chords and leads
    "piano": Preset(
        _power(1.4), 0.42, bright=0.9, hold=0.06, decay_s=0.55, cutoff_hz=4500, noise=0.05, noise_hz=(200, 1200)
    ),
    "electric piano": Preset(_fixed(1, 0.28, 0.06, 0.02), 0.45, bright=0.5, hold=0.15, decay_s=0.7, tremolo=0.12),
    "organ": Preset(_fixed(1, 0.7, 0.5, 0.4, 0.05, 0.25, 0.02, 0.2), 0.28, attack_s=0.008, tremolo=0.18, noise=0.03),
    "pad": Preset(_power(1.15), 0.3, attack_s=0.05, cutoff_hz=1400, tremolo=0.1, hold=1.0),
    "strings": Preset(_power(0.95), 0.26, attack_s=0.045, cutoff_hz=4200, tremolo=0.12, breath=0.02),
    "acoustic guitar": Preset(
        _power(1.1), 0.42, bright=1.4, hold=0.08, decay_s=0.32, cutoff_hz=3800, noise=0.06, noise_hz=(1500, 5000)
    ),
    "distorted guitar": Preset(_power(0.55), 0.17, cutoff_hz=3200, noise=0.05, formants=((1500, 900),), breath=0.03),
    "choir": Preset(_power(0.9), 0.3, attack_s=0.05, formants=((650, 130), (1080, 150), (2650, 250)), breath=0.03),
    "accordion": Preset(_fixed(1, 0.9, 0.75, 0.5, 0.5, 0.35, 0.3, 0.2, 0.2, 0.1), 0.28, attack_s=0.025, tremolo=0.25),
    "brass": Preset(_power(0.75), 0.26, bright=-0.5, attack_s=0.03, cutoff_hz=2400, fall_s=0.015),
    "flute": Preset(_fixed(1, 0.25, 0.06, 0.02), 0.42, attack_s=0.035, breath=0.05, noise=0.05, noise_hz=(800, 5000)),
    "synth lead": Preset(_saw, 0.3, bright=0.4, cutoff_hz=5000, hold=0.8, decay_s=0.4),
    "8-bit lead": Preset(_square, 0.27, hold=0.75, decay_s=0.3),
    "bells": Preset(
        lambda h: np.array([1.0, 0.7, 0.45, 0.3])[: len(h)],
        0.4,
        bright=0.6,
        hold=0.02,
        decay_s=0.8,
        partials=(1, 2.76, 5.4, 8.9),
    ),
    "marimba": Preset(
        lambda h: np.array([1.0, 0.25, 0.06])[: len(h)],
        0.65,
        bright=1.0,
        hold=0.0,
        decay_s=0.14,
        partials=(1, 3.93, 9.2),
        noise=0.1,
    ),
    "trumpet": Preset(_fixed(0.6, 0.9, 1, 0.8, 0.6, 0.45, 0.3, 0.2, 0.12, 0.08), 0.2, bright=-0.4, attack_s=0.025),
    "voice": Preset(
        _power(0.7), 0.34, attack_s=0.045, formants=((800, 110), (1250, 130), (2800, 250)), tremolo=0.1, breath=0.02
    ),
    "saxophone": Preset(
        _power(0.6), 0.25, attack_s=0.02, cutoff_hz=3000, formants=((550, 300), (1600, 500)), breath=0.05, noise=0.06
    ),
    "violin": Preset(
        _power(0.85),
        0.24,
        attack_s=0.03,
        cutoff_hz=5500,
        formants=((1100, 500), (2900, 900)),
        tremolo=0.15,
        breath=0.03,
    ),
}
BASSES = tuple(PRESETS)[:7]
CHORD_PRESETS = (
    "piano",
    "electric piano",
    "organ",
    "pad",
    "strings",
    "acoustic guitar",
    "distorted guitar",
    "choir",
    "accordion",
    "brass",
)
LEAD_PRESETS = (
    "piano",
    "flute",
    "synth lead",
    "8-bit lead",
    "bells",
    "marimba",
    "acoustic guitar",
    "trumpet",
    "voice",
    "saxophone",
    "violin",
    "distorted guitar",
)
VOCAL_PRESETS = frozenset({"voice", "choir"})

KITS = ("acoustic kit", "drum machine", "808 kit", "lo-fi kit", "8-bit kit", "brush kit")
# What sounds together at one tick; "" only marks the pulse.
HITS = ("", "k", "s", "h", "o", "kh", "ko", "sh", "t", "kc", "r", "kr")
MAX_TICK_FRAMES = 25  # an eighth note at 60 bpm


def hertz(midi: float) -> float:
    return float(440.0 * 2.0 ** ((midi - 69) / 12))


def envelope(preset: Preset, age_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Level of a note `age_s` seconds after its attack frames ended."""
    return preset.hold + (1 - preset.hold) * np.exp(-age_s / preset.decay_s)


def _band_noise(samples: int, low_hz: float, high_hz: float, seed: int) -> NDArray[np.float64]:
    """Noise of unit RMS that repeats every `samples`."""
    rng = np.random.default_rng(seed)
    spectrum = np.zeros(samples // 2 + 1, complex)
    hz = np.arange(len(spectrum)) * SAMPLE_RATE_HZ / samples
    inside = (hz >= low_hz) & (hz <= high_hz)
    spectrum[inside] = np.exp(2j * np.pi * rng.random(int(inside.sum())))
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(noise / (np.sqrt(np.mean(noise**2)) + 1e-9))


def _levels(preset: Preset, hz: NDArray[np.float64], ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    level = preset.body(ranks)
    level = level / np.sqrt(1 + (hz / preset.cutoff_hz) ** 4)
    if preset.formants:
        gain = sum(np.exp(-(((hz - centre) / width) ** 2)) for centre, width in preset.formants)
        level = level * (0.12 + gain)
    return np.where(hz < SAMPLE_RATE_HZ * 0.45, level, 0.0)


def note(preset_name: str, midis: Sequence[float], frames: int, loop_frames: int | None = None, tail: int = 0) -> Audio:
    """One note or chord, without its decay and release when looped, complete otherwise.

    Args:
        midis: MIDI note numbers sounding together.
        frames: length in frames.
        loop_frames: round every partial to the grid of a loop of this length, see the module.
        tail: samples beyond the last frame.
    Returns:
        float32 [frames * HOP + tail].
    """
    preset = PRESETS[preset_name]
    total = frames * HOP + tail
    t = np.arange(total) / SAMPLE_RATE_HZ
    attack_end = ATTACK_FRAMES / FRAME_RATE_HZ
    # the moving part of the attack is gone, exactly, once the body repeats
    fading = np.exp(-t / preset.fall_s) * np.clip(1 - t / attack_end, 0, 1) ** 2
    grid = FRAME_RATE_HZ / loop_frames if loop_frames else 0.0
    out = np.zeros(total)
    norm = 1.0 / max(1.0, len(midis) ** 0.6)
    for midi in midis:
        f0 = hertz(midi)
        f0 = round(f0 / grid) * grid if grid else f0
        ranks = (
            np.arange(1, len(preset.partials) + 1)
            if preset.partials
            else np.arange(1, max(2, min(24, int(14_000 / f0)) + 1))
        )
        ratios = np.array(preset.partials) if preset.partials else ranks.astype(float)
        hz = ratios * f0
        hz = np.maximum(1, np.round(hz / grid)) * grid if grid else hz
        body = _levels(preset, hz, ranks.astype(float))
        scale = 1.0 / np.sqrt((body**2).sum() / 2 + 1e-9) * 0.7
        phases = 2.399963 * ranks  # golden angle: no harmonics peak together
        swell = (1 + preset.tremolo * np.sin(2 * np.pi * max(grid, 5.5) * t)) if preset.tremolo else 1.0
        brightness = np.minimum(ranks / 4.0, 2.0)
        for level, f, phase, shine in zip(body, hz, phases, brightness, strict=True):
            if level > 1e-4:
                moving = np.maximum(0.0, 1 + preset.bright * shine * fading)
                out += scale * level * moving * swell * np.sin(2 * np.pi * f * t + phase)
    out *= norm
    if preset.breath:
        period = HOP * (loop_frames or 8)
        noise = _band_noise(period, 1500, 9000, 7)
        out += preset.breath * np.resize(noise, total)
    if preset.noise:
        low, high = preset.noise_hz
        burst = _band_noise(HOP * ATTACK_FRAMES * 4, low, high, 11)[: HOP * ATTACK_FRAMES]
        out[: len(burst)] += (preset.noise * 4 * burst * fading[: len(burst)])[:total]
    out *= preset.gain * np.minimum(1.0, t / preset.attack_s)
    if not loop_frames:
        out *= envelope(preset, np.maximum(0.0, t - attack_end))
    return out.astype(np.float32)


@lru_cache(maxsize=6000)
def cached_note(preset_name: str, midis: tuple[int, ...], frames: int) -> Audio:
    """A natural note with a release of one frame; cached, so a corpus renders quickly. float32 [(frames + 1) * HOP]."""
    samples = note(preset_name, midis, frames + 1)
    samples[frames * HOP :] *= np.linspace(1, 0, HOP, dtype=np.float32) ** 2
    return samples


# --- drums -----------------------------------------------------------------------------------------------------------

_KIT_TABLE = {  # kick Hz, kick decay, sweep, snare tone Hz, snare noise decay, hat Hz, hat decay, drive, level
    "acoustic kit": (58.0, 14.0, 2.2, 195.0, 17.0, 6500.0, 55.0, 1.0, 1.0),
    "drum machine": (48.0, 11.0, 4.0, 170.0, 20.0, 8000.0, 75.0, 1.6, 1.0),
    "808 kit": (42.0, 5.0, 2.0, 180.0, 24.0, 9000.0, 90.0, 1.3, 0.85),
    "lo-fi kit": (54.0, 13.0, 1.8, 180.0, 22.0, 4200.0, 60.0, 2.2, 1.1),
    "8-bit kit": (75.0, 16.0, 5.0, 260.0, 20.0, 7000.0, 60.0, 1.0, 0.8),
    "brush kit": (62.0, 18.0, 1.2, 210.0, 9.0, 5200.0, 28.0, 1.0, 0.9),
}


def _drum_sound(kit: str, what: str, samples: int) -> NDArray[np.float64]:
    kick_hz, kick_fall, sweep, snare_hz, snare_fall, hat_hz, hat_fall, drive, level = _KIT_TABLE[kit]
    t = np.arange(samples) / SAMPLE_RATE_HZ
    seed = KITS.index(kit) * 31 + ord(what)
    high = _band_noise(samples, hat_hz, 15_500, seed)
    mid = _band_noise(samples, 900, 9000, seed + 1)
    if what == "k":
        phase = kick_hz * t + kick_hz * sweep * (1 - np.exp(-t * 32)) / 32
        y = np.sin(2 * np.pi * phase) * np.exp(-t * kick_fall) * 0.95 + 0.08 * mid * np.exp(-t * 220)
    elif what == "s":
        tone = 0.35 * np.sin(2 * np.pi * snare_hz * t) * np.exp(-t * 24)
        y = tone + (0.1 if kit == "brush kit" else 0.22) * mid * np.exp(-t * snare_fall)
    elif what == "h":
        y = 0.12 * high * np.exp(-t * hat_fall)
    elif what == "o":
        y = 0.12 * high * np.exp(-t * hat_fall / 7)
    elif what == "c":
        y = 0.13 * _band_noise(samples, 3500, 15_500, seed + 2) * np.exp(-t * 4)
    elif what == "t":
        y = 0.8 * np.sin(2 * np.pi * (105 * t + 70 * (1 - np.exp(-t * 16)) / 16)) * np.exp(-t * 10)
    elif kit == "brush kit":  # "r": a ride cymbal
        y = 0.07 * _band_noise(samples, 4000, 13_000, seed) * np.exp(-t * 9) + 0.05 * np.sin(
            2 * np.pi * 3180 * t
        ) * np.exp(-t * 14)
    elif kit in {"drum machine", "808 kit"}:  # a clap
        strokes = sum(np.exp(-np.maximum(0, t - d) * 90) * (t >= d) for d in (0.0, 0.011, 0.022))
        y = 0.2 * _band_noise(samples, 900, 4500, seed) * (0.6 * strokes + 0.5 * np.exp(-t * 22) * (t > 0.03))
    else:  # a rim
        y = 0.35 * _band_noise(samples, 1500, 5000, seed) * np.exp(-t * 110) + 0.3 * np.sin(
            2 * np.pi * 820 * t
        ) * np.exp(-t * 70)
    if kit == "8-bit kit":
        y = np.round(y * 10) / 10 * np.exp(-t * 6)
    return np.asarray(np.tanh(drive * y) / drive * level)


@lru_cache(maxsize=256)
def drum_hit(kit: str, hits: str, frames: int = MAX_TICK_FRAMES) -> Audio:
    """Everything that starts at one tick, as one sound: float32 [(frames + 1) * HOP], the last frame its release."""
    total = (frames + 1) * HOP
    y = np.zeros(total)
    for what in hits:
        y += _drum_sound(kit, what, total)
    return (y * 0.8).astype(np.float32)
