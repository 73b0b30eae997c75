"""Names and shapes of whole models' layers, derived a second time from how the models were first built.

Nothing here knows lorimer's tables. Each function walks through the constructor of the original code as it is
told in the papers' repositories and in the loaders of sd-scripts and ComfyUI, and yields (path of the layer
in that code, shape of its weight). `comfy_unet` is the arithmetic by which ComfyUI finds a layer that a file
names in diffusers' way.
"""

from __future__ import annotations

from collections.abc import Iterator

Shape = tuple[int, ...]
Layers = Iterator[tuple[str, Shape]]


def ldm_unet(
    *,
    channels: int,
    multipliers: tuple[int, ...],
    depths: tuple[int, ...],
    context: int,
    linear: bool,
    vector: int,
) -> Layers:
    """The U-Net of latent diffusion: a list of input blocks, a middle, a list of output blocks that take the
    skipped activations from a stack.

    Args:
        depths: transformer blocks at each level, 0 for none.
        linear: the projections around transformers are Linear and not 1 x 1 convolutions.
        vector: width of the conditioning vector beside the time, 0 for none.
    """
    time, width = 4 * channels, channels
    yield "time_embed.0", (time, channels)
    yield "time_embed.2", (time, time)
    if vector:
        yield "label_emb.0.0", (time, vector)
        yield "label_emb.0.2", (time, time)
    yield "input_blocks.0.0", (channels, 4, 3, 3)
    stack, block = [channels], 1
    for level, multiplier in enumerate(multipliers):
        for _ in range(2):
            yield from _resnet(f"input_blocks.{block}.0", width, channels * multiplier, time)
            width = channels * multiplier
            if depths[level]:
                yield from _transformer(f"input_blocks.{block}.1", width, depths[level], context, linear)
            stack.append(width)
            block += 1
        if level < len(multipliers) - 1:
            yield f"input_blocks.{block}.0.op", (width, width, 3, 3)
            stack.append(width)
            block += 1
    deepest = max(depths[-1], 1)  # Stable Diffusion 1 has one in the middle though its last level has none
    yield from _resnet("middle_block.0", width, width, time)
    yield from _transformer("middle_block.1", width, deepest, context, linear)
    yield from _resnet("middle_block.2", width, width, time)
    block = 0
    for level, multiplier in reversed(list(enumerate(multipliers))):
        for i in range(3):
            yield from _resnet(f"output_blocks.{block}.0", width + stack.pop(), channels * multiplier, time)
            width, place = channels * multiplier, 1
            if depths[level]:
                yield from _transformer(f"output_blocks.{block}.1", width, depths[level], context, linear)
                place = 2
            if level and i == 2:
                yield f"output_blocks.{block}.{place}.conv", (width, width, 3, 3)
            block += 1
    yield "out.2", (4, channels, 3, 3)


def _resnet(path: str, into: int, out: int, time: int) -> Layers:
    yield f"{path}.in_layers.2", (out, into, 3, 3)
    yield f"{path}.emb_layers.1", (out, time)
    yield f"{path}.out_layers.3", (out, out, 3, 3)
    if into != out:
        yield f"{path}.skip_connection", (out, into, 1, 1)


def _transformer(path: str, width: int, depth: int, context: int, linear: bool) -> Layers:
    around = (width, width) if linear else (width, width, 1, 1)
    yield f"{path}.proj_in", around
    for i in range(depth):
        block = f"{path}.transformer_blocks.{i}"
        for attention, keys in (("attn1", width), ("attn2", context)):
            yield f"{block}.{attention}.to_q", (width, width)
            yield f"{block}.{attention}.to_k", (width, keys)
            yield f"{block}.{attention}.to_v", (width, keys)
            yield f"{block}.{attention}.to_out.0", (width, width)
        yield f"{block}.ff.net.0.proj", (8 * width, width)  # a gated GELU: two of four times the width
        yield f"{block}.ff.net.2", (width, 4 * width)
    yield f"{path}.proj_out", around


