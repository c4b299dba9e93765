"""The use cases: what a request means and what is done about it. Decides; the rooms below it do."""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from modules import audio, looping
from modules.contract import (
    ERRORS,
    FINAL_STATUSES,
    SAMPLE_RATES_HZ,
    AudioFormat,
    AudioRef,
    Conflict,
    Decoder,
    GenerateRequest,
    Health,
    Hello,
    Internal,
    InvalidParameter,
    InvalidRequest,
    Job,
    JobPhase,
    LibraryChange,
    LoadRequest,
    Loudness,
    Mix,
    ModelBroken,
    ModelInfo,
    ModelMissing,
    NotFound,
    OutOfMemory,
    SampleRate,
    SeparatorInfo,
    Source,
    SplitRequest,
    StemNotes,
    StudioError,
    Track,
    TrackPatch,
    TrackQuery,
    Upload,
    parse,
    parse_any,
    parse_submitted,
)
from modules.disk import require_space, take_folder
from modules.estimate import Measurements, forecast
from modules.generation import Generation, Stage, plan, require_melody, versions
from modules.jobs import JobContext, JobQueue
from modules.library import Library
from modules.live import LiveAudio
from modules.material import MAX_ORIGINAL_S, LoadedModel, Sound, check_cut
from modules.mixing import Transcriber, mixed_track
from modules.musicgen.catalog import require_decoder
from modules.musicgen.tiny import unknown_words
from modules.settings import VERSION, Settings
from modules.uploads import Readable, Uploads

log = logging.getLogger(__name__)

Progress = Callable[[JobPhase, float, float, "float | None"], None]
UPLOADS_SHARE = 8
"""All uploads together may hold this many of the largest one."""
JOBS_SHOWN = 100
"""Finished jobs that a page is told of."""
SPARE_BYTES = 64 * 1024 * 1024
"""Stays free on the disk beside what a job writes."""
_BYTES_A_SAMPLE = 4
_SPLIT_PREFIX = ".split-"
_UPLOADED = "upload"
"""What stands for the model in a track that a person brought."""


class Catalog(Protocol):
    """The models we know."""

    def models(self) -> list[ModelInfo]: ...
    def info(self, model_id: str) -> ModelInfo: ...
    def default_id(self) -> str: ...


class Manager(Protocol):
    """The one loaded model."""

    @property
    def catalog(self) -> Catalog: ...
    def warm(self) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def ensure(self, model_id: str, progress: Progress, decoder: Decoder = "codec") -> LoadedModel: ...
    def preflight(self, model_id: str, decoder: Decoder = "codec") -> dict[str, Any]: ...
    def step_bytes(self, model_id: str, seconds: float) -> int: ...
    def unload(self) -> None: ...
    def after_job(self, *, keep: bool = False) -> None: ...


class Split(Protocol):
    """Finished stems, not yet a track's."""

    @property
    def paths(self) -> Mapping[str, Path]: ...
    @property
    def info(self) -> Mapping[str, Any]: ...


class Separator(Protocol):
    """Splits sound into stems."""

    def separators(self) -> list[SeparatorInfo]: ...
    def resolve(self, separator: str) -> Any: ...
    def wanted(self, stems: str, info: Any, have: Mapping[str, str]) -> tuple[str, ...]: ...
    def split(
        self, source: Path, out_dir: Path, stems: tuple[str, ...], *, separator: str, progress: Progress,
        check: Callable[[], None],
    ) -> Split: ...  # fmt: skip
    def unload(self) -> None: ...


