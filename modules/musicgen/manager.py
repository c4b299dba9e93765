"""The one loaded model: fetch what it lacks, load it, keep it while it is wanted, give its memory back.

`ensure` and `after_job` are called by the worker around each job; everything else may come from any thread. A model
that a job is using is never pulled from under it: an `unload` then waits for the job's end.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import platform
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

from modules import disk, hub
from modules.contract import (
    Decoder,
    DeviceLost,
    DownloadFailed,
    EngineInfo,
    Internal,
    InvalidParameter,
    JobPhase,
    ModelBroken,
    ModelInfo,
    ModelMissing,
    OutOfMemory,
    StudioError,
)
from modules.hub import HubFile
from modules.musicgen import backends, compat, memory
from modules.musicgen.catalog import DIFFUSION, DIFFUSION_REPO, LM_FILE, TINY_ID, Catalog, Entry, Part
from modules.musicgen.codec import Codec
from modules.musicgen.engine import Codes, Engine, GenerationSpec, ModelFacts, Sink
from modules.settings import Settings

if TYPE_CHECKING:
    from modules.musicgen.diffusion import Diffusion

log = logging.getLogger(__name__)

T = TypeVar("T")
Progress: TypeAlias = Callable[[JobPhase, float, float, "float | None"], None]
"""(phase, done, total, units a second or None). Whatever it raises ends what is going on."""
Stack: TypeAlias = Literal["cold", "loading", "ready", "failed"]

FITS_SHOWN: Final = 3
_POLL_S: Final = 0.1
_DOWNLOAD_ROUNDS: Final = 3
"""A codec file may turn out to point at another repository: that is fetched in a second round."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory."""

    info: ModelInfo
    checkpoint_hash: str | None
    """sha256 of the language model's file."""
    engine: Engine
    codec: Codec
    engine_info: EngineInfo
    sample_rate_hz: int
    frame_rate_hz: float
    channels: int
    codebooks: int
    max_window_s: float
    compression: Any
    """The codec's CompressionModel."""
    diffusion: Diffusion | None = None
    """The other decoder, once a job has asked for it."""


