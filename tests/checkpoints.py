"""Makes checkpoints that are small but real: the files, keys and shapes' logic of the published ones, random weights.

Everything is made offline and from a fixed seed. Call after `compat.import_stack()`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modules.musicgen import compat

CARD = 128
CODEBOOKS = 4
DIM = 32
WINDOW_S = 4.0
"""The window of the small models; the published ones have 30 s."""
SAMPLE_RATE_HZ = 3200
FRAME_RATE_HZ = 50
T5_DIM = 768
"""t5-base's width: audiocraft takes it from the name."""
DEMUCS_SIGNATURE = "955717e8"

SMALL, MEDIUM, MELODY, STEREO = (f"facebook/musicgen-{name}" for name in ("small", "medium", "melody", "stereo-small"))
T5_REPO, ENCODEC_REPO, DEMUCS_REPO = "t5-base", "facebook/encodec_32khz", "adefossez/HTDemucs"
DIFFUSION_REPO = "facebook/multiband-diffusion"

WORDS = (
    "warm", "lo-fi", "piano", "techno", "drums", "bass", "slow", "fast", "bright", "dark", "ambient", "pad", "guitar",
    "strings", "at", "bpm", "in", "key", "major", "minor", "jazz", "rock", "a", "and", "the", "of", "with",
)  # fmt: skip


def lm_config(*, melody: bool = False, stereo: bool = False, dim: int = DIM, layers: int = 2) -> dict[str, Any]:
    """What `xp.cfg` of a MusicGen says, at a small size."""
    conditioners: dict[str, Any] = {
        "description": {
            "model": "t5",
            "t5": {"name": "t5-base", "finetune": False, "word_dropout": 0.3, "normalize_text": False},
        }
    }
    fuser: dict[str, Any] = {"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": [],
                             "prepend": [], "cross": ["description"], "input_interpolate": []}  # fmt: skip
    if melody:
        chroma = {"sample_rate": "${sample_rate}", "n_chroma": 12, "radix2_exp": 10, "argmax": True,
                  "match_len_on_eval": False, "eval_wavs": None, "n_eval_wavs": 100, "cache_path": "/tmp/none"}  # noqa: S108  # fmt: skip
        conditioners = {"self_wav": {"model": "chroma_stem", "chroma_stem": chroma}, **conditioners}
        fuser |= {"prepend": ["self_wav", "description"], "cross": []}
    codebooks = CODEBOOKS * (2 if stereo else 1)
    delays = [d for d in range(CODEBOOKS) for _ in range(2)] if stereo else list(range(CODEBOOKS))
    return {
        "lm_model": "transformer_lm",
        "sample_rate": SAMPLE_RATE_HZ,
        "channels": 2 if stereo else 1,
        "compression_model_checkpoint": "//pretrained/facebook/encodec_32khz",
        "compression_model_n_q": None,
        "interleave_stereo_codebooks": {"use": stereo, "per_timestep": False},
        "dataset": {"segment_duration": WINDOW_S},
        "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
        "attribute_dropout": {},
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": delays, "flatten_first": 0, "empty_initial": 0},
        },
        "transformer_lm": {
            "dim": dim, "num_heads": 4, "num_layers": layers, "hidden_scale": 4, "n_q": codebooks, "card": CARD,
            "dropout": 0.0, "emb_lr": None, "activation": "gelu", "norm_first": True, "bias_ff": False,
            "bias_attn": False, "bias_proj": False, "past_context": None, "causal": True, "custom": False,
            "memory_efficient": True, "attention_as_float32": False, "layer_scale": None,
            "positional_embedding": "sin", "xpos": False, "checkpointing": "none", "weight_init": "gaussian",
            "depthwise_init": "current", "zero_bias_init": True, "norm": "layer_norm", "cross_attention": False,
            "qk_layer_norm": False, "qk_layer_norm_cross": False, "attention_dropout": None, "kv_repeat": 1,
            "two_step_cfg": False,
        },
        "conditioners": {"args": {"merge_text_conditions_p": 0.25, "drop_desc_p": 0.5}, **conditioners},
        "fuser": fuser,
    }  # fmt: skip


def codec_config() -> dict[str, Any]:
    """What `xp.cfg` of an EnCodec says: 3,200 Hz in 50 frames a second."""
    return {
        "compression_model": "encodec",
        "sample_rate": SAMPLE_RATE_HZ,
        "channels": 1,
        "encodec": {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": "${sample_rate}",
                    "channels": "${channels}", "causal": False, "renormalize": False},
        "seanet": {
            "dimension": 16, "channels": "${channels}", "causal": False, "n_filters": 4, "n_residual_layers": 1,
            "ratios": [4, 4, 4], "activation": "ELU", "activation_params": {"alpha": 1.0}, "norm": "weight_norm",
            "norm_params": {}, "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 7,
            "dilation_base": 2, "pad_mode": "constant", "true_skip": True, "compress": 2, "lstm": 2,
            "disable_norm_outer_blocks": 0,
            "decoder": {"trim_right_ratio": 1.0, "final_activation": None, "final_activation_params": None},
            "encoder": {},
        },
        "rvq": {"n_q": CODEBOOKS, "q_dropout": False, "bins": CARD, "decay": 0.99, "kmeans_init": False,
                "kmeans_iters": 1, "threshold_ema_dead_code": 2},
    }  # fmt: skip


