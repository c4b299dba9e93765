"""What a generation is, whoever runs it: the request, the listener, the engine, and the plan of its windows.

Codes are numpy int64 [K, T]: K codebooks, T frames, 50 frames a second for MusicGen, each value a token in
[0, card). Nothing here imports torch, so that the web side can build requests before the stack is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from modules.contract import EngineInfo, InvalidParameter

if TYPE_CHECKING:
    from modules.audio import Clip

Codes: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GenerationSpec:
    """One generation, with audiocraft's meaning of every parameter.

    Args:
        prompt: the text every window is conditioned on.
        duration_s: seconds of NEW music; the prompt codes are not counted.
        top_k: keep this many most likely tokens; 0 keeps all. Ignored when top_p > 0.
        top_p: keep the smallest set of tokens with this probability; 0 turns it off.
        temperature: 0 is argmax.
        cfg_coef: classifier-free guidance; 1 is the conditional model alone.
        seeds: one for each take; a take's tokens depend on its own seed and on no other take.
        melody: clip whose melody the music follows, where the model can (ModelFacts.takes_melody).
        prompt_codes: int64 [K, T], the context to go on from, already encoded.
        two_step_cfg: run the conditional and the unconditional pass one after the other.
        extend_stride_s: seconds of new music each window past the first adds.
    """

    prompt: str
    duration_s: float
    seeds: tuple[int, ...]
    top_k: int = 250
    top_p: float = 0.0
    temperature: float = 1.0
    cfg_coef: float = 3.0
    melody: Clip | None = None
    prompt_codes: Codes | None = None
    two_step_cfg: bool = False
    extend_stride_s: float = 18.0


class Sink(Protocol):
    """Whoever follows a generation."""

    def progress(self, done_steps: int, total_steps: int) -> None:
        """Called after every decoder step, `done_steps` rising by one up to `total_steps` over all takes and windows.
        While a context is read the last number may be said again.

        Raising from here (Cancelled) ends the generation at this step.
        """

    def frames(self, codes: Codes) -> None:
        """int64 [takes, K, n]: the next n finished frames of every take, in order, the prompt's frames left out."""


@dataclass(frozen=True)
class Course:
    """Codes that come of themselves: a sound once begun runs on through codes of its own.

    Args:
        following: int64 [K, card + 1], the code each one leads to; the special token stands last.
        held: float32 [K, card + 1], what is added to the logit of that one while the code before it is this.
    """

    following: Codes
    held: Floats


class Steering(Protocol):
    """What moves the sampling, frame by frame, whoever runs the decoder."""

    @property
    def course(self) -> Course: ...

    @property
    def sounding(self) -> Floats:
        """float32 [12], how much each pitch class sounds in what is followed."""

    def bias(self, start: int, stop: int) -> Floats:
        """float32 [stop - start, K, card] to add to the logits of the new frames from `start` to `stop`, counted from
        the generation's first new frame; -inf forbids a code. The same for every take."""


class Engine(Protocol):
    """Runs the decoder."""

    @property
    def info(self) -> EngineInfo:
        """Which backend, precision and device, and why."""

    def generate(self, spec: GenerationSpec, sink: Sink) -> Codes:
        """Generate every take.

        Returns:
            int64 [takes, K, T_new]: new frames only, T_new = int(duration_s * frame_rate).
        Raises:
            InvalidParameter: the model cannot do what the spec asks (a melody without a melody model, a prompt
                with another number of codebooks).
            OutOfMemory: nothing of this generation is left in memory.
            Whatever the sink raised, unwound.
        """

    def close(self) -> None:
        """Let go of everything the engine holds, weights included."""