class Studio:
    """Everything that a person can do, for the web, the command line and tests alike.

    Args:
        settings: how this run behaves.
        manager, separator: the real ones when left out.
        jobs_dir: where the queue keeps its journals; the settings' own when left out.

    Raises:
        Conflict: another program has the data folder or the state folder.
    """

    def __init__(
        self, settings: Settings, *, manager: Manager | None = None, separator: Separator | None = None,
        jobs_dir: Path | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings
        self._listeners: list[tuple[Callable[[Job], None], Callable[[LibraryChange], None]]] = []
        # First, because they refuse a second program: it would sweep this one's files and run its jobs once more.
        self.library = Library(settings.audio_dir, settings.stems_dir)
        self._state_lock = self._take_state()
        self.library.on_change = self._library_changed
        self.uploads = Uploads(
            settings.uploads_dir, max_bytes=settings.max_upload_mb * 1_000_000,
            total_bytes=settings.max_upload_mb * 1_000_000 * UPLOADS_SHARE,
        )  # fmt: skip
        self._transcriber = Transcriber(self.library)
        self.measurements = Measurements(settings.state_dir / "measurements.json")
        self.manager = manager if manager is not None else _real_manager(settings)
        self.separator = separator if separator is not None else _real_separator(settings)
        self._live_lock = threading.Lock()
        self._live: tuple[str, LiveAudio] | None = None
        self._sweep()
        self.jobs_queue = JobQueue(
            jobs_dir or settings.jobs_dir, self._run, capacity=settings.max_queue, on_change=self._job_changed,
            after_job=self._after_job,
        )  # fmt: skip

    def _take_state(self) -> Any:
        try:
            return take_folder(self.settings.state_dir, "--state-dir")
        except BaseException:
            self.library.close()
            raise

    # ----------------------------------------------------------------------------------------- lifetime
    def start(self) -> None:
        """Begin to work: queued jobs go on, the model stack loads in the background."""
        self.manager.warm()
        self.jobs_queue.start()

    def stop(self, timeout_s: float = 4.0) -> None:
        """End within `timeout_s`: the running job is interrupted, queued ones wait for the next start."""
        self.jobs_queue.stop(timeout_s)
        with self._live_lock:
            if self._live is not None:
                self._live[1].discard()
        self.library.close()
        self._state_lock.release()

    def subscribe(self, on_job: Callable[[Job], None], on_library: Callable[[LibraryChange], None]) -> None:
        """Be told of every change of a job and of the library, from any thread; neither call may block or raise."""
        self._listeners.append((on_job, on_library))

    # --------------------------------------------------------------------------------------------- jobs
    def submit(self, body: Any) -> Job:
        """Take a request in; the same client_id is the same job.

        Raises:
            InvalidRequest, InvalidParameter, UnknownModel, ModelMissing, ModelBroken, NotFound, ClipTooShort,
                ClipTooLong, DiskFull: it cannot be done as asked.
            QueueFull: details hold `retry_after_s`.
        """
        request = parse_submitted(self._with_model(body))
        known = self.jobs_queue.find(request.client_id)
        if known is not None:
            return known
        self._check(request)
        return self.jobs_queue.submit(request)

    def cancel(self, job_id: str, keep: bool = False) -> Job:
        """Cancel; `keep` makes a track of what was heard. Raises NotFound, Conflict (it has ended already)."""
        return self.jobs_queue.cancel(job_id, keep=keep)

    def job(self, job_id: str) -> Job:
        """Raises NotFound."""
        return self.jobs_queue.job(job_id)

    def jobs(self, finished: int = JOBS_SHOWN) -> list[Job]:
        """Snapshots in order: the last `finished` ended ones, the running one, the waiting ones."""
        return self.jobs_queue.jobs(finished)

    def live_audio(self, job_id: str) -> Iterator[bytes] | None:
        """The job's audio as a WAV while it is made, from its start.

        Returns:
            None when the job has ended and its sound has given way to the next one's: what it made are tracks now.
        Raises:
            NotFound: no such job.
            Conflict: it has no sound yet.
        """
        with self._live_lock:
            if self._live is not None and self._live[0] == job_id:
                return self._live[1].listen()
        job = self.jobs_queue.job(job_id)
        if job.status in FINAL_STATUSES:
            return None
        raise Conflict(f"job {job_id} is {job.status} and has no sound yet")

    def run_once(self, body: Any, follow: Callable[[Job], None] | None = None) -> list[Track]:
        """Do one job and wait for it.

        Args:
            follow: called with every snapshot.

        Returns:
            The tracks it made.
        Raises:
            StudioError: as `submit`, or as the job failed.
        """
        if follow is not None:
            self.subscribe(follow, lambda _change: None)
        job = self.submit(body)
        self.jobs_queue.start()
        try:
            job = self.jobs_queue.wait(job.id)
        except KeyboardInterrupt:
            self.jobs_queue.cancel(job.id)
            job = self.jobs_queue.wait(job.id, timeout_s=4.0)
            raise
        if job.status != "done":
            raise _as_exception(job)
        return [self.library.get(name) for name in job.tracks]

    # ------------------------------------------------------------------------------------------- tracks
    def tracks(self, query: TrackQuery) -> tuple[list[Track], str | None, int]:
        """A page of tracks, the next page's cursor, and how many fit in all. Raises InvalidParameter."""
        return self.library.page(query)

    def track(self, name: str) -> Track:
        """Raises NotFound."""
        return self.library.get(name)

    def patch(self, name: str, patch: TrackPatch) -> Track:
        """Raises NotFound."""
        return self.library.patch(name, patch)

    def delete(self, name: str) -> None:
        """Raises NotFound, Conflict (locked, or a job needs it)."""
        if name in self._wanted_tracks():
            raise Conflict(f"track {name!r} is needed by a waiting job; cancel that first", field="name")
        self.library.delete(name)

    def clear(self) -> tuple[int, int]:
        """Delete every track that is not locked and that no job needs: how many went, how many stayed."""
        with ExitStack() as held:
            for name in self._wanted_tracks():
                # A track that is gone by now needs no holding.
                with suppress(NotFound):
                    held.enter_context(self.library.hold(name))
            return self.library.delete_unlocked()

    def audio_file(self, name: str) -> Path:
        """Raises NotFound."""
        return self.library.audio_path(name)

    def stem_file(self, name: str, stem: str) -> Path:
        """Raises NotFound."""
        return self.library.stem_path(name, stem)

    def peaks(self, name: str, bins: int, stem: str = "") -> list[list[float]]:
        """The outline of the track's or a stem's waveform: `bins` pairs of least and greatest. Raises NotFound."""
        outline = self.library.peaks(name, bins, stem)
        return [[round(float(low), 4), round(float(high), 4)] for low, high in outline]

    def converted(self, name: str, audio_format: AudioFormat, sample_rate: SampleRate) -> Path:
        """The track in another format or rate, as a temporary file that the caller removes.

        Raises:
            NotFound, ClipTooLong, DiskFull.
        """
        with self.library.hold(name) as track:
            clip = audio.decode(self.library.audio_path(name), max_s=MAX_ORIGINAL_S * 2)
            folder = self._converted_dir
            folder.mkdir(parents=True, exist_ok=True)
            require_space(folder, clip.samples.nbytes + SPARE_BYTES)
            path = folder / f"{secrets.token_hex(8)}.{audio_format}"
            try:
                rate = SAMPLE_RATES_HZ[sample_rate]
                if track.loop is not None and rate is not None:
                    clip = looping.resample(clip, rate)
                audio.encode(clip, path, audio_format, sample_rate_hz=rate)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        log.debug("converted %s to %s", track.name, path.name)
        return path

    # -------------------------------------------------------------------------------------------- stems
    def separators(self) -> list[SeparatorInfo]:
        """The ways of splitting that this installation has."""
        return self._splitter.separators()

    def notes(self, name: str, stem: str) -> StemNotes:
        """A stem's notes, found now if they are not known. Raises NotFound, ModelMissing, ClipTooLong, DiskFull."""
        return self._transcriber.notes(name, stem)

    def midi(self, name: str, stem: str) -> bytes:
        """A stem's notes as a MIDI file. Raises NotFound: no such stem, or nobody asked for its notes yet."""
        return self._transcriber.midi(name, stem)

    def mixdown(self, name: str, stream: Readable, mix: Mix) -> Track:
        """Make a track of a mix that the page rendered.

        Raises:
            NotFound, InvalidParameter: no such track; the mix names a stem that it has not.
            InvalidRequest, TooLarge, UnreadableAudio, ClipTooLong, DiskFull: as `upload`.
        """
        parent = self.library.get(name)
        unknown = [stem for stem in mix.stems if stem not in parent.stems]
        if unknown:
            raise InvalidParameter(f"mix: track {name!r} has no stem {unknown[0]!r}", field="mix")
        upload = self.upload(stream, f"{name}.wav")
        with self.uploads.hold(upload.id) as sound:
            require_space(self.settings.audio_dir, sound.stat().st_size + SPARE_BYTES)
            draft = mixed_track(self.library, parent, mix, upload, sound, versions())
            return self.library.save(draft, lambda target: _copy(sound, target))

    # ----------------------------------------------------------------------------------- uploads, models
    def upload(self, stream: Readable, filename: str) -> Upload:
        """Raises InvalidRequest, TooLarge, UnreadableAudio, ClipTooLong, DiskFull."""
        self.uploads.sweep(self._wanted_uploads())
        require_space(self.settings.uploads_dir, SPARE_BYTES)
        return self.uploads.add(stream, filename)

    def models(self) -> list[ModelInfo]:
        """The catalogue."""
        return self.manager.catalog.models()

    def load_model(self, model_id: str, client_id: str | None = None) -> Job:
        """A job that fetches what is missing and loads the model.

        Raises:
            UnknownModel, ModelMissing, ModelBroken, QueueFull.
        """
        request = parse(LoadRequest, {"model": model_id, "client_id": client_id or secrets.token_hex(12)})
        known = self.jobs_queue.find(request.client_id)
        if known is not None:
            return known
        self._check_model(model_id)
        return self.jobs_queue.submit(request)

    def unload_model(self, model_id: str) -> None:
        """Give the model's memory back; nothing when it is not the loaded one.

        Raises:
            UnknownModel: no such model.
            Conflict: a job is using it.
        """
        self.manager.catalog.info(model_id)
        if self.manager.status().get("model") != model_id:
            return
        busy = [job for job in self.jobs_queue.active() if job.status == "running" and job.kind != "split"]
        if busy:
            raise Conflict(f"the model {model_id!r} is being used by a job; cancel it first", field="model")
        self.manager.unload()

    def health(self) -> Health:
        """How the program is."""
        active = self.jobs_queue.active()
        running = sum(job.status == "running" for job in active)
        queue = {"running": running, "queued": len(active) - running, "capacity": self.settings.max_queue}
        return Health(version=VERSION, offline=self.settings.offline, queue=queue, **self.manager.status())

    def hello(self) -> Hello:
        """What a page is told when it connects."""
        return Hello(version=VERSION, jobs=self.jobs(), tracks=self.library.count(), models=self.models())

    def default_model(self) -> str:
        """The model that is used when none is named."""
        return self.settings.model or self.manager.catalog.default_id()

    def estimate(self, body: Any) -> dict[str, Any]:
        """What a generation should take on this machine, and whether it fits the memory, before it is asked for.

        Args:
            body: as for `submit`; the prompt may be empty and client_id missing.

        Returns:
            {"seconds", "first_sound_s", "measured", "fits", "needs_bytes", "free_bytes", "fits_with"}. "measured" is
            false while the seconds are a guess from the model's size.
        Raises:
            InvalidRequest, InvalidParameter (a decoder that the model has not), UnknownModel.
        """
        if not isinstance(body, dict):
            raise InvalidRequest("the body must be a JSON object")
        filled = {**body, "client_id": body.get("client_id") or "estimate", "prompt": body.get("prompt") or "-"}
        request = parse(GenerateRequest, self._with_model(filled))
        info = self.manager.catalog.info(request.model)
        require_decoder(info, request.decoder)
        step_bytes = self.manager.step_bytes(request.model, request.made_s)
        time_s = forecast(self.measurements, request, info, self.manager.status(), step_bytes)
        return {**time_s, **self.manager.preflight(request.model, request.decoder)}

    # --------------------------------------------------------------------------------- checks before a job
    def _with_model(self, body: Any) -> Any:
        """A generate body that names no model gets the best one that is here."""
        if isinstance(body, dict) and body.get("kind", "generate") == "generate":
            return {"kind": "generate", "model": self.default_model(), **body}
        return body

    def _check(self, request: GenerateRequest | SplitRequest) -> None:
        """Refuse at once what can be known to fail, so that the person hears it where they are looking."""
        if isinstance(request, SplitRequest):
            info = self._separator(request.separator)
            field = "track" if request.track else "upload"
            self._look_up(AudioRef(track=request.track, upload=request.upload), field)
            if request.upload:
                audio.require_splittable(self.uploads.get(request.upload).channels, field)
            have = self.library.get(request.track).stems if request.track else {}
            self._splitter.wanted(request.stems, info, have)
            return
        info = self._check_model(request.model)
        if request.decoder == "diffusion":
            self._check_diffusion(info)
        if request.audio_prompt is not None:
            require_melody(request.model, takes_melody=info.melody)
            self._look_up(request.audio_prompt, "audio_prompt")
        if request.continuation is not None:
            self._check_cut(request)
        if request.stems != "none":
            self._splitter.wanted(request.stems, self._separator("auto"), {})
        require_space(self.settings.audio_dir, _needed_bytes(request, info))

    def _check_model(self, model_id: str) -> ModelInfo:
        info = self.manager.catalog.info(model_id)
        if info.state == "broken":
            raise ModelBroken(f"model: {model_id!r} cannot be used: {info.problem}", field="model")
        if info.state == "missing":
            raise ModelMissing(
                f"model: {model_id!r} is not complete on this machine and cannot be fetched now;"
                f" missing: {', '.join(info.missing) or info.problem}",
                field="model",
                details={"missing": info.missing, "download_bytes": info.download_bytes},
            )
        return info

    def _check_diffusion(self, info: ModelInfo) -> None:
        require_decoder(info, "diffusion")
        other = info.diffusion
        if other is not None and other.state == "broken":
            raise ModelBroken(
                "decoder: Multi-Band Diffusion cannot be used: its file could not be loaded", field="decoder"
            )
        if other is not None and other.state == "missing":
            raise ModelMissing(
                "decoder: Multi-Band Diffusion is not on this machine and cannot be fetched now;"
                f" missing: {', '.join(other.missing)}",
                field="decoder",
                details={"missing": other.missing, "download_bytes": 0},
            )

    def _check_cut(self, request: GenerateRequest) -> None:
        continuation = request.continuation
        if continuation is None:
            return
        source = self._look_up(continuation, "continuation")
        if continuation.from_s is not None and continuation.from_s > source.seconds + 0.05:
            raise InvalidParameter(
                f"continuation.from: {continuation.from_s:g} s lies past the end of {source.name},"
                f" which is {source.seconds:.2f} s long",
                field="continuation.from",
            )
        check_cut(source.seconds if continuation.from_s is None else continuation.from_s, continuation.mode)

    def _look_up(self, ref: AudioRef, field: str) -> Source:
        """What a request refers to; an upload's day begins anew."""
        try:
            if ref.track is not None:
                track = self.library.get(ref.track)
                return Source(kind="track", name=track.name, seconds=track.duration_s)
            self.uploads.touch(str(ref.upload))
            upload = self.uploads.get(str(ref.upload))
            return Source(kind="upload", name=upload.name, seconds=upload.seconds)
        except NotFound as error:
            raise NotFound(f"{field}: {error.message}", field=field) from None

    @property
    def _splitter(self) -> Separator:
        if self.separator is None:
            raise InvalidParameter("stems: this installation cannot split tracks", field="stems")
        return self.separator

    def _separator(self, name: str) -> Any:
        return self._splitter.resolve(name)

    # ------------------------------------------------------------------------------------------ the worker
    def _run(self, job: Job, context: JobContext) -> None:
        request = parse_any(job.request)
        if isinstance(request, GenerateRequest):
            self._generate(job, request, context)
        elif isinstance(request, SplitRequest):
            self._split_job(job, request, context)
        else:
            self._load(request.model, context)

    def _load(self, model_id: str, context: JobContext, decoder: Decoder = "codec") -> LoadedModel:
        """Have the model in memory; how long that took without a download is remembered."""
        context.progress("loading")
        began, cold = time.monotonic(), self.manager.status().get("model") != model_id
        phases: set[JobPhase] = set()
        follow = _following(context)

        def noting(phase: JobPhase, done: float, total: float, rate: float | None) -> None:
            phases.add(phase)
            follow(phase, done, total, rate)

        try:
            loaded = self.manager.ensure(model_id, noting, decoder)
        except OutOfMemory:
            if self.separator is None:
                raise
            self.separator.unload()  # it may be what is in the way; a second refusal is the answer
            loaded = self.manager.ensure(model_id, noting, decoder)
        if cold and "downloading" not in phases:
            self.measurements.add(round(time.monotonic() - began, 3), "load_s", model_id)
        return loaded

    def _generate(self, job: Job, request: GenerateRequest, context: JobContext) -> None:
        require_space(self.settings.audio_dir, _needed_bytes(request, self.manager.catalog.info(request.model)))
        with ExitStack() as held:
            tune = self._hold(held, request.audio_prompt, "audio_prompt")
            start = self._hold(held, request.continuation, "continuation")
            began = time.monotonic()
            loaded = self._load(request.model, context, request.decoder)
            load_s = time.monotonic() - began
            context.check()
            context.progress("preparing")
            if loaded.info.sketch and (unknown := unknown_words(request.prompt)):
                context.unknown_words(unknown)
            made = plan(request, loaded, tune, start)
            made.timings_s["load"] = round(load_s, 3)
            stage = Stage(self.library, self.measurements, lambda rate, channels: self._open_live(job, rate, channels))
            names = Generation(stage, made, context).run()
        if request.stems != "none":
            for name in names:
                self._split(job, name, request.stems, "auto", context)

    def _hold(self, held: ExitStack, ref: AudioRef | None, field: str) -> Sound | None:
        """Keep a clip from being removed while the job needs it."""
        if ref is None:
            return None
        source = self._look_up(ref, field)
        if ref.track is not None:
            track = held.enter_context(self.library.hold(ref.track))
            path, codes = self.library.audio_path(track.name), self.library.tokens(track.name)
            return Sound(path, source, track.sample_rate_hz, track, codes)
        path = held.enter_context(self.uploads.hold(str(ref.upload)))
        return Sound(path, source, self.uploads.get(str(ref.upload)).sample_rate_hz)

    def _split_job(self, job: Job, request: SplitRequest, context: JobContext) -> None:
        if request.track:
            context.tracks([request.track])
            self._split(job, request.track, request.stems, request.separator, context)
            return
        known = self._track_of(str(request.upload))
        name = known or self._import(str(request.upload), request)
        context.tracks([name])
        try:
            self._split(job, name, request.stems, request.separator, context)
        except BaseException:
            if known:
                raise
            # Only its stems were asked for, and the upload is still there for another try.
            with suppress(NotFound, Conflict):
                self.library.delete(name)
                context.tracks([])
            raise

    def _split(self, job: Job, name: str, stems: str, separator: str, context: JobContext) -> None:
        """Make the stems of a track that it has not got yet."""
        info = self._separator(separator)
        folder = self.settings.stems_dir / f"{_SPLIT_PREFIX}{job.id}"
        with self.library.hold(name) as track:
            missing = self._splitter.wanted(stems, info, track.stems)
            if not missing:
                return
            context.progress("splitting")
            folder.mkdir(parents=True, exist_ok=True)
            try:
                made = self._separated(name, folder, missing, info.id, context)
                context.check()
                self.library.add_stems(name, made.paths, made.info)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _separated(self, name: str, folder: Path, stems: tuple[str, ...], separator: str, context: JobContext) -> Split:
        """Split, moving the music model out of the memory when both do not fit."""
        asked: dict[str, Any] = {"separator": separator, "progress": _following(context), "check": context.check}
        path = self.library.audio_path(name)
        try:
            return self._splitter.split(path, folder, stems, **asked)
        except OutOfMemory:
            if self.manager.status().get("model") is None:
                raise
        log.info("the music model makes room for splitting %s", name)
        self.manager.unload()
        return self._splitter.split(path, folder, stems, **asked)

    def _track_of(self, upload_id: str) -> str | None:
        """The track that an upload has become: by an earlier split, or by one that a crash ended."""
        made, _, _ = self.library.page(TrackQuery(model=_UPLOADED, limit=500))
        return next((track.name for track in made if track.asked.get("upload") == upload_id), None)

    def _import(self, upload_id: str, request: SplitRequest) -> str:
        """Make an upload a track, so that its stems have a place; returns the track's name."""
        with self.uploads.hold(upload_id) as path:
            upload = self.uploads.get(upload_id)
            require_space(self.settings.audio_dir, path.stat().st_size + SPARE_BYTES)
            now = datetime.now(timezone.utc).astimezone()
            short = upload.seconds <= MAX_ORIGINAL_S
            loudness = audio.loudness(audio.decode(path)) if short else Loudness(integrated_lufs=None, peak_dbfs=None)
            name = self.library.reserve_name(Path(upload.name).stem, _UPLOADED, None, now)
            draft = Track(
                name=name, file=f"{name}.flac", created_at=now.isoformat(timespec="seconds"), prompt=upload.name,
                model=_UPLOADED, checkpoint_hash=None, used={}, seed=0, format="flac",
                asked=request.model_dump(mode="json", exclude={"client_id"}), sample_rate_hz=upload.sample_rate_hz,
                channels=upload.channels, duration_s=upload.seconds, bytes=0, loudness=loudness, versions=versions(),
            )  # fmt: skip
            return self.library.save(draft, lambda target: _copy(path, target)).name

    def _open_live(self, job: Job, sample_rate_hz: int, channels: int) -> LiveAudio:
        live = LiveAudio(self._live_dir / f"{job.id}.pcm", sample_rate_hz, channels)
        with self._live_lock:
            before, self._live = self._live, (job.id, live)
        if before is not None:
            before[1].discard()
        return live

    # -------------------------------------------------------------------------------------------- changes
    def _after_job(self, job: Job) -> None:
        """Tidy up once a job that ran has ended."""
        log.info("job %s (%s) is %s", job.id, job.kind, job.status)
        self.manager.after_job(keep=job.kind == "load")
        if self.settings.unload_after_gen and self.separator is not None:
            self.separator.unload()
        self.uploads.sweep(self._wanted_uploads())

    def _job_changed(self, job: Job) -> None:
        for on_job, _ in list(self._listeners):
            on_job(job)

    def _library_changed(self, change: LibraryChange) -> None:
        for _, on_library in list(self._listeners):
            on_library(change)

    def _wanted(self, kind: str) -> set[str]:
        """Uploads or tracks that a job which has not ended refers to."""
        refs: list[Mapping[str, Any]] = []
        for job in self.jobs_queue.active():
            refs += [job.request, job.request.get("audio_prompt") or {}, job.request.get("continuation") or {}]
        return {str(ref[kind]) for ref in refs if ref.get(kind)}

    def _wanted_uploads(self) -> set[str]:
        return self._wanted("upload")

    def _wanted_tracks(self) -> set[str]:
        return self._wanted("track")

    @property
    def _live_dir(self) -> Path:
        return self.settings.state_dir / "live"

    @property
    def _converted_dir(self) -> Path:
        return self.settings.state_dir / "converted"

    def _sweep(self) -> None:
        """Remove what an earlier run left half done."""
        for folder in (self._live_dir, self._converted_dir, *self.settings.stems_dir.glob(f"{_SPLIT_PREFIX}*")):
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)


