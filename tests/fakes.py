"""Stand-ins for the heavy rooms with their real interfaces: music at once, and no torch.

The tokens decide the sound: a take of other seeds sounds different, the same seeds sound the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modules import audio
from modules.audio import Clip, Samples
from modules.contract import (
    Cancelled,
    Decoder,
    DiffusionInfo,
    EngineInfo,
    InvalidParameter,
    ModelInfo,
    OutOfMemory,
    SeparatorInfo,
    UnknownModel,
)  # fmt: skip
from modules.musicgen.engine import Codes, GenerationSpec, Sink

FRAME_RATE_HZ = 50.0
SAMPLE_RATE_HZ = 16_000
HOP = round(SAMPLE_RATE_HZ / FRAME_RATE_HZ)
CODEBOOKS = 4
CARD = 1024
WINDOW_S = 10.0


class FakeStream:
    """Each frame is a short tone whose pitch is its first token; one frame of delay, as a real codec has."""

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._waiting = np.zeros((CODEBOOKS, 0), dtype=np.int64)

    def push(self, codes: Codes) -> Samples:
        self._waiting = np.concatenate([self._waiting, codes], axis=1)
        ready, self._waiting = self._waiting[:, :-1], self._waiting[:, -1:]
        return _sound(ready, self._channels)

    def finish(self) -> Samples:
        return _sound(self._waiting, self._channels)


class FakeCodec:
    def __init__(self, channels: int = 1) -> None:
        self._channels = channels

    def encode(self, clip: Clip) -> Codes:
        if (clip.sample_rate_hz, clip.channels) != (SAMPLE_RATE_HZ, self._channels):
            raise ValueError("the clip is not in the model's rate and channels")
        frames = clip.frames // HOP
        level = np.abs(clip.samples[:, : frames * HOP].reshape(self._channels, frames, HOP)).mean(axis=(0, 2))
        return np.repeat((level * (CARD - 1)).astype(np.int64)[None], CODEBOOKS, axis=0)

    def decode(self, codes: Codes) -> Clip:
        return Clip(_sound(codes, self._channels), SAMPLE_RATE_HZ)

    def stream(self) -> FakeStream:
        return FakeStream(self._channels)


def _sound(codes: Codes, channels: int) -> Samples:
    at = np.arange(HOP, dtype=np.float32) / SAMPLE_RATE_HZ
    pitch_hz = 100.0 + codes[0].astype(np.float32)[:, None]
    tone = 0.3 * np.sin(2 * np.pi * pitch_hz * at[None])
    return np.repeat(tone.reshape(1, -1), channels, axis=0).astype(np.float32)


@dataclass
class FakeEngine:
    """Random tokens, one generator a take.

    step_s: what a step takes. hold: when set, waits for it at each step (a test decides when a step is over).
    fail: raised at step `fail_at`.
    """

    melody: bool = False
    step_s: float = 0.0
    hold: Callable[[int], None] | None = None
    fail: BaseException | None = None
    fail_at: int = 10
    frames_a_push: int = 7
    specs: list[GenerationSpec] = field(default_factory=list)
    info: EngineInfo = field(
        default_factory=lambda: EngineInfo(backend="reference", precision="float32", device="cpu", why="a test")
    )

    def generate(self, spec: GenerationSpec, sink: Sink) -> Codes:
        self.specs.append(spec)
        if spec.melody is not None and not self.melody:
            raise InvalidParameter("audio_prompt: this model takes none", field="audio_prompt")
        total = int(spec.duration_s * FRAME_RATE_HZ)
        takes = [np.random.default_rng([seed, len(spec.prompt)]) for seed in spec.seeds]
        codes = np.stack([draw.integers(0, CARD, (CODEBOOKS, total)) for draw in takes])
        sent = 0
        for step in range(1, total + 1):
            if self.hold is not None:
                self.hold(step)
            if self.step_s:
                time.sleep(self.step_s)
            if self.fail is not None and step == self.fail_at:
                raise self.fail
            if step - sent == self.frames_a_push or step == total:
                sink.frames(codes[:, :, sent:step])
                sent = step
            sink.progress(step, total)
        return codes

    def close(self) -> None:
        return


@dataclass
class FakeDiffusion:
    """The codec's sound at half its level, and a trace of noise that the seed alone decides. `hold` as the engine's."""

    codec: FakeCodec
    steps: int = 8
    hold: Callable[[int], None] | None = None
    file_hash: str = "d1f5"

    def render(self, codes: Codes, seed: int, progress: Callable[[int, int], None]) -> Clip:
        for step in range(1, self.steps + 1):
            if self.hold is not None:
                self.hold(step)
            progress(step, self.steps)
        sound = self.codec.decode(codes)
        noise = np.random.default_rng(seed).normal(0, 0.01, sound.samples.shape).astype(np.float32)
        return Clip(sound.samples * np.float32(0.5) + noise, sound.sample_rate_hz)


@dataclass
class FakeLoaded:
    info: ModelInfo
    engine: FakeEngine
    codec: FakeCodec
    checkpoint_hash: str | None = "f00d"
    sample_rate_hz: int = SAMPLE_RATE_HZ
    frame_rate_hz: float = FRAME_RATE_HZ
    codebooks: int = CODEBOOKS
    max_window_s: float = WINDOW_S
    diffusion: FakeDiffusion | None = None

    @property
    def channels(self) -> int:
        return self.info.channels

    @property
    def engine_info(self) -> EngineInfo:
        return self.engine.info


def model_info(model_id: str, **changes: Any) -> ModelInfo:
    facts: dict[str, Any] = {
        "id": model_id, "title": model_id, "repo": None, "params_m": 1.0, "channels": 1, "melody": False,
        "max_window_s": WINDOW_S, "sample_rate_hz": SAMPLE_RATE_HZ, "licence": "none", "state": "ready",
        "download_bytes": 0,
    }  # fmt: skip
    return ModelInfo(**(facts | changes))


class FakeCatalog:
    def __init__(self, *models: ModelInfo) -> None:
        self._models = {model.id: model for model in models}

    def models(self) -> list[ModelInfo]:
        return list(self._models.values())

    def info(self, model_id: str) -> ModelInfo:
        if model_id not in self._models:
            raise UnknownModel(f"model: there is no model {model_id!r}", field="model")
        return self._models[model_id]

    def default_id(self) -> str:
        return next(iter(self._models))


class FakeManager:
    """One model at a time. `load_fails` is raised by the next loads."""

    def __init__(self, *models: ModelInfo, engine: FakeEngine | None = None) -> None:
        self.catalog = FakeCatalog(
            *(
                models
                or (
                    model_info("fake", diffusion=DiffusionInfo(state="ready", licence="none")),
                    model_info("fake-melody", melody=True),
                    model_info("wide", channels=2),
                )
            )
        )
        self.engine = engine or FakeEngine()
        self.loaded: str | None = None
        self.load_fails: Exception | None = None
        self.too_big: dict[str, list[dict[str, str]]] = {}
        """model -> what would fit instead"""
        self.calls: list[str] = []
        self.hold_render: Callable[[int], None] | None = None

    def warm(self) -> None:
        self.calls.append("warm")

    def status(self) -> dict[str, Any]:
        return {
            "device": "cpu", "device_name": "a test", "stack": "ready", "model": self.loaded,
            "model_state": "loaded" if self.loaded else "none", "engine": self.engine.info if self.loaded else None,
        }  # fmt: skip

    def ensure(
        self, model_id: str, progress: Callable[[Any, float, float, float | None], None], decoder: Decoder = "codec"
    ) -> FakeLoaded:
        info = self.catalog.info(model_id)
        progress("loading", 0, 1, None)
        if self.load_fails is not None:
            raise self.load_fails
        if model_id in self.too_big:
            raise OutOfMemory(f"{model_id} needs more memory", details={"fits": self.too_big[model_id]})
        self.loaded = model_id
        self.engine.melody = info.melody
        progress("loading", 1, 1, None)
        codec = FakeCodec(info.channels)
        other = FakeDiffusion(codec, hold=self.hold_render) if decoder == "diffusion" else None
        return FakeLoaded(info, self.engine, codec, diffusion=other)

    def preflight(self, model_id: str, decoder: Decoder = "codec") -> dict[str, Any]:
        self.catalog.info(model_id)
        fits = self.too_big.get(model_id)
        needs = 1_000_000 if fits is None else 9_000_000_000
        return {
            "needs_bytes": needs + (500_000 if decoder == "diffusion" else 0), "free_bytes": 2_000_000,
            "fits": fits is None, "fits_with": fits or [],
        }  # fmt: skip

    def step_bytes(self, model_id: str, seconds: float) -> int:
        self.catalog.info(model_id)
        return 50_000_000 + int(seconds * 1_000_000)

    def unload(self) -> None:
        self.calls.append("unload")
        self.loaded = None

    def after_job(self, *, keep: bool = False) -> None:
        self.calls.append("after_job keep" if keep else "after_job")


@dataclass(frozen=True)
class FakeSplit:
    paths: dict[str, Path]
    info: dict[str, Any]
    seconds: float = 0.0


@dataclass(frozen=True)
class FakeSeparatorInfo:
    id: str = "fake"
    stems: tuple[str, ...] = ("vocals", "drums", "bass", "other")


class FakeSeparator:
    """Each stem is the track at a quarter of its level."""

    def __init__(self) -> None:
        self.segments = 4
        self.held = threading.Event()
        self.held.set()
        self.splits: list[tuple[str, ...]] = []
        self.fails: Exception | None = None
        self.sketch = False
        self.others: list[SeparatorInfo] = []

    def separators(self) -> list[SeparatorInfo]:
        return [
            *self.others,
            SeparatorInfo(
                id="fake", title="Fake", stems=list(FakeSeparatorInfo.stems), licence="CC0", state="ready",
                download_bytes=0, sketch=self.sketch,
            ),
        ]  # fmt: skip

    def resolve(self, separator: str) -> FakeSeparatorInfo:
        if separator not in ("auto", "fake"):
            raise InvalidParameter(f"separator: there is no separator {separator!r}", field="separator")
        return FakeSeparatorInfo()

    def wanted(self, stems: str, info: FakeSeparatorInfo, have: Mapping[str, str]) -> tuple[str, ...]:
        asked = info.stems if stems == "all" else (stems,)
        return tuple(stem for stem in asked if stem not in have)

    def split(
        self, source: Path, out_dir: Path, stems: tuple[str, ...], *, separator: str = "auto",
        progress: Callable[[Any, float, float, float | None], None], check: Callable[[], None],
    ) -> FakeSplit:  # fmt: skip
        self.splits.append(stems)
        clip = audio.decode(source)
        paths: dict[str, Path] = {}
        try:
            for segment in range(self.segments):
                self.held.wait()
                check()
                progress("splitting", segment + 1, self.segments, None)
            if self.fails is not None:
                raise self.fails
            for stem in stems:
                paths[stem] = out_dir / f"{stem}.wav"
                audio.encode(
                    Clip(clip.samples * np.float32(0.25), clip.sample_rate_hz), paths[stem], "wav", subtype="FLOAT"
                )
        except Cancelled:
            for path in paths.values():
                path.unlink(missing_ok=True)
            raise
        return FakeSplit(paths, {"separator": separator})

    def unload(self) -> None:
        return
