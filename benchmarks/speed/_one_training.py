"""One training in a process of its own, by lorimer, PEFT with `Trainer` or a plain loop, on the same data.

Prints one line of JSON: the held-out loss after every so many steps with the seconds of training until then
(evaluations not counted), seconds before the first step, and the high-water mark of memory.

Not called by hand: `time_to_quality.py` and others start it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BEGUN = psutil.Process().create_time()
SEED = 0


@dataclass
class Clock:
    """Seconds of training, held while the model is judged; and the most memory that training needed."""

    curve: list[dict[str, float]] = field(default_factory=list)
    startup: float = 0.0
    seconds: float = 0.0
    standing: int = 0  # bytes before the first step
    peak: int = 0
    written: int = 0
    _since: float | None = None

    def judge(self, step: int, evaluate: Callable[[], dict[str, float]]) -> None:
        if self._since is None:
            self.startup = time.time() - BEGUN
            self.standing = psutil.Process().memory_info().rss
        else:
            self.seconds += time.perf_counter() - self._since
            self.peak = max(self.peak, _high_water())
        self.curve.append({"step": step, "seconds": round(self.seconds, 2), **evaluate()})
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self._since = time.perf_counter()


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _high_water() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])


def lorimer_run(work: dict[str, Any], options: dict[str, Any], clock: Clock) -> None:
    """A run of `lorimer train`, its evaluations timed from outside."""
    from dataclasses import replace

    from lorimer import registry
    from lorimer.train.engine import train
    from lorimer.train.recipe import load_recipe

    task = registry.get("task", work["recipe"]["task"])
    evaluate, every, steps = task.evaluate, options["every"], options["steps"]

    def judged(self: Any, model: nn.Module) -> dict[str, float]:
        found: dict[str, float] = {}
        clock.judge(len(clock.curve) * every, lambda: found.update(evaluate(self, model)) or found)
        return found

    task.evaluate = judged
    if options.get("whole_logits"):
        from lorimer.tasks import text_generation

        head_of = text_generation.head_of
        text_generation.head_of = lambda model: replace(head_of(model), in_chunks=False)
    if options.get("padded"):
        from lorimer.tasks import text_classification

        text_classification.layers_of = lambda model: None
    with tempfile.TemporaryDirectory() as folder:
        fixed = [
            f"train.steps={steps}",
            f"train.learning_rate={options['rate']}",
            f"train.evaluate_every={every}",
            f"train.seed={options.get('seed', SEED)}",
            f"output={folder}/run",
        ]
        train(load_recipe(work["recipe"], [*fixed, *options.get("recipe", [])], {}))
        clock.written = _bytes_in(Path(folder) / "run" / "adapter" / "peft")


def trainer_run(work: dict[str, Any], options: dict[str, Any], clock: Clock) -> None:
    """PEFT's `get_peft_model` in transformers' `Trainer`, as its users have it."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    torch.manual_seed(options.get("seed", SEED))
    made = _chat if work["recipe"]["task"] == "text-generation" else _sentiment
    model, kind, training, collate, evaluate = made(work["recipe"])
    adapter = work["recipe"]["adapter"]
    if not options.get("in_full"):
        config = LoraConfig(
            r=adapter["rank"], lora_alpha=adapter["alpha"], target_modules="all-linear", task_type=kind
        )
        model = get_peft_model(model, config)

    class Judge(TrainerCallback):
        def on_train_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            clock.judge(0, lambda: evaluate(model))

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % options["every"] == 0:
                clock.judge(state.global_step, lambda: evaluate(model))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=options["steps"],
            per_device_train_batch_size=work["trainer_batch"],
            learning_rate=options["rate"],
            lr_scheduler_type=work["recipe"]["train"]["schedule"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=options.get("seed", SEED),
            use_cpu=not torch.cuda.is_available(),
            **options.get("trainer", {}),
        )
        Trainer(model, arguments, data_collator=collate, train_dataset=training, callbacks=[Judge()]).train()
        model.save_pretrained(f"{folder}/written")
        clock.written = _bytes_in(Path(folder) / "written")


def _recipe(values: dict[str, Any]) -> Any:
    from lorimer.train.recipe import load_recipe

    return load_recipe({**values, "output": "runs/none"}, [], {})


