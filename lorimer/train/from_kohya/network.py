"""What is adapted, and how: kohya's network_module, network_dim, network_args, and which parts learn."""

from __future__ import annotations

from collections.abc import Mapping

from lorimer.errors import RecipeError, suggest
from lorimer.train.from_kohya.draft import Draft, pairs
from lorimer.train.from_kohya.kinds import Kind

_CLIP = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_BLOCK = (*_ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
_SMALL_CONVOLUTIONS = ("conv_shortcut", "time_emb_proj")  # 1x1 and linear: of network_dim with kohya
_CONVOLUTIONS = ("conv1", "conv2", "downsamplers.0.conv", "upsamplers.0.conv")
_ENDS = ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")


_ALGORITHMS = {
    "lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "ia3": "ia3", "diag-oft": "oft",
}  # fmt: skip

# networks.lora*'s and LyCORIS' arguments -> where they go; the page shows this table too.
ARGUMENTS: Mapping[str, tuple[str, str]] = {
    "conv_dim": ("adapter.rank_pattern", "Convolutions are adapted too."),
    "conv_alpha": ("adapter.alpha_pattern", "1 where not given, as with kohya; network_alpha with LyCORIS."),
    "loraplus_lr_ratio": ("train.fast_ratio", ""),
    "loraplus_unet_lr_ratio": ("train.fast_ratio", "Where no text encoder learns."),
    "loraplus_text_encoder_lr_ratio": ("train.fast_ratio", "Where it is that of the U-Net."),
    "train_blocks": ("adapter.exclude", "FLUX: `single` or `double`."),
    "train_t5xxl": ("adapter.components", ""),
    "split_qkv": ("", "Always so."),
    "verbose": ("", "`lorimer check` names what is adapted."),
    "algo": ("adapter.method", "`lora`, `locon`, `loha`, `lokr`, `ia3`, `diag-oft`."),
    "preset": ("adapter.targets", "`full`, `full-lin`, `attn-mlp`, `attn-only`, `unet-transformer-only`."),
    "dropout": ("adapter.dropout", ""),
    "factor": ("adapter.factor", "LoKr."),
    "decompose_both": ("adapter.decompose_both", "LoKr."),
    "full_matrix": ("adapter.full_matrix", "LoKr."),
    "use_tucker": ("adapter.tucker", "LoHa, LoKr."),
    "use_cp": ("adapter.tucker", "As `use_tucker`."),
    "dora_wd": ("adapter.method", "`dora`, around the algorithm."),
    "wd_on_output": ("", "Set it to True: magnitudes belong to outputs here."),
    "rs_lora": ("adapter.rslora", ""),
    "block_size": ("adapter.block_size", "OFT."),
    "bypass_mode": ("", "The same adapter, computed another way."),
    "enable_all_linear": ("adapter.targets", "networks.oft: attention alone where it is not set."),
}  # fmt: skip
_BY_HAND = "write adapter.rank_pattern or learning_rate_pattern by hand: they take any part of the model"
_NOTHING = ("", "0", "0.0", "false", "none")
_NOT_DONE = "there is nothing like it"
REFUSED_ARGUMENTS: Mapping[str, str] = {
    **dict.fromkeys(
        ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "block_dims",
         "block_alphas", "conv_block_dims", "conv_block_alphas", "img_attn_dim", "txt_attn_dim",
         "img_mlp_dim", "txt_mlp_dim", "img_mod_dim", "txt_mod_dim", "single_dim", "single_mod_dim",
         "in_dims", "context_attn_dim", "context_mlp_dim", "context_mod_dim", "x_attn_dim", "x_mlp_dim",
         "x_mod_dim", "emb_dims", "attn_dim", "mlp_dim", "mod_dim", "refiner_dim", "embedder_dims",
         "train_double_block_indices", "train_single_block_indices", "train_block_indices",
         "network_reg_dims", "network_reg_lrs"),
        _BY_HAND,
    ),
    **dict.fromkeys(
        ("rank_dropout", "module_dropout", "ggpo_beta", "ggpo_sigma", "use_scalar", "constraint", "rescaled",
         "unit", "rank_dropout_scale", "unbalanced_factorization", "train_on_input", "enable_conv"),
        _NOT_DONE,
    ),
    "train_norm": "name `norms` in adapter.full",
}  # fmt: skip


def put_network(draft: Draft, kind: Kind) -> None:
    """Set everything under `adapter:`, and LoRA+."""
    arguments = pairs(draft.given.get("network_args"), "network_args")
    if arguments.pop("wd_on_output", "true").lower() == "false" and "dora_wd" in arguments:
        draft.refused.append("network_args wd_on_output=False: magnitudes belong to a layer's outputs here")
    arguments = {name: value for name, value in arguments.items() if value.lower() not in _NOTHING}
    module = str(draft.given.get("network_module", "networks.lora"))
    _refuse_arguments(draft, arguments)
    _put_method(draft, module, arguments)
    encoders = _put_components(draft, kind, arguments)
    _put_targets(draft, kind, module, arguments, encoders)
    _put_rates(draft, kind, encoders, arguments)


