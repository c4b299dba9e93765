"""The embedded model as the program runs it: words, codec, language model, from the folder in the repository."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules import settings
from modules.audio import Clip
from modules.contract import InvalidParameter
from modules.musicgen import backends
from modules.musicgen.catalog import Catalog
from modules.musicgen.engine import Engine, GenerationSpec, ModelFacts
from modules.musicgen.melody import hear
from modules.musicgen.tiny import load_tiny, understand, unknown_words
from modules.musicgen.tiny.arrangement import BEGIN_STRENGTH, HOME_STRENGTH, Beat, asked_beat, asked_key, layers_of
from modules.musicgen.tiny.tonality import MAJOR, with_key, with_tempo
from modules.musicgen.tiny.words import (
    ANY_BPM,
    ATTRIBUTES,
    GENRE_BPM,
    INSTRUMENTS,
    MAX_CHARS,
    MODES,
    NOTE_NAMES,
    SPEED_BPM,
)
from tests.decoders import Listener

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "models" / "tiny"


# --- words -----------------------------------------------------------------------------------------------------------


def test_the_package_and_its_words_load_no_torch() -> None:
    code = "import sys; from modules.musicgen.tiny import understand; understand('x'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("prompt", "attributes", "bpm"),
    [
        ("dark techno with acid bass, 130 bpm", {"genre:techno", "mood:dark", "with:acid bass"}, 130),
        ("drums only, techno", {"genre:techno", "only:drums", "solo"}, None),
        ("solo piano", {"only:piano", "solo"}, None),
        ("piano and flute only", {"only:piano", "only:flute"}, None),
        (
            "calm piano in A minor, no drums or bass",
            {"mood:calm", "root:A", "mode:minor", "scale:C", "with:piano", "no:drums", "no:bass"},
            None,
        ),
        ("in a minor key", {"mode:minor"}, None),
        ("House in Bb major at 124.5 BPM", {"genre:house", "root:A#", "mode:major", "scale:A#"}, 124.5),
        ("drum'n'bass with reese bass", {"genre:drum and bass", "with:reese bass"}, None),
        (
            "мрачное техно, 128 ударов в минуту, ля минор",
            {"genre:techno", "mood:dark", "root:A", "mode:minor", "scale:C"},
            128,
        ),
        ("только барабаны, рок", {"genre:rock", "only:drums", "solo"}, None),
        ("весёлая босса-нова с флейтой", {"genre:bossa nova", "mood:happy", "with:flute"}, None),
        ("соло на фортепиано без барабанов", {"no:drums", "only:piano", "solo"}, None),
        ("до-диез минор, темп 90", {"root:C#", "mode:minor", "scale:E"}, 90),
        ("D dorian jazz", {"genre:jazz", "root:D", "mode:dorian", "scale:C"}, None),
    ],
)
def test_a_prompt_is_read(prompt: str, attributes: set[str], bpm: float | None) -> None:
    read = understand(prompt)
    assert set(read.attributes) == attributes
    assert read.tempo_bpm == bpm
    assert read.unknown == ()


def test_words_it_does_not_know_are_reported_once_and_in_order() -> None:
    assert unknown_words("zorblax techno, frobnicated zorblax") == ("zorblax", "frobnicated")
    assert unknown_words("鼓和贝斯") == ("鼓和贝斯",)


@pytest.mark.parametrize(
    "prompt", [None, "", "  \n", "\x00\u202e", "🥁🥁", "no no only solo", "128", "9999 bpm", "#" * 500]
)
def test_odd_prompts_are_read_without_an_error(prompt: str | None) -> None:
    read = understand(prompt)
    assert set(read.attributes) <= set(ATTRIBUTES)


def test_a_prompt_of_ten_thousand_words_is_read_to_its_limit() -> None:
    assert "genre:techno" in understand("techno " + "music " * 10_000).attributes
    assert understand("x " * MAX_CHARS + "techno").attributes == ()


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[Any, Any]]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model this small only waits for a second thread
    yield load_tiny(FOLDER, "cpu")
    torch.set_num_threads(threads)


def generate(
    models: tuple[Any, Any], prompts: list[str | None], seconds: float, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Codes int64 [N, K, T] and audio float32 [N, samples] by audiocraft's own loop."""
    import torch
    from audiocraft.modules.conditioners import ConditioningAttributes

    lm, codec = models
    torch.manual_seed(seed)
    attributes = [ConditioningAttributes(text={"description": p}) for p in prompts]
    with torch.no_grad():
        codes = lm.generate(None, attributes, max_gen_len=int(seconds * codec.frame_rate), top_k=250, cfg_coef=3.0)
        return codes.numpy(), codec.decode(codes).mean(1).numpy()


