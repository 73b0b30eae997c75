"""`lorimer chat`: talk with a language model that has an adapter, word by word in the terminal."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

from lorimer.cli._options import AdapterSource, AsJson, BaseModel
from lorimer.errors import UsageError

_HELP = "/strength 0.5 sets the adapter's, /reset forgets the conversation, /quit ends"


def chat(
    source: AdapterSource,
    model: BaseModel = None,
    strength: Annotated[float, typer.Option(metavar="NUMBER", help="0 is the base model.")] = 1.0,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN|FILE[=STRENGTH],...", help="Further adapters; may be repeated."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Answer this and end; may be repeated, each by itself."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A system message; by default that of the run.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, metavar="NUMBER", help="0 says the likeliest word each time.")
    ] = 0.7,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="SHARE", help="Draw among the likeliest words.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Fixes what is drawn.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="NUMBER", help="Length of an answer.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Talk with a language model and its adapter.

    A model that learned plain texts or completions goes on with what it is given; others answer.
    Without --prompt a conversation begins, in which /strength NUMBER, /reset and /quit are understood.
    """
    import lorimer
    from lorimer.cli._runs import adapter_file
    from lorimer.cli._texts import base_of, put_on, run_recipe
    from lorimer.tasks._generation import PLAIN_KINDS, prompt_ids, stream
    from lorimer.tasks._language_files import load_causal

    if as_json and not prompt:
        raise UsageError("--json needs --prompt")
    recipe = run_recipe(source, "text-generation")
    network, tokenizer = load_causal(base_of(source, recipe, model))
    strengths = put_on(network, source, strength, adapter or [])
    told = system if system is not None else (recipe.data.system if recipe else None)
    plain = lorimer.read(adapter_file(source)).metadata.get("text_kind") in PLAIN_KINDS
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}

    def say(messages: list[dict[str, str]], quiet: bool) -> str:
        parts = []
        with lorimer.strength(network, strengths):
            ids = prompt_ids(tokenizer, messages, told, plain=plain)
            for part in stream(network, tokenizer, ids, seed=seed, **options):
                parts.append(part)
                if not quiet:
                    typer.echo(part, nl=False)
        if not quiet:
            typer.echo()
        return "".join(parts)

    for text in prompt or []:
        said = say([{"role": "user", "content": text}], quiet=as_json)
        if as_json:
            typer.echo(json.dumps({"prompt": text, "answer": said, "strength": strength}, ensure_ascii=False))
    if prompt:
        return
    typer.echo(_HELP)
    conversation: list[dict[str, str]] = []
    while (text := _next_line()) not in (None, "/quit"):
        if text == "/reset":
            conversation = []
        elif text.startswith("/strength"):
            _set_strength(strengths, text)
        elif text.startswith("/"):
            typer.echo(_HELP)
        elif text:
            conversation.append({"role": "user", "content": text})
            conversation.append({"role": "assistant", "content": say(conversation, quiet=False)})


def _next_line() -> Any:
    """What a person types; None at the end of the input."""
    typer.echo("> ", nl=False)
    try:
        return input().strip()
    except EOFError:
        return None


def _set_strength(strengths: dict[str, float], text: str) -> None:
    try:
        strength = float(text.removeprefix("/strength"))
    except ValueError:
        strength = math.nan
    if math.isfinite(strength):
        strengths["default"] = strength
    else:
        typer.echo(_HELP)