def _refuse_arguments(draft: Draft, arguments: Mapping[str, str]) -> None:
    for name, value in arguments.items():
        if name in REFUSED_ARGUMENTS:
            draft.refused.append(f"network_args {name}={value}: {REFUSED_ARGUMENTS[name]}")
        elif name not in ARGUMENTS:
            near = suggest(name, [*ARGUMENTS, *REFUSED_ARGUMENTS])
            draft.refused.append(f"network_args {name}={value}: is unknown.{near}")


def _put_method(draft: Draft, module: str, arguments: Mapping[str, str]) -> None:
    """The method, rank, alpha and the method's own fields."""
    name = module.removeprefix("networks.")
    lycoris = name.startswith("lycoris")
    algorithm = (
        arguments.get("algo", "lora").lower() if lycoris else "oft" if name.startswith("oft") else "lora"
    )
    method = _ALGORITHMS.get(algorithm, algorithm)
    if name == "lora_fa":
        method = "lora-fa"
    elif not name.startswith(("lora", "oft", "lycoris")) or method not in _ALGORITHMS.values():
        draft.refused.append(
            f"network_module = {module}{f', algo={algorithm}' * lycoris}: no such method here"
        )
        return
    fields = _method_fields(draft, method, arguments)
    if arguments.get("dora_wd"):
        own = {key: fields.pop(key) for key in list(fields) if key not in ("dropout", "rslora")}
        fields |= {"direction": method} | ({"options": own} if own else {})
        method = "dora"
    draft.put("adapter.method", method, "network_module" + ", algo" * lycoris)
    if method not in ("ia3", "oft"):
        draft.put(
            "adapter.rank", draft.whole("network_dim", 4), _from(draft, "network_dim", "kohya's default")
        )
        draft.put(
            "adapter.alpha",
            draft.number("network_alpha", 1),
            _from(draft, "network_alpha", "kohya's default"),
        )
    elif method == "oft" and "network_dim" in draft.given:
        draft.put("adapter.block_size", draft.whole("network_dim"), "network_dim")
        draft.changed.append("network_dim of OFT: taken as the size of its blocks")
    for field, value in fields.items():
        draft.put(f"adapter.{field}", value, "network_args")


def _method_fields(draft: Draft, method: str, arguments: Mapping[str, str]) -> dict[str, object]:
    fields: dict[str, object] = {}
    yes = {name for name, value in arguments.items() if value.lower() in ("true", "1")}
    if method == "lokr":
        fields |= {"factor": int(arguments["factor"])} if "factor" in arguments else {}
        fields |= dict.fromkeys(yes & {"decompose_both", "full_matrix"}, True)
    if method in ("loha", "lokr") and yes & {"use_tucker", "use_cp"}:
        fields["tucker"] = True
    if method == "oft" and "block_size" in arguments:
        fields["block_size"] = int(arguments["block_size"])
    if "rs_lora" in yes and method in ("lora", "lora-fa"):
        fields["rslora"] = True
    if dropout := arguments.get("dropout") or draft.given.get("network_dropout"):
        if method in ("lora", "lora-fa"):
            fields["dropout"] = float(dropout)
        else:
            draft.refused.append(f"dropout = {dropout}: {method} has none")
    return fields


def _put_components(draft: Draft, kind: Kind, arguments: Mapping[str, str]) -> tuple[str, ...]:
    """Which parts learn; returns the text encoders among them."""
    given = draft.given
    encoders = kind.encoders + ((kind.t5,) if arguments.get("train_t5xxl", "").lower() == "true" else ())
    rates = _rates(draft, encoders)
    encoders = tuple(name for name in encoders if rates.get(name) != 0)
    if given.get("network_train_unet_only") or draft.given.get("text_encoder_lr_is_zero"):
        encoders = ()
    only_text = bool(given.get("network_train_text_encoder_only"))
    if encoders:
        why = "no network_train_unet_only: text encoders learn too"
        draft.put("adapter.components", [*encoders] if only_text else [kind.denoiser, *encoders], why)
    return encoders


