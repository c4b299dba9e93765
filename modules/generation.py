"""One generation from a request to tracks on the disk.

The engine yields tokens on the worker's thread; a second thread turns the first take's tokens into sound as they
come, so that it can be heard and kept while the rest is still being made.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import platform
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from typing import Any

import numpy as np

from modules import audio, looping
from modules.audio import Clip, Samples
from modules.contract import (
    AUTO_SEED,
    MAX_SEED,
    SAMPLE_RATES_HZ,
    Cancelled,
    GenerateRequest,
    Internal,
    InvalidParameter,
    Loop,
    Loudness,
    Track,
)
from modules.estimate import Measurements, render_key
from modules.jobs import JobContext
from modules.library import Library
from modules.live import LiveAudio
from modules.material import JOIN_FADE_S, LEAD_S, Diffusion, LoadedModel, Origin, Sound, context, melody, origin
from modules.musicgen.engine import Codes, GenerationSpec
from modules.settings import VERSION

log = logging.getLogger(__name__)

MIN_KEPT_S = 1.0
"""Less new music than this is not worth a track when a job is cancelled."""
FIRST_CHUNK_S, CHUNK_S = 0.5, 1.0
"""Sound is decoded in these pieces whatever the engine's own rhythm, so that the same tokens give the same samples."""
STRIDE_SHARE = 0.6
"""Of the model's window, what each window past the first adds: audiocraft's 18 s of 30."""
MP3_RATES_HZ = frozenset({8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000})
_POST_PEAK = "peak limited to -1 dBFS"


@dataclass(frozen=True)
class Stage:
    """What a generation works with."""

    library: Library
    measurements: Measurements
    open_live: Callable[[int, int], LiveAudio]
    """Called with the sample rate and the channels once there is something to hear."""


@dataclass
class Plan:
    """A request brought together with the loaded model: everything that is decided before the first token."""

    request: GenerateRequest
    loaded: LoadedModel
    seeds: tuple[int, ...]
    stride_s: float
    melody: Clip | None = None
    melody_sound: Sound | None = None
    origin: Origin | None = None
    prompt_codes: Codes | None = None
    timings_s: dict[str, float] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Of the finished track: a stereo clip stays stereo beside a mono model's music."""
        kept = self.origin.clip.channels if self.origin else 1
        return max(self.loaded.channels, min(kept, 2))

    @property
    def sample_rate_hz(self) -> int:
        """Of the finished track: a continued clip keeps its own rate, so that its samples stay as they are."""
        asked = SAMPLE_RATES_HZ[self.request.sample_rate]
        if asked is not None:
            return asked
        if self.origin is None or self.origin.mode == "append":
            return self.loaded.sample_rate_hz
        rate = self.origin.clip.sample_rate_hz
        return rate if self.request.format != "mp3" or rate in MP3_RATES_HZ else 48_000

    @property
    def lead(self) -> Codes | None:
        """The known frames right before the new ones that the codec starts from, int64 [K, n]."""
        if self.prompt_codes is None:
            return None
        return self.prompt_codes[:, -round(LEAD_S * self.loaded.frame_rate_hz) :]

    @property
    def diffusion(self) -> Diffusion:
        """Raises Internal when the model was loaded without it."""
        if self.loaded.diffusion is None:
            raise Internal("the model was loaded without the decoder that was asked for")
        return self.loaded.diffusion

    def spec(self) -> GenerationSpec:
        request = self.request
        return GenerationSpec(
            prompt=request.prompt, duration_s=request.made_s, seeds=self.seeds, top_k=request.top_k,
            top_p=request.top_p, temperature=request.temperature, cfg_coef=request.cfg_coef, melody=self.melody,
            prompt_codes=self.prompt_codes, extend_stride_s=self.stride_s,
        )  # fmt: skip

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add what the block takes to the track's timings."""
        started = time.monotonic()
        try:
            yield
        finally:
            spent = self.timings_s.get(stage, 0.0) + time.monotonic() - started
            self.timings_s[stage] = round(spent, 3)