class ModelManager:
    """Holds at most one model.

    Args:
        settings: device, precision, backend, folders, offline and how long a model stays.
        on_status: called after each change of `status()`, from whichever thread made it.
    """

    def __init__(self, settings: Settings, on_status: Callable[[], None] | None = None) -> None:
        self.settings = settings
        self.catalog = Catalog(settings)
        self._on_status = on_status or (lambda: None)
        self._lock = threading.RLock()
        self._stack: Stack = "cold"
        self._stack_problem = ""
        self._stack_error: StudioError | None = None
        self._stack_done = threading.Event()
        self._device, self._device_name, self._device_why = "", "", ""
        self._loaded: LoadedModel | None = None
        self._loading = False
        self._in_use = False
        self._unload_wanted = False
        self._timer: threading.Timer | None = None
        if settings.offline:
            _forbid_the_network()

    # ------------------------------------------------------------------------------------------- the stack
    def warm(self) -> None:
        """Start importing torch and audiocraft in the background; nothing when that is done or under way."""
        with self._lock:
            if self._stack in ("loading", "ready"):
                return
            self._stack, self._stack_problem = "loading", ""
            self._stack_done.clear()
        self._on_status()
        threading.Thread(target=self._import_stack, name="model-stack", daemon=True).start()

    def _import_stack(self) -> None:
        try:
            compat.import_stack()
            self._device, self._device_why = choose_device(self.settings.device)
            self._device_name = device_name(self._device)
            _set_threads(self.settings.threads)
            # Half a million objects of the libraries live for good now: the collector need not walk them again.
            gc.collect()
            gc.freeze()
            self._stack = "ready"
        except Exception as error:  # whatever is wrong with the environment must be shown, not lost in a thread
            log.exception("the model stack cannot be imported")
            self._stack_error = error if isinstance(error, StudioError) else None
            self._stack, self._stack_problem = "failed", _one_line(error)
        self._stack_done.set()
        self._on_status()

    def _await_stack(self, progress: Progress) -> None:
        self.warm()
        while not self._stack_done.wait(_POLL_S):
            progress("loading", 0, 0, None)
        if self._stack == "failed":
            raise self._stack_error or Internal(
                f"the model stack could not be imported: {self._stack_problem}; if that stays, delete the folder .venv"
                " and start the program with ./run.sh (run.bat)"
            )

    def status(self) -> dict[str, Any]:
        """The fields of contract.Health that are about the model."""
        with self._lock:
            loaded = self._loaded
            return {
                "device": self._device or self.settings.device,
                "device_name": self._device_name,
                "stack": self._stack,
                "stack_problem": self._stack_problem,
                "model": loaded.info.id if loaded else None,
                "model_state": "loading" if self._loading else "loaded" if loaded else "none",
                "engine": loaded.engine_info if loaded else None,
                "memory": self._memory(),
            }

    def _memory(self) -> dict[str, float]:
        device = self._device or "cpu"
        return {
            "process_bytes": float(memory.resident_bytes()),
            "available_bytes": float(memory.available_bytes(device)),
            "total_bytes": float(memory.total_bytes(device)),
        }

    # --------------------------------------------------------------------------------------- load and unload
    def ensure(self, model_id: str, progress: Progress, decoder: Decoder = "codec") -> LoadedModel:
        """Have the model in memory, fetching and loading what it needs; the model before it is let go first.

        Args:
            decoder: what will make sound of the tokens; Multi-Band Diffusion comes beside the codec and stays with it.
            progress: told of "downloading" (bytes) and "loading"; raising from it (Cancelled) stops there, and what
                was downloaded is kept.
        Raises:
            UnknownModel, ModelMissing, ModelBroken, DownloadFailed, DiskFull, OutOfMemory, DeviceLost, InvalidParameter
            (a device that is not there, a decoder that the model has not), Internal (the stack cannot be imported).
        """
        with self._lock:
            self._in_use = True
            self._stop_timer()
        if self._stack == "ready" and not device_answers(self._device):
            self._lose_device()
        with self._lock:
            if self._has(model_id, decoder):
                return self._known
        entry = self.catalog.entry(model_id)
        self._check(entry, decoder)
        self._fetch(entry, decoder, progress)
        keeps = self._has(model_id) and memory.diffusion_bytes() <= memory.available_bytes(self._device)
        if not keeps:
            self._let_go()
        self._await_stack(progress)
        self._loading = True
        self._on_status()
        try:
            loaded = self._beside(entry, progress) if keeps else None
            loaded = loaded or self._load_what_fits(self.catalog.entry(model_id), decoder, progress)
        except ModelBroken as error:
            key, parts = model_id, self.catalog.parts(model_id)
            if error.field == "decoder":
                key, parts = DIFFUSION_REPO, [DIFFUSION]
            elif entry.folder is not None:
                parts = []
            message = error.message + _what_to_do(parts)
            self.catalog.note_problem(key, message)
            raise ModelBroken(message, field=error.field, details=error.details) from None
        finally:
            self._loading = False
            self._on_status()
        self.catalog.forget_problem(model_id)
        if decoder == "diffusion":
            self.catalog.forget_problem(DIFFUSION_REPO)
        # What was only needed to load is handed back before the job takes its own.
        memory.give_back()
        with self._lock:
            self._loaded = loaded
        self._on_status()
        return loaded

    @property
    def _known(self) -> LoadedModel:
        """The loaded model, where there is one."""
        if self._loaded is None:
            raise Internal("no model is loaded")
        return self._loaded

    def _has(self, model_id: str, decoder: Decoder = "codec") -> bool:
        """Whether the model is in memory, the decoder with it."""
        loaded = self._loaded
        return loaded is not None and loaded.info.id == model_id and (decoder == "codec" or bool(loaded.diffusion))

    def unload(self) -> None:
        """Give the model's memory back: at once, or when the job that uses it ends."""
        with self._lock:
            if self._in_use:
                self._unload_wanted = True
                return
        self._let_go()

    def after_job(self, *, keep: bool = False) -> None:
        """The job that called `ensure` has ended; `keep` when loading the model was all that it was for."""
        with self._lock:
            self._in_use = False
            unload = self._unload_wanted or (self.settings.unload_after_gen and not keep)
            if not unload:
                self._start_timer()
        if unload:
            self._let_go()

    def close(self) -> None:
        """Stop the timer and let go of the model."""
        with self._lock:
            self._in_use = False
        self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            loaded, self._loaded, self._unload_wanted = self._loaded, None, False
            self._stop_timer()
        if loaded is not None:
            loaded.engine.close()
            if loaded.diffusion is not None:
                loaded.diffusion.close()
            loaded.codec.close()
            memory.give_back()
            self._on_status()

    def _start_timer(self) -> None:
        self._stop_timer()
        if self._loaded is not None and self.settings.keep_alive_min > 0:
            self._timer = threading.Timer(self.settings.keep_alive_min * 60, self._idle)
            self._timer.daemon = True
            self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _idle(self) -> None:
        with self._lock:
            if self._in_use or self._timer is None:
                return
        log.info("the model was idle for %g minutes: unloading it", self.settings.keep_alive_min)
        self._let_go()

    # -------------------------------------------------------------------------------------------- the parts
    def _check(self, entry: Entry, decoder: Decoder) -> None:
        if entry.problem:
            raise ModelBroken(entry.problem, field="model")
        absent = [part for part in self.catalog.parts(entry.id, decoder) if not part.here]
        if entry.lacking or (absent and self.settings.offline):
            missing = [*entry.lacking, *(part.label for part in absent)]
            reason = " and --offline forbids the network" if absent and self.settings.offline else ""
            raise ModelMissing(
                f"{entry.title} is not complete on this machine{reason}; missing: {'; '.join(missing)}",
                field="decoder" if absent == [DIFFUSION] else "model",
                details={"missing": missing, "download_bytes": sum(part.bytes for part in absent)},
            )

    def _fetch(self, entry: Entry, decoder: Decoder, progress: Progress) -> None:
        for _ in range(_DOWNLOAD_ROUNDS):
            absent = [part for part in self.catalog.parts(entry.id, decoder) if not part.here]
            if not absent:
                return
            progress("downloading", 0, 0, None)
            files = [file for part in absent for file in _files(part)]
            hub.fetch(files, lambda done, total, rate: progress("downloading", done, total, rate), what=entry.title)
        raise DownloadFailed(f"{entry.title}: the hub's repository does not hold what the model needs")

    # --------------------------------------------------------------------------------------------- loading
    def _load_what_fits(self, entry: Entry, decoder: Decoder, progress: Progress) -> LoadedModel:
        """Load in the best precision that memory has room for, going down the ladder."""
        for precision, why in backends.ladder(self.settings, self._device):
            progress("loading", 0, 0, None)
            if memory.estimate_bytes(entry, precision, decoder) > memory.available_bytes(self._device):
                log.info("%s in %s does not fit into the memory that is free", entry.id, precision)
                continue
            loaded = self._try(entry.title, "model", lambda: self._load(entry, precision, why, progress))  # noqa: B023
            found = loaded if loaded is None or decoder == "codec" else self._with_diffusion(loaded)
            if found is not None:
                return found
            if loaded is not None:
                loaded.engine.close()
                loaded.codec.close()
                del loaded
                memory.give_back()
        raise self._out_of_memory(entry, decoder)

    def _beside(self, entry: Entry, progress: Progress) -> LoadedModel | None:
        """The loaded model with the other decoder beside it, or None when it had to be let go for want of memory."""
        progress("loading", 0, 0, None)
        loaded = self._with_diffusion(self._known)
        if loaded is None:
            log.info("%s is loaded again to make room for its other decoder", entry.id)
            self._let_go()
        return loaded

    def _with_diffusion(self, loaded: LoadedModel) -> LoadedModel | None:
        """The model with Multi-Band Diffusion, or None when memory ran out. Raises ModelBroken."""
        path = DIFFUSION.local()[0]
        return self._try(DIFFUSION.name, "decoder", lambda: replace(loaded, diffusion=self._diffusion(loaded, path)))

    def _diffusion(self, loaded: LoadedModel, path: Path) -> Diffusion:
        from modules.musicgen import diffusion

        with _no_network():
            digest = file_hash(path, self.settings.cache_dir)
            return diffusion.load(path.parent, loaded.codec, loaded.compression, self._device, digest)

    def _try(self, title: str, field: str, load: Callable[[], T]) -> T | None:
        """What `load` gives, or None when memory ran out; then nothing of it is left.

        Raises:
            ModelBroken.
        """
        try:
            return load()
        except StudioError:
            raise
        except Exception as error:  # a damaged checkpoint may fail anywhere in three libraries
            traceback.clear_frames(error.__traceback__)
            if not device_answers(self._device):
                raise self._lose_device(error) from None
            if not memory.is_out_of_memory(error):
                log.warning("%s cannot be loaded", title, exc_info=error)
                reason = _one_line(error)
                raise ModelBroken(f"{title}: its checkpoint cannot be loaded: {reason}", field=field) from None
        log.warning("out of memory while loading %s", title)
        memory.give_back()
        return None

    def _load(self, entry: Entry, precision: str, why: str, progress: Progress) -> LoadedModel:
        folder = entry.folder or _snapshot(entry)
        with _no_network():
            whole = not backends.reads_layer_by_layer(self.settings, self._device)
            lm, compression = load_modules(entry, folder, self._device, precision, whole=whole)
        _check_match(entry, lm, compression)
        digest = checkpoint_hash(folder, self.settings.cache_dir)
        follower = compression.follower() if hasattr(compression, "follower") else None
        facts = ModelFacts(
            model=entry.id, checkpoint_hash=digest, precision=precision, frame_rate_hz=float(compression.frame_rate),
            sample_rate_hz=int(compression.sample_rate), channels=int(compression.channels),
            codebooks=int(compression.num_codebooks), cardinality=int(compression.cardinality),
            max_window_s=float(lm.cfg.dataset.segment_duration),
            melody="self_wav" in lm.condition_provider.conditioners,
            follow=follower.follow if follower else None, guide=follower.guide if follower else None,
            complete=follower.complete if follower else None,
        )  # fmt: skip
        engine = self._engine(entry, folder, lm, facts, progress)
        reasons = [text for text in (engine.info.why, self._device_why, why) if text]
        info = engine.info.model_copy(update={"why": "; ".join(reasons)})
        return LoadedModel(
            info=self.catalog.info(entry.id, loaded=entry.id), checkpoint_hash=digest,
            engine=_GuardedEngine(engine, info, lambda: self._guard(entry)),
            codec=Codec(compression, self._device, guard=lambda: self._guard(entry), own=True), engine_info=info,
            sample_rate_hz=facts.sample_rate_hz, frame_rate_hz=facts.frame_rate_hz, channels=facts.channels,
            codebooks=facts.codebooks, max_window_s=facts.max_window_s, compression=compression,
        )  # fmt: skip

    def _engine(self, entry: Entry, folder: Path, lm: Any, facts: ModelFacts, progress: Progress) -> Engine:
        def converted(done: int, total: int) -> None:
            progress("preparing", done, total, None)

        try:
            return backends.choose(self.settings, lm, self._device, facts, converted)
        except backends.NeedsWholeModel:
            with _no_network():
                lm, _ = load_modules(entry, folder, self._device, "float32", whole=True)
            return backends.choose(self.settings, lm, self._device, replace(facts, precision="float32"), converted)

    # ---------------------------------------------------------------------------------------- out of memory
    @contextmanager
    def _guard(self, entry: Entry) -> Iterator[None]:
        """Turn a lack of memory into OutOfMemory, and a card that is gone into DeviceLost.

        The model is let go then, so that the next job has room, or another device.
        """
        try:
            yield
        except Exception as error:  # only looked at; what is neither goes on unchanged
            if not isinstance(error, StudioError) and not device_answers(self._device):
                traceback.clear_frames(error.__traceback__)
                raise self._lose_device(error) from None
            if not memory.is_out_of_memory(error):
                raise
            log.warning("out of memory while generating with %s: %s", entry.id, _one_line(error))
            # The frames of the failed step hold its tensors for as long as the error lives.
            traceback.clear_frames(error.__traceback__)
        else:
            return
        rendering = self._loaded is not None and self._loaded.diffusion is not None
        self._let_go()
        memory.give_back()
        raise self._out_of_memory(entry, "diffusion" if rendering else "codec")

    def _lose_device(self, error: Exception | None = None) -> DeviceLost:
        """Go on without a card that does not answer: until the program is started again the CPU computes."""
        lost, name = self._device, self._device_name
        log.error("%s (%s) does not answer any more: the CPU computes from now on", lost, name, exc_info=error)
        with suppress(RuntimeError):  # what lies on it is lost with it
            self._let_go()
        self._device, self._device_name = "cpu", device_name("cpu")
        self._device_why = f"{lost} stopped answering"
        self._on_status()
        return DeviceLost(
            f"{name} stopped answering while it computed. Try again: the CPU takes over, more slowly. To use the card"
            " again, start the program anew"
        )

    def _out_of_memory(self, entry: Entry, decoder: Decoder = "codec") -> OutOfMemory:
        fits = self.fits(entry, decoder)
        words = ", ".join(f"{fit['model']} in {fit['precision']}" for fit in fits)
        advice = f"what would fit: {words}" if fits else "close other programs, or make the music shorter"
        title, other = entry.title, ""
        if decoder == "diffusion":
            title, other = f"{title} with {DIFFUSION.name}", "; the decoder 'codec' takes less"
        return OutOfMemory(
            f"{title} needs more memory than there is; {advice}{other}", field="model", details={"fits": fits}
        )

    def preflight(self, model_id: str, decoder: Decoder = "codec") -> dict[str, Any]:
        """Whether the model has room in memory with this decoder, before anyone asks for it.

        Returns:
            {"needs_bytes", "free_bytes", "fits", "fits_with"}: in the least precision it would be tried in; what
            another loaded model holds counts as free, because that is let go first.
        Raises:
            UnknownModel.
        """
        entry = self.catalog.entry(model_id)
        device = self._device or "cpu"
        with self._lock:
            loaded = self._loaded
        free = memory.available_bytes(device)
        if loaded is not None and self._has(model_id, decoder):
            needs = memory.estimate_bytes(entry, loaded.engine_info.precision, decoder)
            return {"needs_bytes": needs, "free_bytes": free, "fits": True, "fits_with": []}
        if loaded is not None:
            held: Decoder = "codec" if loaded.diffusion is None else "diffusion"
            free += memory.estimate_bytes(self.catalog.entry(loaded.info.id), loaded.engine_info.precision, held)
        ladder = backends.ladder(self.settings, device)
        needs = min(memory.estimate_bytes(entry, precision, decoder) for precision, _ in ladder)
        fits = needs <= free
        others = [] if fits else self.fits(entry, decoder)
        return {"needs_bytes": needs, "free_bytes": free, "fits": fits, "fits_with": others}

    def step_bytes(self, model_id: str, seconds: float) -> int:
        """What each step of so much music reads: in the precision the model has, or would be tried in first.

        Raises:
            UnknownModel.
        """
        entry = self.catalog.entry(model_id)
        with self._lock:
            loaded = self._loaded
        if loaded is not None and loaded.info.id == model_id:
            return memory.step_bytes(entry, loaded.engine_info.precision, seconds)
        return memory.step_bytes(entry, backends.ladder(self.settings, self._device or "cpu")[0][0], seconds)

    def fits(self, entry: Entry, decoder: Decoder = "codec") -> list[dict[str, str]]:
        """What would fit the memory that is free: the same model in less, then other models, the largest first."""
        free = memory.available_bytes(self._device or "cpu")
        ladder = [p for p, _ in backends.ladder(replace(self.settings, precision="auto"), self._device or "cpu")]
        others = sorted(
            (
                other
                for other in self.catalog.entries()
                if other.shape and other.id != entry.id and not other.problem
                if decoder == "codec" or other.diffusion
            ),
            key=lambda other: other.shape.parameters if other.shape else 0,
            reverse=True,
        )
        sizes = {
            (model.id, precision): memory.estimate_bytes(model, precision, decoder)
            for model in (entry, *others)
            for precision in ladder
        }
        tried = sizes[entry.id, ladder[-1]]
        found = [
            {"model": model, "precision": precision}
            for (model, precision), size in sizes.items()
            if size <= free and (size < tried or (model == entry.id and precision != ladder[0]))
        ]
        return found[:FITS_SHOWN]