def test_the_folder_fits_the_budget_and_says_what_it_is() -> None:
    assert sum(f.stat().st_size for f in FOLDER.parent.rglob("*") if f.is_file()) < 40e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("Licence", "Data", "Limits"))


def test_it_is_an_audiocraft_model_of_musicgens_shape(models: tuple[Any, Any]) -> None:
    from audiocraft.models.encodec import CompressionModel
    from audiocraft.models.lm import LMModel
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider

    lm, codec = models
    kinds = (isinstance(lm, LMModel), isinstance(codec, CompressionModel))
    assert kinds == (True, True)
    assert isinstance(lm.pattern_provider, DelayedPatternProvider)
    assert (codec.frame_rate, codec.sample_rate, codec.channels) == (50, 32_000, 2)
    assert (codec.num_codebooks, codec.cardinality) == (lm.n_q, lm.card) == (4, 2048)
    assert lm.dim // lm.transformer.layers[0].self_attn.num_heads == 64
    assert not lm.training
    assert lm.cfg.dataset.segment_duration >= 5


def test_no_prompt_and_one_of_ten_thousand_words_make_music_too(models: tuple[Any, Any]) -> None:
    _, audio = generate(models, [None, "techno drums and bass " * 2500], 2)
    assert (np.sqrt((audio**2).mean(1)) > 0.003).all()


def test_drums_only_and_a_solo_flute_are_told_apart(models: tuple[Any, Any]) -> None:
    codes, audio = generate(models, ["drums only, rock, 120 bpm", "solo flute, 100 bpm"], 4)
    drums, flute = codes
    assert (drums[1:] == 0).mean() > 0.9
    assert (flute[1:3] == 0).mean() > 0.9
    assert (flute[3] > 0).mean() > 0.5
    brightness = [np.abs(np.diff(clip)).mean() / np.abs(clip).mean() for clip in audio]
    assert brightness[0] > 1.5 * brightness[1]


def test_another_prompt_gives_other_tokens(models: tuple[Any, Any]) -> None:
    codes, _ = generate(models, ["solo flute", "drums only"], 2)
    assert not np.array_equal(codes[0], codes[1])


def test_the_loss_of_the_training_is_audiocrafts(models: tuple[Any, Any]) -> None:
    import torch
    from audiocraft.modules.conditioners import ConditioningAttributes

    losses = importlib.import_module("training.lm").losses
    lm, _ = models
    codes = torch.randint(0, 2048, (2, 4, 40))
    prompts = ["techno, 128 bpm", None]
    with torch.no_grad():
        ours = losses(lm, codes, [understand(p) for p in prompts])
        attributes = [ConditioningAttributes(text={"description": p}) for p in prompts]
        theirs = lm.compute_predictions(codes, attributes)
    for k in range(4):
        valid = theirs.mask[:, k]
        expected = torch.nn.functional.cross_entropy(theirs.logits[:, k][valid], codes[:, k][valid])
        assert float(ours[k]) == pytest.approx(float(expected), rel=1e-4)


# --- following a melody ----------------------------------------------------------------------------------------------

TUNE = (60, 67, 64, 69)


def tune(notes: Sequence[int] = TUNE, rate: int = 44_100, note_s: float = 0.5, cents: float = 0.0) -> Clip:
    """A stereo clip of notes with four harmonics and a little vibrato."""
    at = np.arange(round(note_s * rate)) / rate
    sung = []
    for note in notes:
        hz = 440 * 2 ** ((note + cents / 100 - 69) / 12)
        swing = 2 * np.pi * hz * at + 0.3 * np.sin(2 * np.pi * 5 * at)
        fade = np.minimum(1, np.minimum(at, at[::-1]) / 0.01)
        sung.append(fade * sum(0.2 / h * np.sin(h * swing) for h in (1, 2, 3, 4)))
    return Clip(np.tile(np.concatenate(sung), (2, 1)).astype(np.float32), rate)


