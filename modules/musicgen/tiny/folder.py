"""Read an embedded-model folder: the language model and the codec, from safetensors and two readable configs.

config.yaml, state_dict.safetensors: audiocraft's `xp.cfg` and `best_state` of the language model.
compression_config.yaml, compression_state_dict.safetensors: the same for the codec.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modules.musicgen import compat

compat.prepare()

import torch  # noqa: E402
from audiocraft.models.encodec import CompressionModel  # noqa: E402
from audiocraft.models.lm import LMModel  # noqa: E402
from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # noqa: E402
from audiocraft.modules.conditioners import ConditionFuser, ConditioningProvider  # noqa: E402
from audiocraft.modules.transformer import set_efficient_attention_backend  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from modules.musicgen.tiny.codec import LayeredCodec  # noqa: E402
from modules.musicgen.tiny.text import MusicWords  # noqa: E402


def build_lm(config: dict[str, Any], device: str) -> LMModel:
    """An audiocraft LMModel with our text conditioner, weights not yet loaded."""
    set_efficient_attention_backend("torch")  # audiocraft's default asks for xformers
    arch = dict(config["transformer_lm"])
    provider = ConditioningProvider(
        {"description": MusicWords(arch["dim"], **config["conditioners"]["description"]["music_words"])}, device=device
    )
    fuser = dict(config["fuser"])
    methods = {name: list(fuser.pop(name)) for name in ("sum", "prepend", "cross", "input_interpolate")}
    guidance = config["classifier_free_guidance"]
    lm = LMModel(
        DelayedPatternProvider(arch["n_q"], **config["codebooks_pattern"]["delay"]),
        provider,
        ConditionFuser(methods, **fuser),
        cfg_dropout=guidance["training_dropout"],
        cfg_coef=guidance["inference_coef"],
        device=device,
        dtype=torch.float32,
        **arch,
    )
    return lm.to(device)


def _plain(config: Any) -> dict[str, Any]:
    plain: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    return plain


def load(folder: Path, device: str) -> tuple[LMModel, CompressionModel]:
    """The folder's models, in float32, in evaluation mode, on `device`.

    Raises:
        OSError: a file is missing. RuntimeError: the weights do not fit the configs.
    """
    config: Any = OmegaConf.load(folder / "config.yaml")
    lm = build_lm(_plain(config), device)
    weights = load_file(folder / "state_dict.safetensors", device=device)
    lm.load_state_dict({name: value.float() for name, value in weights.items()})
    lm.cfg = config
    shape = _plain(OmegaConf.load(folder / "compression_config.yaml"))["layered_codec"]
    codec = LayeredCodec(**shape)
    codec.load_state_dict(load_file(folder / "compression_state_dict.safetensors"))
    return lm.eval(), codec.to(device).eval()