def yaml_of(config: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


def build_lm(config: dict[str, Any], seed: int = 0) -> Any:
    """audiocraft's LMModel of `config` without its conditioners' own downloads: only used for its weights."""
    import torch
    from audiocraft.models import builders
    from omegaconf import OmegaConf

    torch.manual_seed(seed)
    plain = {**config, "conditioners": {}, "device": "cpu", "dtype": "float32"}
    plain["transformer_lm"] = {**config["transformer_lm"]}
    plain["conditioners"] = None
    return builders.get_lm_model(OmegaConf.create(plain))


def lm_state(config: dict[str, Any], seed: int = 0, *, half: bool = True) -> dict[str, Any]:
    """The LM's `best_state`, the conditioners' projections included, as float16 (as published) or float32."""
    import torch

    lm = build_lm(config, seed)
    state = dict(lm.state_dict())
    dim = config["transformer_lm"]["dim"]
    for name, spec in config["conditioners"].items():
        if name == "args":
            continue
        width = T5_DIM if spec["model"] == "t5" else 12
        state[f"condition_provider.conditioners.{name}.output_proj.weight"] = torch.randn(dim, width) * width**-0.5
        state[f"condition_provider.conditioners.{name}.output_proj.bias"] = torch.zeros(dim)
    if "self_wav" in config["conditioners"]:
        window = 2 ** config["conditioners"]["self_wav"]["chroma_stem"]["radix2_exp"]
        state["condition_provider.conditioners.self_wav.chroma.spec.window"] = torch.hann_window(window)
    return {key: (value.half() if half else value).contiguous() for key, value in state.items()}


def codec_state(seed: int = 1) -> dict[str, Any]:
    import torch
    from audiocraft.models import builders
    from omegaconf import OmegaConf

    torch.manual_seed(seed)
    codec: Any = builders.get_compression_model(OmegaConf.create({**codec_config(), "device": "cpu"}))
    for layer in codec.quantizer.vq.layers:
        # Codes of real size: the fresh ones are so close together that every token would sound alike.
        layer._codebook.embed.normal_(0, 1.0)
    return {key: value.contiguous() for key, value in codec.state_dict().items()}


def make_lm(folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """Write state_dict.bin with the keys of a published checkpoint."""
    import torch

    config = lm_config(**options)
    package = {"best_state": lm_state(config, seed), "xp.cfg": yaml_of(config), "version": "0.0.2a2", "exported": True}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(package, folder / "state_dict.bin")
    return folder


def make_codec(folder: Path, *, pointer: str | None = None) -> Path:
    """Write compression_state_dict.bin: an EnCodec, or the small file that points at one on the hub."""
    import torch

    package: dict[str, Any] = (
        {"best_state": codec_state(), "xp.cfg": yaml_of(codec_config())} if pointer is None else {"pretrained": pointer}
    )
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({**package, "version": "0.0.2a2", "exported": True}, folder / "compression_state_dict.bin")
    return folder


def make_model(folder: Path, *, seed: int = 0, pointer: str | None = None, **options: Any) -> Path:
    """A whole model folder in audiocraft's form."""
    make_codec(folder, pointer=pointer)
    return make_lm(folder, seed=seed, **options)


def make_safetensors_model(folder: Path, *, studio: dict[str, Any] | None = None, **options: Any) -> Path:
    """A whole model folder in our form."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = lm_config(**options)
    save_file(lm_state(config), folder / "state_dict.safetensors")
    save_file(codec_state(), folder / "compression_state_dict.safetensors")
    extra = {"studio": studio} if studio else {}
    (folder / compat.config_name("state_dict.bin")).write_text(yaml_of({**config, **extra}))
    (folder / compat.config_name("compression_state_dict.bin")).write_text(yaml_of(codec_config()))
    return folder


def make_t5(folder: Path) -> Path:
    """A one-layer T5 as wide as t5-base, with a unigram tokenizer over a few words and every letter."""
    import torch
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [chr(c) for c in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(letter, -8.0) for letter in letters]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    config = T5Config(vocab_size=len(pieces) + 8, d_model=T5_DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    return folder


def make_encodec(folder: Path) -> Path:
    """EnCodec in the hub's own format, as `facebook/encodec_32khz` is kept."""
    import torch
    from transformers import EncodecConfig
    from transformers import EncodecModel as HubEncodec

    torch.manual_seed(3)
    config = EncodecConfig(
        sampling_rate=SAMPLE_RATE_HZ, upsampling_ratios=[4, 4, 4], num_filters=4, hidden_size=16, codebook_size=CARD,
        target_bandwidths=[CODEBOOKS * FRAME_RATE_HZ * 7 / 1000], use_causal_conv=False, norm_type="weight_norm",
        audio_channels=1, normalize=False,
    )  # fmt: skip
    HubEncodec(config).save_pretrained(folder)
    return folder


def make_htdemucs(folder: Path) -> Path:
    """htdemucs.yaml and one safetensors file whose metadata says how to build the model."""
    import torch
    from demucs.htdemucs import HTDemucs
    from safetensors.torch import save_file

    torch.manual_seed(4)
    kwargs: dict[str, Any] = {
        "sources": ["drums", "bass", "other", "vocals"], "audio_channels": 2, "samplerate": 44100, "segment": 2,
        "channels": 8, "t_layers": 1, "t_heads": 2, "bottom_channels": 16, "t_hidden_scale": 1.0,
    }  # fmt: skip
    model = HTDemucs(**kwargs)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htdemucs.yaml").write_text(f"models: ['{DEMUCS_SIGNATURE}']\n")
    metadata = {"klass": "demucs.htdemucs.HTDemucs", "args": "[]", "kwargs": json.dumps(kwargs)}
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / f"{DEMUCS_SIGNATURE}.safetensors", metadata)
    return folder


def diffusion_config(*, processor: bool, sample_rate_hz: int = SAMPLE_RATE_HZ) -> dict[str, Any]:
    """What the configuration of one band of Multi-Band Diffusion says, at a small size."""
    return {
        "sample_rate": sample_rate_hz, "channels": 1, "solver": "diffusion", "segment": "${dataset.segment_duration}",
        "dataset": {"segment_duration": 1, "name": None},
        "diffusion_unet": {
            "hidden": 8, "depth": 3, "res_blocks": 1, "norm_groups": 4, "kernel": 8, "stride": 4, "growth": 1,
            "max_channels": 10_000, "dropout": 0.0, "emb_all_layers": True, "bilstm": not processor,
            "codec_dim": 16, "transformer": processor, "cross_attention": False,
        },
        "processor": {"name": "multi_band_processor", "use": processor, "n_bands": 8, "num_samples": 10_000,
                      "power_std": 0.4},
        "schedule": {
            "repartition": "power", "variable_step_batch": True, "beta_t0": 1e-5, "beta_t1": 2.9e-2, "beta_exp": 7.5,
            "num_steps": 1000, "variance": "beta", "clip": 5.0, "rescale": 1.0, "n_bands": None, "noise_scale": 1.0,
        },
    }  # fmt: skip


def make_diffusion(folder: Path, **options: Any) -> Path:
    """mbd_musicgen_32khz.th with two bands, one of them with a processor; the configurations are pickled objects."""
    import torch
    from audiocraft.models import builders
    from omegaconf import OmegaConf

    torch.manual_seed(8)
    package: dict[Any, Any] = {"sample_rate": SAMPLE_RATE_HZ, "n_bands": 2}
    for band in range(2):
        config: Any = OmegaConf.create(diffusion_config(processor=band == 1, **options))
        processor = builders.get_processor(config.processor, sample_rate=SAMPLE_RATE_HZ)
        if band == 1:
            processor.project_sample(torch.randn(4, 1, SAMPLE_RATE_HZ) * 0.1)
        network = builders.get_diffusion_model(config)
        state = {"model_state": network.state_dict(), "processor_state": processor.state_dict()}
        package[band] = {"cfg": config, **state}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(package, folder / compat.DIFFUSION_FILE)
    return folder


def make_hub(root: Path) -> Path:
    """Every repository the program may ask a hub for, as folders `root/<owner>/<name>`."""
    make_model(root / SMALL)
    make_model(root / MEDIUM, seed=5, pointer=ENCODEC_REPO)
    make_model(root / MELODY, seed=6, melody=True)
    make_model(root / STEREO, seed=7, stereo=True)
    make_t5(root / T5_REPO)
    make_encodec(root / ENCODEC_REPO)
    make_htdemucs(root / DEMUCS_REPO)
    return root


def put_in_cache(cache: Path, hub: Path, *repos: str) -> None:
    """Lay repositories of `make_hub` into a hub cache as the hub's client does, without a server."""
    import hashlib

    for repo in repos:
        home = cache / ("models--" + repo.replace("/", "--"))
        commit = hashlib.sha1(repo.encode(), usedforsecurity=False).hexdigest()
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text(commit)
        (home / "blobs").mkdir(exist_ok=True)
        snapshot = home / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for file in sorted((hub / repo).iterdir()):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            blob, link = home / "blobs" / digest, snapshot / file.name
            if not link.exists():
                blob.write_bytes(file.read_bytes())
                link.symlink_to(Path("..") / ".." / "blobs" / digest)
