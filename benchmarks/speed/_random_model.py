"""Writes a model of the true architecture with random weights in bfloat16: _random_model.py FAMILY FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import CLIPTokenizer

import lorimer.families
from lorimer import registry
from lorimer.families._clip_vocabulary import clip_merges, clip_vocabulary

CONFIGS = Path(lorimer.families.__file__).parent / "_configs"


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    family, configs = registry.get("family", name), CONFIGS / name
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    index: dict[str, object] = {"_class_name": family.pipeline, "_diffusers_version": "0.42.1"}
    for part, what in family.parts.items():
        index[part] = [what.library, what.cls or "DDPMScheduler"]
        if what.kind == "tokenizer":
            _tokenizer(configs / part).save_pretrained(folder / part)
        elif what.kind == "scheduler":
            _scheduler(configs / part).save_pretrained(folder / part)
        else:
            _network(what, configs / part).save_pretrained(folder / part, max_shard_size="20GB")
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _tokenizer(config: Path) -> CLIPTokenizer:
    options = json.loads((config / "tokenizer_config.json").read_text(encoding="utf-8"))
    merges = clip_merges()
    options.pop("tokenizer_class", None)
    return CLIPTokenizer(vocab=clip_vocabulary(merges), merges=merges, **options)


def _scheduler(config: Path) -> object:
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_config(DDPMScheduler.load_config(config))


def _network(part: object, config: Path) -> object:
    import diffusers
    import transformers

    if part.library == "diffusers":
        cls = getattr(diffusers, part.cls)
        return cls.from_config(cls.load_config(config)).to(torch.bfloat16)
    cls = getattr(transformers, part.cls)
    return cls(cls.config_class.from_pretrained(config)).to(torch.bfloat16)


if __name__ == "__main__":
    main()