class _GuardedEngine:
    """An engine whose lack of memory is the manager's OutOfMemory."""

    def __init__(self, engine: Engine, info: EngineInfo, guard: Callable[[], Any]) -> None:
        self._engine, self._info, self._guard = engine, info, guard

    @property
    def info(self) -> EngineInfo:
        return self._info

    def generate(self, spec: GenerationSpec, sink: Sink) -> Codes:
        with self._guard():
            return self._engine.generate(spec, sink)

    def close(self) -> None:
        self._engine.close()


# ------------------------------------------------------------------------------------------------- the modules
def load_modules(entry: Entry, folder: Path, device: str, precision: str, *, whole: bool = True) -> tuple[Any, Any]:
    """The LMModel and the CompressionModel of a folder, through audiocraft's own loaders, in eval mode on `device`.

    A stereo model's codec comes wrapped, so that it takes and gives two channels. Where the LMModel need not be
    `whole` it has one decoder layer, and `layer_states` with the parameters of all.
    """
    import torch

    if entry.loader == TINY_ID:
        tiny: Any = importlib.import_module("modules.musicgen.tiny")
        lm, compression = tiny.load_tiny(folder, device)
    else:
        from audiocraft.models import builders, loaders

        # Both loaders refuse a checkpoint that leaves a weight out.
        with compat.unfilled_weights():
            if whole:
                lm = loaders.load_lm_model(folder, device=device)
            else:
                with compat.layer_by_layer() as layers:
                    lm = loaders.load_lm_model(folder, device=device)
                lm.layer_states = layers
            compression = loaders.load_compression_model(folder, device=device)
        compression = builders.get_wrapped_compression_model(compression, lm.cfg)
    conditioners = lm.condition_provider.conditioners
    if "self_wav" in conditioners:
        follower = conditioners["self_wav"]
        # As MusicGen sets them: a melody shorter than the window goes round, and nothing of it is masked.
        follower.match_len_on_eval, follower._use_masking = True, False  # noqa: SLF001
    if precision in ("float32", "float16", "bfloat16"):
        lm = lm.to(getattr(torch, precision))
    return lm.eval(), compression.eval()