def draw_seeds(seed: int, takes: int) -> tuple[int, ...]:
    """One seed a take: the seed asked for (or a drawn one) and those after it, staying in range."""
    first = secrets.randbelow(MAX_SEED + 1) if seed == AUTO_SEED else seed
    return tuple((first + take) % (MAX_SEED + 1) for take in range(takes))


def plan(request: GenerateRequest, loaded: LoadedModel, melody_sound: Sound | None, start: Sound | None) -> Plan:
    """Decide everything before the first token; reads the clips.

    Raises:
        InvalidParameter, ClipTooLong, ClipTooShort, UnreadableAudio: a clip does not fit the request.
    """
    stride_s = STRIDE_SHARE * loaded.max_window_s
    made = Plan(request, loaded, draw_seeds(request.seed, request.takes), stride_s, melody_sound=melody_sound)
    if melody_sound is not None:
        require_melody(loaded.info.id, takes_melody=loaded.info.melody)
        made.melody = melody(melody_sound)
    if start is not None and request.continuation is not None:
        made.origin = origin(start, request.continuation.mode, request.continuation.from_s, loaded)
        if made.origin.mode == "continue":
            made.prompt_codes = context(made.origin, loaded, request.duration, stride_s)
    return made


def require_melody(model: str, *, takes_melody: bool) -> None:
    """Raises InvalidParameter when the model cannot follow an audio prompt."""
    if not takes_melody:
        raise InvalidParameter(
            f"audio_prompt: the model {model!r} follows no melody; choose a melody model or drop the audio prompt",
            field="audio_prompt",
        )


# ------------------------------------------------------------------------------------------ tokens to sound
def in_chunks(frames: int, frame_rate_hz: float) -> Iterator[slice]:
    """Cut `frames` new frames as the live stream does."""
    first, size = max(1, round(FIRST_CHUNK_S * frame_rate_hz)), max(1, round(CHUNK_S * frame_rate_hz))
    start, end = 0, first
    while start < frames:
        yield slice(start, min(end, frames))
        start, end = end, end + size


class ChunkDecoder:
    """One take's frames into sound. Whatever the pieces they come in, they are decoded in the same chunks."""

    def __init__(self, loaded: LoadedModel, lead: Codes | None) -> None:
        self._stream = loaded.codec.stream()
        self._sizes = _chunk_sizes(loaded.frame_rate_hz)
        self._size = next(self._sizes)
        self._waiting: list[Codes] = []
        # The lead's own sound is known already; it only brings the codec into the right state.
        lead_frames = 0 if lead is None else lead.shape[1]
        self._skip = round(lead_frames * loaded.sample_rate_hz / loaded.frame_rate_hz)
        if lead is not None and lead_frames:
            self._drop(self._stream.push(lead))

    def push(self, codes: Codes) -> Samples | None:
        """int64 [K, n] in; float32 [C, m] out when a chunk is full, else None."""
        self._waiting.append(codes)
        ready = []
        while sum(part.shape[1] for part in self._waiting) >= self._size:
            together = np.concatenate(self._waiting, axis=1)
            ready.append(self._drop(self._stream.push(together[:, : self._size])))
            self._waiting = [together[:, self._size :]]
            self._size = next(self._sizes)
        return np.concatenate(ready, axis=1) if ready else None

    def finish(self) -> Samples:
        """The rest, float32 [C, m]."""
        parts = []
        if self._waiting and sum(part.shape[1] for part in self._waiting):
            parts.append(self._drop(self._stream.push(np.concatenate(self._waiting, axis=1))))
        parts.append(self._drop(self._stream.finish()))
        return np.concatenate(parts, axis=1)

    def _drop(self, samples: Samples) -> Samples:
        dropped = min(self._skip, samples.shape[1])
        self._skip -= dropped
        return samples[:, dropped:]