@dataclass(frozen=True)
class ModelFacts:
    """What an engine must know about the model besides its modules."""

    model: str
    checkpoint_hash: str | None
    precision: str
    """Asked of the engine: float32, float16, bfloat16, int8 or int4."""
    frame_rate_hz: float
    sample_rate_hz: int
    channels: int
    codebooks: int
    cardinality: int
    max_window_s: float
    melody: bool
    """The model has a condition for a melody."""
    follow: Callable[[Clip], Steering] | None = field(default=None, compare=False)
    """What steers the sampling of a model without one, when its codes say which notes they are."""
    guide: Callable[[str, Codes], Steering | None] | None = field(default=None, compare=False)
    """What steers music that follows no melody, by the text and the context's codes int64 [K, T], T = 0 for none."""
    complete: Callable[[str, Codes, Steering | None], str] | None = field(default=None, compare=False)
    """The prompt with what it leaves open and the model needs, by the context's codes int64 [K, T] or the steering."""

    @property
    def takes_melody(self) -> bool:
        return self.melody or self.follow is not None

    @property
    def max_frames(self) -> int:
        return int(self.max_window_s * self.frame_rate_hz)

    def frames(self, seconds: float) -> int:
        """Whole frames in `seconds`, as audiocraft counts them."""
        return int(seconds * self.frame_rate_hz)

    def stride_frames(self, extend_stride_s: float) -> int:
        """New frames a later window adds. A model whose window is no longer than the stride asked for gets the same
        share of its window that 18 s are of 30 s."""
        asked = self.frames(extend_stride_s)
        return asked if 0 < asked < self.max_frames else max(1, self.max_frames * 3 // 5)


@dataclass(frozen=True)
class Window:
    """One run of the decoder over at most the model's window, in frames counted from the first frame of all.

    `start` is where the window's context begins, `known` where its new frames begin, `end` where they stop.
    """

    start: int
    known: int
    end: int

    @property
    def context(self) -> int:
        """Frames the window is given."""
        return self.known - self.start

    @property
    def new(self) -> int:
        """Frames the window adds."""
        return self.end - self.known

    @property
    def length(self) -> int:
        return self.end - self.start


def windows(prompt_frames: int, new_frames: int, max_frames: int, stride_frames: int) -> Iterator[Window]:
    """Cut a generation into windows: the first fills the model's window, each later one adds `stride_frames`.

    A prompt that fills the window leaves no room for anything new: it is heard from its end only, from the last
    `max_frames - stride_frames` frames.

    Args:
        prompt_frames: frames given before the first new one.
        new_frames: frames asked for.
        max_frames: the model's window.
        stride_frames: new frames a later window adds, in [1, max_frames).
    """
    if not 0 < stride_frames < max_frames:
        raise ValueError(f"stride of {stride_frames} frames does not fit a window of {max_frames}")
    total = prompt_frames + new_frames
    known = prompt_frames
    start = 0 if prompt_frames < max_frames else prompt_frames - (max_frames - stride_frames)
    while known < total:
        end = min(start + max_frames, total)
        yield Window(start, known, end)
        known = end
        start = max(start, end - (max_frames - stride_frames))


def plan(spec: GenerationSpec, facts: ModelFacts, prompt: Codes) -> list[Window]:
    """The windows of one generation after `prompt`, int64 [K, T]."""
    return list(
        windows(
            prompt.shape[1],
            facts.frames(spec.duration_s),
            facts.max_frames,
            facts.stride_frames(spec.extend_stride_s),
        )
    )


def steering(spec: GenerationSpec, facts: ModelFacts, prompt: Codes) -> Steering | None:
    """What steers a generation; None where nothing does.

    Args:
        prompt: int64 [K, T], the context.
    Raises:
        InvalidParameter: there is nothing to follow in the melody.
    """
    if spec.melody is not None:
        return facts.follow(spec.melody) if facts.follow and not facts.melody else None
    return facts.guide(spec.prompt, prompt) if facts.guide else None


def completed(spec: GenerationSpec, facts: ModelFacts, prompt: Codes, steered: Steering | None) -> GenerationSpec:
    """The generation with its text as the model is given it.

    Args:
        prompt: int64 [K, T], the context.
        steered: what `steering` gave.
    """
    if facts.complete is None:
        return spec
    return replace(spec, prompt=facts.complete(spec.prompt, prompt, steered))


def check(spec: GenerationSpec, facts: ModelFacts) -> Codes:
    """Refuse what the model cannot do.

    Returns:
        the prompt codes, int64 [K, T], T = 0 when there are none.
    Raises:
        InvalidParameter: a melody for a model without one, prompt codes of another model.
    """
    if spec.melody is not None and not facts.takes_melody:
        raise InvalidParameter(
            f"audio_prompt: {facts.model} cannot follow a melody, choose melody or melody-large",
            field="audio_prompt",
        )
    if spec.prompt_codes is None:
        return np.zeros((facts.codebooks, 0), np.int64)
    codes = np.asarray(spec.prompt_codes, np.int64)
    if codes.ndim != 2 or codes.shape[0] != facts.codebooks:
        raise InvalidParameter(
            f"continuation: tokens of shape {codes.shape} do not fit {facts.model}, it has {facts.codebooks} codebooks",
            field="continuation",
        )
    if codes.size and not 0 <= codes.min() <= codes.max() < facts.cardinality:
        raise InvalidParameter(
            f"continuation: tokens outside 0 to {facts.cardinality - 1} are not {facts.model}'s", field="continuation"
        )
    return codes