def _check_match(entry: Entry, lm: Any, compression: Any) -> None:
    ours = f"{lm.n_q} codebooks of {lm.card} tokens"
    codecs = f"{compression.num_codebooks} codebooks of {compression.cardinality} tokens"
    if ours != codecs:
        raise ModelBroken(f"{entry.title}: its language model has {ours}, its codec {codecs}", field="model")


def _what_to_do(parts: Sequence[Part]) -> str:
    """What may help when parts from the hub's cache cannot be loaded; which of them is damaged nobody knows."""
    folders = list(dict.fromkeys(hub.folder_name(part.repo) for part in parts))
    if not folders:
        return ""
    others = f" (if that does not help: {', '.join(folders[1:])})" if folders[1:] else ""
    return f"; delete the folder {folders[0]} in the Hugging Face cache{others} and fetch the model again"


def _snapshot(entry: Entry) -> Path:
    """The hub cache's folder of the model's repository."""
    path = hub.local(HubFile(entry.repo or "", LM_FILE))
    if path is None:
        raise ModelMissing(f"{entry.title}: {LM_FILE} is no longer in the hub's cache", field="model")
    return path.parent


def _files(part: Part) -> list[HubFile]:
    """The files to fetch for a part; where one may have several names, the hub is asked which it has."""
    if all(len(names) == 1 for names in part.files) and not part.optional:
        return [HubFile(part.repo, names[0]) for names in part.files]
    from huggingface_hub import HfApi

    try:
        there = set(HfApi().list_repo_files(part.repo))
    except Exception as error:  # the client's own errors and its transport's, which changes between versions
        raise DownloadFailed(f"{part.name}: the hub did not answer for {part.repo}: {_one_line(error)}") from error
    chosen = [next((name for name in names if name in there), names[0]) for names in part.files]
    return [HubFile(part.repo, name) for name in [*chosen, *(name for name in part.optional if name in there)]]