def _chunk_sizes(frame_rate_hz: float) -> Iterator[int]:
    yield max(1, round(FIRST_CHUNK_S * frame_rate_hz))
    while True:
        yield max(1, round(CHUNK_S * frame_rate_hz))


class Listener:
    """The thread that decodes the first take while the engine goes on."""

    def __init__(self, loaded: LoadedModel, lead: Codes | None, on_sound: Callable[[Samples], None]) -> None:
        self._loaded = loaded
        self._lead = lead
        self._on_sound = on_sound
        self._codes: queue.SimpleQueue[Codes | None] = queue.SimpleQueue()
        self._parts: list[Samples] = []
        self._error: BaseException | None = None
        self._dropped = False
        self._thread = threading.Thread(target=self._decode, name="listener", daemon=True)
        self._thread.start()

    def push(self, codes: Codes) -> None:
        """Hand over int64 [K, n]; returns at once. Raises what the decoding raised."""
        if self._error is not None:
            raise self._error
        self._codes.put(codes)

    def finish(self) -> Samples:
        """Wait for the rest; all of the take, float32 [C, T]. Raises what the decoding raised."""
        self._codes.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return np.concatenate(self._parts, axis=1)

    def drop(self) -> None:
        """Nobody wants the rest."""
        self._dropped = True
        self._codes.put(None)
        self._thread.join()

    def _decode(self) -> None:
        try:
            decoder = ChunkDecoder(self._loaded, self._lead)
            while (codes := self._codes.get()) is not None and not self._dropped:
                self._take(decoder.push(codes))
            if not self._dropped:
                self._take(decoder.finish())
        except BaseException as error:  # noqa: BLE001 - carried to the job's own thread, which raises it
            self._error = error

    def _take(self, samples: Samples | None) -> None:
        if samples is not None and samples.shape[1]:
            self._parts.append(samples)
            self._on_sound(samples)


class Recorder:
    """The engine's sink: progress and cancel to the job, tokens kept, the first take's handed to the listener."""

    def __init__(self, job: JobContext, listener: Listener, then_s: float) -> None:
        self._job = job
        self._listener = listener
        self._then_s = then_s
        self._parts: list[Codes] = []

    def progress(self, done_steps: int, total_steps: int) -> None:
        self._job.check()
        self._job.progress("generating", done_steps, total_steps, then_s=self._then_s)

    def frames(self, codes: Codes) -> None:
        self._job.check()
        self._parts.append(np.array(codes, dtype=np.int64))
        self._listener.push(self._parts[-1][0])

    def take(self, index: int) -> Codes | None:
        """int64 [K, T] of one take so far, or None before the first frame."""
        return np.concatenate([part[index] for part in self._parts], axis=1) if self._parts else None