def _chat(values: dict[str, Any]) -> Any:
    """The texts that lorimer's recipe names, one a row, labels where they are learned."""
    from transformers import DataCollatorForSeq2Seq

    from lorimer.tasks._language_files import load_causal
    from lorimer.tasks._text_data import read_texts

    model, tokenizer = load_causal(values["model"])
    recipe = _recipe(values)
    texts = read_texts(recipe, recipe.data, tokenizer, packing=False)

    def example(row: Any) -> dict[str, Any]:
        labels = [token if learn else -100 for token, learn in zip(row.ids, row.learn, strict=True)]
        return {"input_ids": list(row.ids), "attention_mask": [1] * len(row.ids), "labels": labels}

    held_out = [example(row) for row in texts.validation]
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True)

    @torch.no_grad()
    def evaluate(model: Any) -> dict[str, float]:
        total = count = 0.0
        model.eval()
        for begin in range(0, len(held_out), 4):
            batch = collate([dict(row) for row in held_out[begin : begin + 4]])
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch.to(model.device)).logits[:, :-1].float().cpu()
            total += cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="sum").item()
            count += float((labels >= 0).sum())
        model.train()
        return {"validation_loss": total / count}

    rows = [example(texts.training[place]) for place in range(len(texts.training))]  # type: ignore[arg-type]
    return model, "CAUSAL_LM", rows, collate, evaluate


def _sentiment(values: dict[str, Any]) -> Any:
    from transformers import DataCollatorWithPadding

    from lorimer.tasks.text_classification import TextClassification

    task = TextClassification(_recipe(values))  # its own reading, so that labels and tokens are the same
    model = task.model()
    training, tokenizer = task.data(model), task.tokenizer
    held_out: Any = task.held_out
    order = sorted(range(len(held_out)), key=lambda place: held_out.lengths[place])
    collate = DataCollatorWithPadding(tokenizer)

    def example(row: dict[str, Any]) -> dict[str, Any]:
        return {
            **{name: row[name] for name in row if name not in ("label", "weight")},
            "labels": row["label"],
        }

    @torch.no_grad()
    def evaluate(model: Any) -> dict[str, float]:
        model.eval()
        logits, labels = [], []
        for begin in range(0, len(order), 32):
            batch = collate([example(held_out[place]) for place in order[begin : begin + 32]]).to(
                model.device
            )
            labels.append(batch.pop("labels").cpu())
            logits.append(model(**batch).logits.float().cpu())
        model.train()
        said, right = torch.cat(logits), torch.cat(labels)
        accuracy: Tensor = (said.argmax(1) == right).float().mean()
        return {"validation_loss": cross_entropy(said, right).item(), "accuracy": accuracy.item()}

    return model, "SEQ_CLS", [example(row) for row in training.rows], collate, evaluate


def plain_run(work: dict[str, Any], options: dict[str, Any], clock: Clock) -> None:
    """Every weight of a classifier of pictures trained in a plain loop, on the same pictures in the same
    order: AdamW, a rate that falls to 0, norms that go on gathering their statistics where asked."""
    from lorimer.tasks.image_classification import ImageClassification
    from lorimer.train.order import Order, SeededExamples
    from lorimer.train.recipe import load_recipe
    from lorimer.train.seeding import seed_all

    seed, steps, every = options.get("seed", SEED), options["steps"], options["every"]
    fixed = ["output=runs/none", f"train.seed={seed}"]
    task = ImageClassification(load_recipe(work["recipe"], [*fixed, *options.get("recipe", [])], {}))
    seed_all(seed, "model")
    model = task.model()
    data: Any = task.data(model)
    batch_size = task.recipe.train.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), options["rate"], weight_decay=0.01)
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        return task.evaluate(model.eval())

    clock.judge(0, evaluate)
    examples = SeededExamples(data, seed)
    for step, places in enumerate(Order(len(data), batch_size, 1, seed).batches(0, steps), 1):
        model.train(options.get("gathers", False))
        task.loss(model, task.collate([examples[place] for place in places])).backward()
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        if step % every == 0:
            clock.judge(step, evaluate)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), f"{folder}/model.pt")
        clock.written = _bytes_in(Path(folder))


RUNS = {"lorimer": lorimer_run, "trainer": trainer_run, "plain": plain_run}


def one_training(program: str, work: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """What came of it, and what it took."""
    clock = Clock()
    RUNS[program](work, options, clock)
    return {
        "curve": clock.curve,
        "startup": round(clock.startup, 2),
        "standing_bytes": clock.standing,
        "peak_bytes": clock.peak,
        "written": clock.written,
    }


def main() -> None:
    print("\n" + json.dumps(one_training(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