def checkpoint_hash(folder: Path, cache_dir: Path) -> str:
    """sha256 of the language model's file."""
    path = next(p for p in (folder / (Path(LM_FILE).stem + ".safetensors"), folder / LM_FILE) if p.is_file())
    return file_hash(path, cache_dir)


def file_hash(path: Path, cache_dir: Path) -> str:
    """sha256 of a file of weights: the hub's own name for it, or reckoned once and kept in `cache_dir`."""
    blob = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    stat = path.stat()
    key = f"{path.resolve()}:{stat.st_mtime_ns}:{stat.st_size}"
    store = cache_dir / "checkpoint-hashes.json"
    try:
        known = dict(json.loads(store.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = hub.sha256_of(path)
        cache_dir.mkdir(parents=True, exist_ok=True)
        disk.write_atomic(store, json.dumps(known).encode())
    return str(known[key])


# -------------------------------------------------------------------------------------------------- the machine
def choose_device(asked: str) -> tuple[str, str]:
    """The device to run on, and why.

    Raises:
        InvalidParameter: the one asked for is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked != "auto":
        if not there[asked]:
            raise InvalidParameter(f"--device {asked}: this machine or this torch has none; try --device auto")
        return asked, f"--device {asked}"
    return next((name, f"{name} is the fastest device here") for name in there if there[name])


def device_answers(device: str) -> bool:
    """Whether the device still computes: after a fault, a reset or an unplugging every call to a card fails."""
    if device in ("", "cpu"):
        return True
    import torch

    try:
        return float(torch.ones(1, device=device).sum().item()) == 1.0
    except RuntimeError as error:
        return memory.is_out_of_memory(error)


def device_name(device: str) -> str:
    """What the device is called."""
    import torch

    if device == "cuda":
        return str(torch.cuda.get_device_name())
    cpuinfo = Path("/proc/cpuinfo")
    if device == "cpu" and cpuinfo.is_file():
        found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _set_threads(asked: int) -> None:
    import psutil
    import torch

    # Two threads on one core's two halves only take turns.
    torch.set_num_threads(asked or psutil.cpu_count(logical=False) or os.cpu_count() or 1)


def _forbid_the_network() -> None:
    """--offline, for every library that may want the hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True


@contextmanager
def _no_network() -> Iterator[None]:
    """Loading reads the cache only: everything was fetched before, with progress and cancel."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _one_line(error: BaseException) -> str:
    """The gist of a library's error, without paths and addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = " ".join(lines[:2]) if lines else type(error).__name__
    words = re.sub(r"\s?(?:for url: )?\S+://\S+", "", words)
    return re.sub(r"(?:[A-Za-z]:)?[/\\][^\s'\"]*[/\\]", "", words)[:240]