# ---------------------------------------------------------------------------------------- the use case itself
class Generation:
    """Runs one plan and saves its takes."""

    def __init__(self, stage: Stage, made: Plan, job: JobContext) -> None:
        self._stage = stage
        self._plan = made
        self._job = job
        self._live: LiveAudio | None = None
        self._saved: list[str] = []

    def run(self) -> list[str]:
        """Generate, decode and save every take.

        Returns:
            The tracks' names.
        Raises:
            Cancelled: unwound; what was heard is a track if the person wanted that and there is enough of it.
        """
        with ExitStack() as stack:
            stack.callback(self._end_live)
            first, codes = self._generate()
            for take in range(self._plan.request.takes):
                if self._plan.request.decoder == "diffusion":
                    sound = self._render(codes[take], take, first)
                else:
                    sound = first if take == 0 else self._decode(codes[take], take)
                self._save(take, sound, codes[take])
        return self._saved

    def _generate(self) -> tuple[Samples, Codes]:
        """The first take's sound, float32 [C, T], and every take's tokens, int64 [takes, K, T]."""
        made = self._plan
        listener = Listener(made.loaded, made.lead, self._hear)
        recorder = Recorder(self._job, listener, self._after_generating_s())
        self._job.progress("generating")
        try:
            with made.timed("generate"):
                codes = made.loaded.engine.generate(made.spec(), recorder)
            self._measure_steps(codes)
            self._job.progress("decoding")
            with made.timed("decode"):
                return listener.finish(), codes
        except Cancelled:
            if self._job.keep:
                self._keep_early(listener, recorder)
            raise
        finally:
            listener.drop()

    def _hear(self, samples: Samples) -> None:
        """New sound of the first take, on the listener's thread."""
        made = self._plan
        if self._live is None:
            self._live = self._stage.open_live(made.loaded.sample_rate_hz, made.channels)
            if made.origin is not None:
                before = audio.resample(made.origin.kept, made.loaded.sample_rate_hz)
                self._live.write(audio.to_channels(before, made.channels).samples)
        sound = audio.to_channels(Clip(samples, made.loaded.sample_rate_hz), made.channels)
        self._live.write(sound.samples)
        self._job.live(self._live.seconds)

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.end()

    def _decode(self, codes: Codes, take: int) -> Samples:
        """A take that was not heard yet, in the same chunks as one that was; float32 [C, T]."""
        made, began = self._plan, time.monotonic()
        decoder, parts = ChunkDecoder(made.loaded, made.lead), []
        with made.timed("decode"):
            for chunk in in_chunks(codes.shape[1], made.loaded.frame_rate_hz):
                self._job.check()
                self._job.progress("decoding", take - 1 + chunk.stop / codes.shape[1], made.request.takes - 1)
                sound = decoder.push(codes[:, chunk])
                parts += [] if sound is None else [sound]
            parts.append(decoder.finish())
        spent = max(time.monotonic() - began, 1e-3)
        self._stage.measurements.add(made.request.made_s / spent, "decode_x", made.loaded.info.id)
        return np.concatenate(parts, axis=1)

    def _render(self, codes: Codes, take: int, heard: Samples) -> Samples:
        """A take's sound by Multi-Band Diffusion, float32 [C, T]. `heard` is the first take's, by the codec."""
        made, takes, began = self._plan, self._plan.request.takes, time.monotonic()
        # Whoever listens has heard the codec's sound to its end.
        self._end_live()
        known = codes if made.lead is None else np.concatenate([made.lead, codes], axis=1)

        def told(done: int, total: int) -> None:
            self._job.check()
            self._job.progress("rendering", take * total + done, takes * total)

        try:
            with made.timed("render"):
                clip = made.diffusion.render(known, made.seeds[take], told)
        except Cancelled:
            if self._job.keep and take == 0:
                self._save(0, heard, codes, kept_early=True)
            raise
        spent = max(time.monotonic() - began, 1e-3)
        self._stage.measurements.add(clip.seconds / spent, *render_key(made.loaded.engine_info.device))
        hop = round(made.loaded.sample_rate_hz / made.loaded.frame_rate_hz)
        return clip.samples[:, (known.shape[1] - codes.shape[1]) * hop :]

    def _keep_early(self, listener: Listener, recorder: Recorder) -> None:
        """Save what was heard of the first take, if it is worth it."""
        codes = recorder.take(0)
        if codes is None or codes.shape[1] < MIN_KEPT_S * self._plan.loaded.frame_rate_hz:
            return
        self._save(0, listener.finish(), codes, kept_early=True)

    # --------------------------------------------------------------------------------------------- saving
    def _save(self, take: int, sound: Samples, codes: Codes, *, kept_early: bool = False) -> None:
        made = self._plan
        if not kept_early:
            self._job.check()
        self._job.progress("saving", take, made.request.takes)
        with made.timed("save"):
            new = Clip(sound, made.loaded.sample_rate_hz)
            # What was kept of a loop that was cancelled has no end that could lead anywhere.
            clip, post, loop = compose(made, new, looped=made.request.loop and not kept_early)
            loudness = audio.loudness(clip)
        tokens, tokens_from_s = self._tokens(codes, clip, loop)
        draft = replace_facts(self._draft(take, clip, post, loudness), tokens_from_s, loop, kept_early=kept_early)
        if made.request.decoder == "diffusion" and not kept_early:
            facts = {"decoder": "diffusion", "decoder_hash": made.diffusion.file_hash}
            draft = draft.model_copy(update={"used": draft.used | facts})
        track = self._stage.library.save(
            draft,
            lambda path: audio.encode(clip, path, draft.format, tags=tags(draft)),
            tokens,
        )
        self._saved.append(track.name)
        self._job.tracks(self._saved)

    def _tokens(self, codes: Codes, clip: Clip, loop: Loop | None) -> tuple[Codes, float]:
        """The tokens to keep, int64 [K, T], and where in the track they begin: after known ones where there are any."""
        start, frame_rate_hz = self._plan.origin, self._plan.loaded.frame_rate_hz
        if loop is not None:
            first = round(loop.start_s * frame_rate_hz)
            return codes[:, first : first + math.ceil(clip.seconds * frame_rate_hz)], 0.0
        if start is None or self._plan.prompt_codes is None:
            return codes, max(0.0, clip.seconds - codes.shape[1] / frame_rate_hz)
        known = self._plan.prompt_codes if start.codes is None else start.codes
        begins = start.at_s - known.shape[1] / frame_rate_hz
        return np.concatenate([known, codes], axis=1), max(0.0, begins)

    def _draft(self, take: int, clip: Clip, post: list[str], loudness: Loudness) -> Track:
        made, request = self._plan, self._plan.request
        now = datetime.now(timezone.utc).astimezone()
        seed = made.seeds[take]
        chosen = None if request.seed == AUTO_SEED else seed
        name = self._stage.library.reserve_name(request.artist, made.loaded.info.id, chosen, now)
        suffix = request.format
        return Track(
            name=name,
            file=f"{name}.{suffix}",
            created_at=now.isoformat(timespec="seconds"),
            prompt=request.prompt,
            model=made.loaded.info.id,
            checkpoint_hash=made.loaded.checkpoint_hash,
            asked=request.model_dump(mode="json", by_alias=True, exclude={"client_id"}),
            used=self._used(seed),
            seed=seed,
            take=take + 1,
            format=request.format,
            sample_rate_hz=clip.sample_rate_hz,
            channels=clip.channels,
            duration_s=round(clip.seconds, 6),
            bytes=0,
            continuation=made.origin.source if made.origin else None,
            audio_prompt=made.melody_sound.source if made.melody_sound else None,
            parent=made.origin.parent if made.origin else None,
            post=post,
            loudness=loudness,
            engine=made.loaded.engine_info,
            versions=versions(),
            timings_s=dict(made.timings_s),
        )

    def _used(self, seed: int) -> dict[str, Any]:
        """Every parameter as it was used. With these and one take the same audio comes out again."""
        made, request = self._plan, self._plan.request
        context_frames = 0 if made.prompt_codes is None else made.prompt_codes.shape[1]
        return {
            "prompt": request.prompt,
            "duration": request.duration,
            "loop": request.loop,
            "top_k": 0 if request.top_p > 0 else request.top_k,
            "top_p": request.top_p,
            "temperature": request.temperature,
            "cfg_coef": request.cfg_coef,
            "decoder": "codec",
            "seed": seed,
            "takes": 1,
            "two_step_cfg": False,
            "extend_stride_s": made.stride_s,
            "window_s": made.loaded.max_window_s,
            "context_s": round(context_frames / made.loaded.frame_rate_hz, 3),
            "sample_rate_hz": made.sample_rate_hz,
        }

    # ------------------------------------------------------------------------------------------- measuring
    def _measure_steps(self, codes: Codes) -> None:
        """Remember the decoder's pace: frames of one take a second, all takes together."""
        spent = self._plan.timings_s.get("generate", 0.0)
        if spent > 0.2:
            self._stage.measurements.add(
                codes.shape[2] / spent, *steps_key(self._plan.loaded, self._plan.request.takes)
            )

    def _after_generating_s(self) -> float:
        """What comes after the last token, by experience: decoding the other takes, or rendering all of them."""
        request, loaded = self._plan.request, self._plan.loaded
        if request.decoder == "diffusion":
            pace = self._stage.measurements.get(*render_key(loaded.engine_info.device))
            return 0.0 if not pace else request.takes * request.made_s / pace
        pace = self._stage.measurements.get("decode_x", loaded.info.id)
        return 0.0 if not pace else (request.takes - 1) * request.made_s / pace