def comfy_unet(name: str, levels: int, attended: tuple[int, ...]) -> str:
    """The path in the original U-Net of a layer that diffusers calls `name`, with "_" for ".", by ComfyUI's
    arithmetic: 2 blocks a level, and one that resamples."""
    fixed = {
        "conv_in": "input_blocks_0_0",
        "conv_out": "out_2",
        "time_embedding_linear_1": "time_embed_0",
        "time_embedding_linear_2": "time_embed_2",
    }
    if name in fixed:
        return fixed[name]
    group, level_or_kind, *words = name.split("_")[0], *name.split("_")[2:]
    resnet = {"conv1": "in_layers_2", "time_emb_proj": "emb_layers_1", "conv2": "out_layers_3",
              "conv_shortcut": "skip_connection"}  # fmt: skip
    if group == "mid":
        i, rest = int(words[0]), "_".join(words[1:])
        is_resnet = level_or_kind == "resnets"
        return f"middle_block_{2 * i}_{resnet[rest]}" if is_resnet else f"middle_block_1_{rest}"
    level, kind, i, rest = int(level_or_kind), words[0], int(words[1]), "_".join(words[2:])
    if group == "down":
        first = 1 + 3 * level
        if kind == "downsamplers":
            return f"input_blocks_{first + 2}_0_op"
        return f"input_blocks_{first + i}_" + (f"0_{resnet[rest]}" if kind == "resnets" else f"1_{rest}")
    first = 3 * level
    if kind == "upsamplers":
        return f"output_blocks_{first + 2}_{1 + (levels - 1 - level in attended)}_conv"
    return f"output_blocks_{first + i}_" + (f"0_{resnet[rest]}" if kind == "resnets" else f"1_{rest}")


def clip(layers: int, width: int) -> Layers:
    """CLIP's text tower under the names that the field's files have."""
    for i in range(layers):
        layer = f"text_model.encoder.layers.{i}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{layer}.self_attn.{projection}", (width, width)
        yield f"{layer}.mlp.fc1", (4 * width, width)
        yield f"{layer}.mlp.fc2", (width, 4 * width)


def flux(width: int = 3072, double: int = 19, single: int = 38) -> Layers:
    """Black Forest Labs' FLUX.1-dev."""
    yield "img_in", (width, 64)
    yield "txt_in", (width, 4096)
    for embedder, into in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        yield f"{embedder}.in_layer", (width, into)
        yield f"{embedder}.out_layer", (width, width)
    for i in range(double):
        for stream in ("img", "txt"):
            block = f"double_blocks.{i}.{stream}"
            yield f"{block}_mod.lin", (6 * width, width)
            yield f"{block}_attn.qkv", (3 * width, width)
            yield f"{block}_attn.proj", (width, width)
            yield f"{block}_mlp.0", (4 * width, width)
            yield f"{block}_mlp.2", (width, 4 * width)
    for i in range(single):
        yield f"single_blocks.{i}.linear1", (7 * width, width)
        yield f"single_blocks.{i}.linear2", (width, 5 * width)
        yield f"single_blocks.{i}.modulation.lin", (3 * width, width)
    yield "final_layer.linear", (64, width)
    yield "final_layer.adaLN_modulation.1", (2 * width, width)


def mmdit(depth: int = 24, twofold: tuple[int, ...] = ()) -> Layers:
    """Stability's MMDiT: Stable Diffusion 3 medium, or 3.5 medium with a second attention in some blocks."""
    width = 64 * depth
    yield "x_embedder.proj", (width, 16, 2, 2)
    yield "context_embedder", (width, 4096)
    for embedder, into in (("t_embedder", 256), ("y_embedder", 2048)):
        yield f"{embedder}.mlp.0", (width, into)
        yield f"{embedder}.mlp.2", (width, width)
    for i in range(depth):
        for block in ("x_block", "context_block"):
            path = f"joint_blocks.{i}.{block}"
            is_last = block == "context_block" and i == depth - 1  # whose output nobody needs
            is_twofold = block == "x_block" and i in twofold
            yield f"{path}.adaLN_modulation.1", ((2 if is_last else 9 if is_twofold else 6) * width, width)
            yield f"{path}.attn.qkv", (3 * width, width)
            if is_twofold:
                yield f"{path}.attn2.qkv", (3 * width, width)
                yield f"{path}.attn2.proj", (width, width)
            if not is_last:
                yield f"{path}.attn.proj", (width, width)
                yield f"{path}.mlp.fc1", (4 * width, width)
                yield f"{path}.mlp.fc2", (width, 4 * width)
    yield "final_layer.linear", (64, width)
    yield "final_layer.adaLN_modulation.1", (2 * width, width)