def heard_right(notes: np.ndarray, wanted: Sequence[int]) -> float:
    """The share of frames whose note has the wanted pitch class."""
    truth = np.repeat(wanted, 25)[: len(notes)]
    return float(((notes[: len(truth)] % 12 == truth % 12) & (notes[: len(truth)] >= 0)).mean())


@pytest.mark.parametrize(("rate", "cents"), [(8_000, 0), (22_050, 40), (48_000, -45)])
def test_a_tune_is_heard_at_any_rate_and_between_the_keys(rate: int, cents: float) -> None:
    assert heard_right(hear(tune(rate=rate, cents=cents), 50).notes, TUNE) > 0.85


def test_a_tune_is_heard_over_drums_and_bass() -> None:
    clip, rng = tune(rate=32_000), np.random.default_rng(0)
    at = np.arange(clip.samples.shape[1]) / 32_000
    strokes = 0.5 * rng.standard_normal(len(at)) * np.exp(-(at % 0.25) * 40)
    bass = 0.4 * np.sin(2 * np.pi * 55 * at)
    melody = hear(Clip(clip.samples + (strokes + bass).astype(np.float32), 32_000), 50)
    assert heard_right(melody.notes, TUNE) > 0.75
    assert np.array_equal(
        melody.notes, hear(Clip(clip.samples + (strokes + bass).astype(np.float32), 32_000), 50).notes
    )


def test_each_code_says_which_pitches_it_sounds(models: tuple[Any, Any]) -> None:
    sounds = importlib.import_module("training.codec.layout").sounds()
    classes = models[1].classes.numpy()
    assert (classes[0] == 0).all()
    assert (classes[:, 0] == 0).all()
    for row, layer in ((1, "bass"), (2, "chords"), (3, "lead")):
        for sound in list(sounds[layer].values())[::7]:
            assert {pc for pc in range(12) if classes[row, sound.first] >> pc & 1} == {m % 12 for m in sound.midis}


NOTHING = np.zeros((4, 0), np.int64)