def steps_key(loaded: LoadedModel, takes: int) -> tuple[str, ...]:
    """Under what name the decoder's pace is remembered."""
    engine = loaded.engine_info
    return ("steps_per_s", loaded.info.id, engine.backend, engine.precision, engine.device, str(takes))


def replace_facts(draft: Track, tokens_from_s: float, loop: Loop | None, *, kept_early: bool) -> Track:
    """The draft with what is only known once the sound is put together."""
    used = {**draft.used, "tokens_from_s": round(tokens_from_s, 6)} if tokens_from_s > 0 else draft.used
    return draft.model_copy(update={"used": used, "loop": loop, "kept_early": kept_early})


def compose(made: Plan, new: Clip, *, looped: bool) -> tuple[Clip, list[str], Loop | None]:
    """The finished track's sound from the new music and what it goes on from.

    Returns:
        The clip at the track's rate and channels, what was done to it, and its seam when it is a loop.
    """
    post: list[str] = []
    rate, channels = made.sample_rate_hz, made.channels
    new = audio.resample(audio.to_channels(new, channels), rate)
    loop = None
    if looped:
        new, loop = looping.close(new, made.request.duration, made.loaded.frame_rate_hz)
        post.append(f"made a loop, its end led into its beginning over {loop.fade_s:g} s")
    safe = audio.limit_peak(new)
    if safe is not new:
        post.append(_POST_PEAK)
    start = made.origin
    if start is None:
        return safe, post, loop
    if start.mode == "append":
        return *_append(start, safe, post), loop
    original = audio.resample(audio.to_channels(start.clip, channels), rate)
    at_s = min(start.at_s, original.seconds)
    return audio.splice(original, safe, at_s), [*post, f"continued from {at_s:.3f} s"], loop


