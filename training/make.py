"""Make the embedded model, stage by stage; every stage resumes from its checkpoint.

    python -m training.make --stage lm --minutes 30 --device cuda
    python -m training.make --stage lm --minutes 10 --long --guided --decay      the last minutes
    python -m training.make --stage blend --other PLAIN.pt             lm.pt becomes the mean of the two
    python -m training.make --stage lm --base models/tiny --minutes 10  go on from the shipped weights
    python -m training.make --stage codec|export|classifier|evaluate|melody|separator

Checkpoints go to --work (default .cache/training), the finished model to --out (default models/).
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

log = logging.getLogger("training")
STAGES = ("codec", "lm", "blend", "export", "classifier", "evaluate", "melody", "separator")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--work", type=Path, default=Path(".cache/training"))
    parser.add_argument("--out", type=Path, default=Path("models"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=400, help="evaluate: held-out prompts, half of them in Russian")
    parser.add_argument("--seconds", type=float, default=10.0, help="evaluate: length of a clip")
    parser.add_argument("--long", action="store_true", help="lm: windows of the model's whole length")
    parser.add_argument("--base", type=Path, help="lm: go on from this finished model where there is no checkpoint")
    parser.add_argument("--other", type=Path, help="blend: the checkpoint to average lm.pt with")
    parser.add_argument("--guided", action="store_true", help="lm: learn what sampling with guidance gives")
    parser.add_argument("--decay", action="store_true", help="lm: bring the learning rate to zero over these minutes")
    parser.add_argument("--batch", type=int, default=0, help="lm: clips a step; a GPU likes 128")
    parser.add_argument("--layers", type=int, default=0, help="lm: layers of a model begun now")
    parser.add_argument("--dim", type=int, default=0, help="lm: width of a model begun now, a multiple of 64")
    return parser.parse_args(argv)


def _train_lm(args: argparse.Namespace) -> None:
    from training import lm

    asked = {name: getattr(args, name) for name in ("layers", "dim") if getattr(args, name)}
    begun = (args.work / "lm.pt").exists()
    asked["batch"] = args.batch or (0 if begun else lm.Recipe.batch)  # 0 keeps the checkpoint's
    how = {name: getattr(args, name) for name in ("decay", "long", "guided", "base")}
    lm.train(args.work / "lm.pt", args.minutes, args.device, lm.Recipe(**asked), **how)


def main(argv: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args = parse(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    import torch

    torch.set_num_threads(args.threads)
    if args.stage == "lm":
        _train_lm(args)
    elif args.stage == "blend":
        from training import lm

        lm.blend(args.other, args.work / "lm.pt", args.work / "lm.pt")
    else:
        from training import finish

        finish.run(args)


if __name__ == "__main__":
    main()