def _needed_bytes(request: GenerateRequest, info: ModelInfo) -> int:
    """An upper bound of what the job writes, the live audio and a margin included."""
    rate = max(SAMPLE_RATES_HZ[request.sample_rate] or info.sample_rate_hz, info.sample_rate_hz)
    seconds = request.made_s * (request.takes + 1)
    return int(seconds * rate * 2 * _BYTES_A_SAMPLE) + SPARE_BYTES


def _following(context: JobContext) -> Progress:
    """Progress of a room below, as the job's own; ends the job there when it was cancelled."""

    def follow(phase: JobPhase, done: float, total: float, rate: float | None) -> None:
        context.check()
        context.progress(phase, done, total, rate)

    return follow


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _as_exception(job: Job) -> StudioError:
    """What a job failed with, to be raised."""
    if job.error is None:
        return Conflict(f"the job was {job.status}")
    kinds = {kind.code: kind for kind in ERRORS}
    kind = kinds.get(job.error.code, Internal)
    return kind(job.error.message, field=job.error.field, details=job.error.details)


def _real_manager(settings: Settings) -> Manager:
    from modules.musicgen.manager import ModelManager  # type: ignore[import-not-found,unused-ignore]

    manager: Manager = ModelManager(settings)
    return manager


def _real_separator(settings: Settings) -> Separator | None:
    from modules.stems import Separator as Demucs  # type: ignore[import-not-found,unused-ignore]

    separator: Separator = Demucs(settings)
    return separator