def _append(start: Origin, new: Clip, post: list[str]) -> tuple[Clip, list[str]]:
    kept = audio.resample(audio.to_channels(start.kept, new.channels), new.sample_rate_hz)
    target = audio.loudness(new).integrated_lufs
    if target is not None and audio.loudness(kept).integrated_lufs is not None:
        kept = audio.match_loudness(kept, target)
        post = [*post, f"clip matched to {target:.1f} LUFS"]
    fade_s = JOIN_FADE_S if min(kept.seconds, new.seconds) > 2 * JOIN_FADE_S else 0.0
    return audio.join(kept, new, fade_s), [*post, f"joined with a crossfade of {fade_s:g} s"]


def tags(track: Track) -> dict[str, str]:
    """What the file says about itself."""
    return {
        "title": track.prompt.splitlines()[0][:200],
        "artist": str(track.asked.get("artist", "")),
        "comment": f"MusicGen {track.model}, seed {track.seed}: {track.prompt}"[:1000],
        "software": f"audiocraft-webui {VERSION}",
    }


@cache
def versions() -> dict[str, str]:
    """Of the program and of what shapes the sound."""
    here = {dist.name.lower(): dist.version for dist in importlib.metadata.distributions() if dist.name}
    shaping = ("torch", "audiocraft", "onnxruntime", "numpy", "soundfile", "soxr")
    ours = {"audiocraft-webui": VERSION, "python": platform.python_version()}
    return ours | {package: here[package] for package in shaping if package in here}