@pytest.fixture(scope="module")
def engine(models: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Engine:
    lm, codec = models
    follower = codec.follower()
    facts = ModelFacts(
        model="tiny", checkpoint_hash=None, precision="float32", frame_rate_hz=50.0, sample_rate_hz=32_000, channels=1,
        codebooks=4, cardinality=2048, max_window_s=10.0, melody=False, follow=follower.follow,
        guide=follower.guide, complete=follower.complete,
    )  # fmt: skip
    options = ["--backend", "torch", "--threads", "1", "--cache-dir", str(tmp_path_factory.mktemp("cache"))]
    return backends.choose(settings.parse(options, {}), lm, "cpu", facts)


def play(engine: Engine, melody: Clip | None, prompt: str = "techno with flute, 120 bpm") -> np.ndarray:
    spec = GenerationSpec(prompt=prompt, duration_s=3.0, seeds=(1,), melody=melody)
    return np.asarray(engine.generate(spec, Listener())[0])


@pytest.mark.parametrize(
    "prompt", ["techno with drums and synth bass, 125 bpm", "соло на фортепиано", "zorblax frobnicate", ""]
)
def test_five_seconds_are_heard_neither_silent_nor_clipped_and_the_same_again(
    models: tuple[Any, Any], engine: Engine, prompt: str
) -> None:
    import torch

    spec = GenerationSpec(prompt=prompt, duration_s=5.0, seeds=(0,))
    codes = engine.generate(spec, Listener())
    clip = models[1].decode(torch.from_numpy(codes))[0].mean(0).numpy()
    assert clip.shape == (160_000,)
    assert np.isfinite(clip).all()
    assert np.sqrt((clip**2).mean()) > 0.005, "silent"
    assert (np.abs(clip) > 0.999).mean() < 0.01, "clipped"
    assert len(np.unique(codes)) > 20, "stuck"
    short = replace(spec, duration_s=1.0)
    assert np.array_equal(engine.generate(short, Listener()), codes[..., :50])


def test_each_instrument_is_looked_for_in_the_layers_that_have_it() -> None:
    sounds = importlib.import_module("training.codec.layout").sounds()
    for part in INSTRUMENTS:
        layers = {
            row
            for row, name in enumerate(("bass", "chords", "lead"), 1)
            for s in sounds[name].values()
            if s.preset == part
        }
        assert set(layers_of(part)) == layers, part
    assert layers_of("drums") == layers_of("brush kit") == ()


def test_what_is_asked_for_alone_stays_alone(models: tuple[Any, Any], engine: Engine) -> None:
    kits = models[1].follower().guide("", NOTHING)._codes.kits
    for prompt, layers in (
        ("rock, only piano and bass", {1, 2, 3}),
        ("groovy disco, just bass guitar", {1}),
        ("flute only", {3}),
        ("funk with piano, no drums, no bass", {2, 3}),
        ("techno, drums only", {0}),
    ):
        codes = engine.generate(GenerationSpec(prompt=prompt, duration_s=2.0, seeds=(5,)), Listener())[0]
        playing = {row for row in (1, 2, 3) if codes[row].any()} | {0 for code in codes[0] if kits[code]}
        assert playing <= layers, prompt
        assert playing, prompt


def test_a_solo_with_others_leaves_them_their_layers(models: tuple[Any, Any]) -> None:
    guide = models[1].follower().guide("rock, guitar solo with drums and bass, A minor, 120 bpm", NOTHING)
    white_keys = models[1].classes[1].numpy() & ~sum(1 << step for step in MAJOR) == 0
    assert (guide.bias(100, 101)[0, 1, white_keys] == 0).all(), "the bass plays what it likes"


def score_of(seed: int, genre: str, **wanted: Any) -> tuple[Any, np.ndarray]:
    """A corpus piece, the first from a seed on that is as wanted, and its codes."""
    compose = importlib.import_module("training.corpus.score").compose
    tokens = importlib.import_module("training.codec.layout").tokens
    while True:
        score = compose(seed, 10, training=False, genre=genre)
        if all(getattr(score, name) == value for name, value in wanted.items()):
            return score, tokens(score).astype(np.int64)
        seed += 1


@pytest.mark.parametrize(
    ("genre", "wanted"),
    [("techno", {}), ("jazz", {}), ("lo-fi hip hop", {"quarter": 41}), ("ambient", {}), ("funk", {"quarter": 27})],
)
def test_the_corpus_keeps_every_rule_of_an_arrangement(
    models: tuple[Any, Any], genre: str, wanted: dict[str, Any]
) -> None:
    """What is taken from the sampling is never what the model was trained on."""
    captions = importlib.import_module("training.corpus.captions")
    for seed in range(0, 600, 100):
        score, codes = score_of(seed, genre, **wanted)
        if score.shape == "drums":
            continue
        said = f"{captions.caption(score, np.random.default_rng(0), full=True, language='en')}, {score.bpm:.2f} bpm"
        taken = models[1].follower().guide(said, NOTHING).bias(0, 200)
        hit = np.take_along_axis(taken, codes.T[:200, :, None], 2)[..., 0]
        # In its first bar a piece may come in late, begin on another chord than its home, or pass by its seventh.
        for frame, layer in np.argwhere(hit < 0):
            assert hit[frame, layer] in {-HOME_STRENGTH, -BEGIN_STRENGTH}, (said, frame, layer, hit[frame, layer])
            assert frame < 4 * score.quarter


def test_a_beat_goes_on_where_the_context_left_it(models: tuple[Any, Any]) -> None:
    follower = models[1].follower()
    for seed, genre in enumerate(("techno", "jazz", "ambient", "funk", "reggae", "lo-fi hip hop")):
        score, codes = score_of(seed, genre)
        for length in (200, 257):
            guide = follower.guide(genre, codes[:, :length])
            taken = np.take_along_axis(guide.bias(0, 150), codes.T[length : length + 150, :, None], 2)[..., 0]
            assert (taken[:, 0] == 0).all(), (genre, score.quarter, length)
            assert f"{score.bpm:.0f} bpm" in follower.complete(genre, codes[:, :length], None)
    # Noise keeps no beat, silence none, and what keeps none is left to the model.
    noise = np.random.default_rng(0).integers(0, 2048, (4, 300))
    for context in (noise, np.zeros((4, 300), np.int64), codes[:, :60]):
        assert (follower.guide("techno", context).bias(0, 50)[:, 0] == 0).all()
        assert "bpm" not in follower.complete("techno", context, None)


def test_another_tempo_sets_in_on_the_next_beat(models: tuple[Any, Any]) -> None:
    codes = score_of(1, "techno", quarter=24, shape="full")[1]
    taken = models[1].follower().guide("techno, 100 bpm", codes[:, :250]).bias(0, 100)
    ticks = models[1].onset[0].numpy()
    forced = [int(frame) for frame in range(100) if (taken[frame, 0, ~ticks] < 0).all()]
    assert forced == [14 + 15 * eighth for eighth in range(6)], "250 frames are ten beats of 24 and ten frames"


@pytest.mark.parametrize(("asked", "quarter"), [(120, 25), (200, 30), (40, 38), (300, 20), (30, 50), (177, 17)])
def test_a_tempo_out_of_reach_is_played_in_half_or_double_time(asked: int, quarter: int) -> None:
    beat = asked_beat(understand(f"techno, {asked} bpm"))
    assert beat == Beat(quarter)


@pytest.mark.parametrize("prompt", ["", "techno", "slow jazz", "быстрый рок", "sad", "fast ambient", "drums only"])
def test_a_prompt_without_a_tempo_is_given_one_that_suits_it(prompt: str) -> None:
    said = understand(with_tempo(prompt, None, beginning=True))
    assert said.tempo_bpm is not None
    low, high = SPEED_BPM[said.first("speed")] if said.first("speed") else GENRE_BPM.get(said.first("genre"), ANY_BPM)
    assert low - 0.5 <= said.tempo_bpm <= high + 0.5
    assert with_tempo(prompt, 100.2, beginning=False).startswith("100 bpm")
    assert with_tempo(prompt, None, beginning=False) == prompt
    assert with_tempo("techno, 99 bpm", 120, beginning=False) == "techno, 99 bpm"


@pytest.mark.parametrize("prompt", ["funk in D minor with bass guitar, organ and trumpet, 111 bpm", "босса-нова", ""])
def test_every_note_falls_on_the_beat_and_inside_the_key(models: tuple[Any, Any], engine: Engine, prompt: str) -> None:
    said = understand(models[1].follower().complete(prompt, NOTHING, None))
    beat, key = asked_beat(said), asked_key(said)
    assert beat is not None
    assert key is not None
    codes = engine.generate(GenerationSpec(prompt=prompt, duration_s=3.0, seeds=(2,)), Listener())[0]
    begins = models[1].onset.numpy()[np.arange(4)[:, None], codes]
    phases = set(np.flatnonzero(begins.any(0)) % beat.quarter)
    assert {0, beat.grid[2]} <= phases <= {*beat.grid}
    sounding = ((models[1].classes.numpy()[..., None] >> np.arange(12)) & 1)[np.arange(4)[:, None], codes]
    assert sounding.any()
    assert not sounding[..., ~key.scale].any()


@pytest.mark.slow
def test_solos_begin(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model alone leaves one solo in nine silent; begun, they all sound."""
    facts: ModelFacts = engine.facts  # type: ignore[attr-defined]

    def silent(guide: Any) -> int:
        monkeypatch.setattr(engine, "facts", replace(facts, guide=guide))
        prompts = ("solo acid bass", "solo marimba", "solo choir", "solo brass", "solo accordion", "solo piano")
        specs = [GenerationSpec(prompt=prompt, duration_s=1.6, seeds=(100 + len(prompt),)) for prompt in prompts]
        return sum(bool((engine.generate(spec, Listener())[0][1:] == 0).all()) for spec in specs)

    assert silent(facts.guide) == 0
    assert silent(None) > 0


def lead_notes(models: tuple[Any, Any], codes: np.ndarray) -> np.ndarray:
    """The pitch class of the lead in each frame, -1 where it rests."""
    bits = models[1].classes[3].numpy()[codes[3]]
    return np.where(bits > 0, np.log2(np.maximum(bits, 1)), -1).astype(int)


def test_the_lead_plays_the_melody_and_the_drums_go_on(models: tuple[Any, Any], engine: Engine) -> None:
    follower, plain = play(engine, tune()), play(engine, None)
    # Two seconds of melody go round once more in three.
    wanted = (*TUNE, *TUNE[:2])
    assert heard_right(lead_notes(models, follower), wanted) > 0.8
    assert heard_right(lead_notes(models, plain), wanted) < 0.4
    assert heard_right(lead_notes(models, play(engine, tune([n + 6 for n in TUNE]))), wanted) < 0.4
    assert (follower[0] > 0).mean() > 0.5
    lead, following = follower[3], models[1].following[3].numpy()
    begins = models[1].onset[3].numpy()[lead[1:]] | (lead[1:] == 0)
    assert (begins | (lead[1:] == following[lead[:-1]])).all(), "a note goes on that has not begun"


@pytest.mark.parametrize("kind", ["silence", "noise", "a click"])
def test_a_clip_without_a_melody_is_refused(engine: Engine, kind: str) -> None:
    samples = np.zeros((1, 32_000), np.float32)
    if kind == "noise":
        samples = np.random.default_rng(0).normal(0, 0.2, (1, 64_000)).astype(np.float32)
    if kind == "a click":
        samples = np.ones((1, 5), np.float32)
    with pytest.raises(InvalidParameter, match="no melody is heard") as caught:
        play(engine, Clip(samples, 32_000))
    assert caught.value.field == "audio_prompt"


def test_the_model_is_offered_with_an_audio_prompt() -> None:
    assert Catalog(settings.parse([], {})).info("tiny").melody


# --- the codec -------------------------------------------------------------------------------------------------------


def test_decoding_in_pieces_gives_the_same_sound(models: tuple[Any, Any]) -> None:
    import torch

    _, codec = models
    codes = torch.from_numpy(generate(models, ["house"], 3)[0])
    whole = codec.decode(codes)
    piece = codec.decode(codes[..., 50:])
    # a sound already under way when the piece begins has its level from its beginning; two seconds later all agree
    assert torch.allclose(whole[..., 140 * codec.hop :], piece[..., 90 * codec.hop :], atol=0.05)


def test_what_it_decodes_it_encodes_again_to_nearly_the_same_sound(models: tuple[Any, Any]) -> None:
    import torch

    _, codec = models
    codes = torch.from_numpy(generate(models, ["solo piano"], 3)[0])
    sound = codec.decode(codes)
    again = codec.decode(codec.encode(sound)[0])

    def spectrum(x: torch.Tensor) -> torch.Tensor:
        return torch.log(
            torch.stft(x[0, 0], 2048, 640, window=torch.hann_window(2048), return_complex=True).abs() + 1e-2
        )

    distance = (spectrum(again) - spectrum(sound)).abs().mean()
    silence = (spectrum(torch.zeros_like(sound)) - spectrum(sound)).abs().mean()
    assert distance < 0.5 * silence


def test_any_sound_can_be_encoded(models: tuple[Any, Any]) -> None:
    import torch

    _, codec = models
    for sound in (torch.zeros(1, 1, 1000), torch.randn(2, 2, 16_001) * 0.3, torch.ones(1, 1, 640)):
        codes, scale = codec.encode(sound)
        assert codes.shape == (sound.shape[0], 4, -(-sound.shape[-1] // 640))
        assert scale is None
        assert 0 <= int(codes.min()) <= int(codes.max()) < codec.cardinality
        assert torch.isfinite(codec.decode(codes)).all()


def test_silence_is_encoded_as_silence(models: tuple[Any, Any]) -> None:
    import torch

    _, codec = models
    assert float(codec.decode(codec.encode(torch.zeros(1, 1, 6400))[0]).abs().max()) < 1e-3


def test_layers_can_be_heard_alone(models: tuple[Any, Any]) -> None:
    _, codec = models
    codec.set_num_codebooks(1)
    assert codec.num_codebooks == 1
    codec.set_num_codebooks(4)
    with pytest.raises(ValueError, match="5 codebooks"):
        codec.set_num_codebooks(5)


def test_the_ear_hears_a_notes_pitch_class_in_its_register() -> None:
    tones = importlib.import_module("training.keys").tones
    time_s = np.arange(2 * 32_000) / 32_000
    for midi, register in ((33, 0), (52, 1), (64, 2), (76, 3)):
        heard = tones(np.sin(2 * np.pi * 439 * 2 ** ((midi - 69) / 12) * time_s).astype(np.float32))
        assert heard.shape == (2, 4, 12)
        assert heard[0, register, midi % 12] > 0.9


def test_an_evaluation_asks_for_each_piece_in_both_languages_with_the_same_meaning() -> None:
    asked = importlib.import_module("training.evaluate").prompts(16)
    for english, russian in zip(asked[::2], asked[1::2], strict=True):
        assert (english.number, english.russian, russian.russian) == (russian.number, False, True)
        first, second = understand(english.text), understand(russian.text)
        assert set(first.attributes) == set(second.attributes), (english.text, russian.text)
        assert not unknown_words(russian.text)


def test_the_player_goes_on_from_the_frames_it_is_given(tmp_path: Path) -> None:
    player = importlib.import_module("training.player").Player(FOLDER, tmp_path)
    try:
        [first] = player.play(["techno, 120 bpm"], 1, 3)
        [again], [more] = player.play(["techno, 120 bpm"], 1, 3), player.play(["techno, 120 bpm"], 1, 3, [first])
        [clip] = player.sound([np.concatenate([first, more], 1)])
    finally:
        player.close()
    assert np.array_equal(first, again)
    assert first.shape == more.shape == (4, 50)
    assert clip.shape == (64_000,)
    assert np.abs(clip).max() > 0.01


def test_stereo_is_wide_balanced_and_lost_without_a_trace_when_it_is_mixed_down(
    models: tuple[Any, Any], engine: Engine
) -> None:
    import torch

    from modules.musicgen.tiny.codec import LayeredCodec

    _, codec = models
    mono = LayeredCodec()
    mono.load_state_dict(codec.state_dict())
    prompts = ("a pop band: drums, bass, strings and a flute", "house", "jazz with piano and trumpet")
    specs = [GenerationSpec(prompt=prompt, duration_s=2.0, seeds=(1,)) for prompt in prompts]
    codes = np.concatenate([engine.generate(spec, Listener()) for spec in specs], axis=2)
    sound = codec.decode(torch.from_numpy(codes))
    left, right = sound[0].numpy()
    assert mono.channels == 1
    assert torch.allclose(sound.mean(1, keepdim=True), mono.decode(torch.from_numpy(codes)), atol=1e-5)
    assert np.corrcoef(left, right)[0, 1] < 0.99
    assert abs(20 * np.log10(left.std() / right.std())) < 1.5
    drums = torch.from_numpy(codes).clone()
    drums[:, 1:] = 0
    assert torch.equal(*codec.decode(drums).unbind(1))


# --- the key ---------------------------------------------------------------------------------------------------------


SILENT = np.zeros(12, np.float32)


@pytest.mark.parametrize(
    "prompt", ["jazz in C minor", "ля минор, джаз", "drums only", "только барабаны", "808 drums only"]
)
def test_a_prompt_with_a_key_or_without_notes_stays_as_it_is(prompt: str) -> None:
    assert with_key(prompt, SILENT) == prompt


@pytest.mark.parametrize("prompt", ["", "  ", "techno", "sad waltz", "no drums, no bass", "qwerty " * 2000])
def test_a_prompt_without_a_key_is_given_one_and_keeps_its_words(prompt: str) -> None:
    said = understand(with_key(prompt, SILENT))
    assert {a.partition(":")[0] for a in said.attributes} >= {"root", "mode", "scale"}
    assert set(understand(prompt).attributes) <= set(said.attributes)
    assert said.unknown == understand(prompt).unknown


def test_the_key_goes_by_what_the_words_say() -> None:
    assert with_key("грустное техно", SILENT).partition(",")[0] == with_key("sad techno", SILENT).partition(",")[0]
    moods = {word: with_key(f"{word} classical", SILENT) for word in ("happy", "sad")}
    assert "major" in moods["happy"]
    assert "minor" in moods["sad"]
    assert "minor, minor waltz" in with_key("minor waltz", SILENT)
    keys = {with_key(f"techno, {bpm} bpm", SILENT).partition(",")[0] for bpm in range(100, 160)}
    assert len(keys) > 12, "all roots come up"


@pytest.mark.parametrize(("root", "mode"), [(9, "minor"), (2, "dorian"), (7, "mixolydian"), (1, "major")])
def test_the_key_is_that_of_the_music_before(root: int, mode: str) -> None:
    scale = (root - MODES[mode]) % 12
    notes = np.zeros(12, np.float32)
    notes[[(scale + step) % 12 for step in (0, 2, 4, 5, 7, 9, 11)]] = 10
    notes[root] = 25
    assert with_key(mode, notes) == f"{NOTE_NAMES[root]} {mode}, {mode}"