def _put_targets(
    draft: Draft, kind: Kind, module: str, arguments: Mapping[str, str], encoders: tuple[str, ...]
) -> None:
    lycoris, preset = module.startswith("lycoris"), arguments.get("preset", "full")
    if lycoris and preset not in ("full", "full-lin", "attn-mlp", "attn-only", "unet-transformer-only"):
        draft.refused.append(f"network_args preset={preset}: name the layers in adapter.targets")
        return
    if kind.outside:
        _put_transformer_targets(draft, kind, arguments)
        return
    attention_only = (
        preset == "attn-only" if lycoris else "oft" in module and "enable_all_linear" not in arguments
    )
    targets = list(_ATTENTION if attention_only else _BLOCK)
    convolutions = (lycoris and preset == "full") or ("conv_dim" in arguments and not lycoris)
    if convolutions or (lycoris and preset == "full-lin"):
        targets += _SMALL_CONVOLUTIONS[0 if convolutions else 1 :]
    if convolutions:
        targets += [*_CONVOLUTIONS, *(_ENDS if lycoris else ())]
        _put_ranks_of_convolutions(draft, arguments, lycoris)
    if draft.fields.get("adapter.components", [""])[0] != kind.denoiser and encoders:
        targets = []
    targets += _CLIP[:4] if encoders and attention_only else _CLIP if encoders else ()
    draft.put("adapter.targets", targets, "what kohya adapts")


def _put_ranks_of_convolutions(draft: Draft, arguments: Mapping[str, str], lycoris: bool) -> None:
    """conv_dim and conv_alpha, where they differ from the other layers'."""
    if "adapter.rank" not in draft.fields:
        return
    names = [*_CONVOLUTIONS, *(_ENDS[:2] if lycoris else ())]
    rank = int(float(arguments.get("conv_dim", draft.fields["adapter.rank"])))
    alpha = float(arguments.get("conv_alpha", draft.fields["adapter.alpha"] if lycoris else 1))
    if rank != draft.fields["adapter.rank"]:
        draft.put("adapter.rank_pattern", dict.fromkeys(names, rank), "conv_dim")
    if alpha != draft.fields["adapter.alpha"]:
        draft.put("adapter.alpha_pattern", dict.fromkeys(names, alpha), "conv_alpha")


def _put_transformer_targets(draft: Draft, kind: Kind, arguments: Mapping[str, str]) -> None:
    outside = list(kind.outside)
    if "conv_dim" in arguments:
        draft.refused.append(
            f"network_args conv_dim={arguments['conv_dim']}: transformers have no convolutions"
        )
    blocks = arguments.get("train_blocks", "all")
    if blocks not in ("all", "single", "double"):
        draft.refused.append(f"network_args train_blocks={blocks}: is all, single or double")
    elif blocks != "all":
        outside.append("transformer_blocks" if blocks == "single" else "single_transformer_blocks")
    draft.put("adapter.targets", "all-linear", "what kohya adapts, in every block")
    draft.put("adapter.exclude", outside, "what lies in no block" if blocks == "all" else "train_blocks")
    draft.changed.append(
        "query, key and value are three layers here, each of network_dim, where kohya adapts them as one"
    )


def _rates(draft: Draft, encoders: tuple[str, ...]) -> dict[str, float]:
    """Text encoder -> its learning rate, where one is given. Kohya gives the last one to the rest."""
    value = draft.given.get("text_encoder_lr")
    if value is None:
        return {}
    values = value if isinstance(value, list) else str(value).split()
    try:
        rates = [float(each) for each in values]
    except ValueError:
        raise RecipeError(f"text_encoder_lr: must be one number or several, not {value!r}") from None
    return {name: rates[min(place, len(rates) - 1)] for place, name in enumerate(encoders)}


def _put_rates(draft: Draft, kind: Kind, encoders: tuple[str, ...], arguments: Mapping[str, str]) -> None:
    main = "unet_lr" if "unet_lr" in draft.given else "learning_rate"
    rate = float(draft.number(main, 2e-6))
    draft.put("train.learning_rate", rate, _from(draft, main, "kohya's default"))
    own = {name: own for name, own in _rates(draft, encoders).items() if own != rate}
    if "unet_lr" in draft.given and "text_encoder_lr" not in draft.given and encoders:
        own = dict.fromkeys(encoders, float(draft.number("learning_rate", 2e-6)))
    if own:
        draft.put("adapter.learning_rate_pattern", own, "text_encoder_lr")
    ratios = {name: value for name, value in arguments.items() if name.startswith("loraplus")}
    if ratios:
        both = arguments.get("loraplus_lr_ratio")
        unet = arguments.get("loraplus_unet_lr_ratio", both)
        text = arguments.get("loraplus_text_encoder_lr_ratio", both) if encoders else unet
        if unet is None or text != unet:
            draft.refused.append(
                "network_args loraplus: one ratio holds for the whole adapter: loraplus_lr_ratio"
            )
        else:
            draft.put("train.fast_ratio", float(unet), "network_args")


def _from(draft: Draft, name: str, otherwise: str) -> str:
    """What to say of a value's origin."""
    return name if name in draft.given else f"{name} is not given: {otherwise}"
