"""`lorimer extract`: a LoRA from a fine-tuned model minus its base."""

from __future__ import annotations

from typing import Annotated

import typer

from lorimer import registry
from lorimer.cli._options import AsJson, Energy, Error, OutputFile, Precision, Rank

_MODEL = "embedded, one .safetensors checkpoint, or a folder in the layout of diffusers or transformers"


def extract(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help=f"The base model: {_MODEL}.", show_default=False)
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The same model, fine-tuned.", show_default=False)
    ],
    output: OutputFile,
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="TARGET", help="Which layers, as in a recipe; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="TARGET", help="Which of them not; may be repeated.")
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Which parts of a picture model, e.g. unet; may be repeated."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Keep what differs elsewhere (norms, biases, heads) in full.")
    ] = False,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="The format to write: " + ", ".join(registry.names("format")) + "."
        ),
    ] = "lorimer",
    dtype: Precision = None,
    as_json: AsJson = False,
) -> None:
    """Make a LoRA of a fine-tuned model.

    Of its difference to the base, by truncated singular value decomposition; says how much of it was kept,
    and what differs that the adapter does not carry. Targets are by default all Linear layers. Picture models
    are compared layer by layer, so those larger than memory will do.
    """
    import lorimer
    from lorimer.cli._derived import finish
    from lorimer.cli._models import compared

    pair = compared(base, tuned, component or ())
    derived = lorimer.extract(
        pair.base,
        pair.tuned,
        target or "all-linear",
        exclude=(*(exclude or ()), *pair.exclude),
        metadata=pair.metadata,
        rank=rank,
        energy=energy,
        error=error,
        full=full,
    )
    typer.echo(finish(derived, output, [], to=to, dtype=dtype, as_json=as_json))
