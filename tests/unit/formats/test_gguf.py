"""GGUF adapters: llama.cpp does with them what we do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lorimer
from lorimer import AdapterState, LoRA
from lorimer.errors import FileFormatError
from lorimer.formats._gguf_names import ARCHITECTURES, from_gguf, in_our_order, in_their_order, to_gguf
from lorimer.formats.safe_io import read_gguf
from tests.tiny_texts import SPECIAL, tiny_causal
from tests.tolerances import SAME_IN_LLAMA_CPP

gguf = pytest.importorskip("gguf")
IDS = [7, 20, 31, 44, 58, 61]
WIDE = {"hidden_size": 32, "intermediate_size": 48, "tie_word_embeddings": False}
FACTS = {"architecture": "llama", "attention_heads": "4", "key_value_heads": "2"}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(model: Any, **options: Any) -> lorimer.AttachedAdapter:
    """An adapter on every projection, off its start."""
    adapter = lorimer.attach(model, LoRA(2, alpha=6), options.pop("targets", PROJECTIONS), **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter


def base_file(model: Any, path: Path) -> Path:
    """The model as llama.cpp's own converter writes a Llama, in float32."""
    config = model.config
    heads, few = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(few)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*SPECIAL, *(f"<{number}>" for number in range(256))])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([3] * len(SPECIAL) + [1] * 256)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = in_their_order(tensor, heads if "q_proj" in name else few)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    for write in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, write)()
    return path


def said_by_llama_cpp(base: Path, adapter: Path | None = None) -> Tensor:
    """Logits after each of the tokens."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(
        str(base),
        lora_path=None if adapter is None else str(adapter),
        logits_all=True,
        n_ctx=32,
        n_batch=len(IDS),
        n_threads=1,
        verbose=False,
    )
    model.eval(IDS)
    logits = torch.tensor(model.scores[: len(IDS)])
    model.close()
    return logits


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha_pattern": {"q_proj": 1.0, "down_proj": 0.5}}, {"rank_pattern": {"k_proj": 4}},
     {"targets": ["q_proj", "lm_head"]}],
)  # fmt: skip
def test_llama_cpp_does_what_we_do(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_causal(**WIDE)
    base = base_file(model, tmp_path / "base.gguf")
    plain = model(torch.tensor([IDS])).logits[0].detach()
    torch.testing.assert_close(said_by_llama_cpp(base), plain, atol=SAME_IN_LLAMA_CPP, rtol=0.0)
    lorimer.save(adapted(model, **options), tmp_path / "a.gguf", format="gguf", metadata=FACTS)
    wanted = model(torch.tensor([IDS])).logits[0].detach()
    assert (wanted - plain).abs().max() > 0.1
    found = said_by_llama_cpp(base, tmp_path / "a.gguf")
    torch.testing.assert_close(found, wanted, atol=SAME_IN_LLAMA_CPP, rtol=0.0)


def test_it_reads_back_as_the_same_update(tmp_path: Path) -> None:
    model = tiny_causal(**WIDE)
    state = adapted(model, alpha_pattern={"q_proj": 1.0}).state()
    state.metadata.update(FACTS)
    found = lorimer.read(lorimer.write(state, tmp_path / "a.gguf", format="gguf"))
    for path, layer in state.layers.items():
        before, after = (s.scale * s.tensors["B"] @ s.tensors["A"] for s in (layer, found.layers[path]))
        torch.testing.assert_close(after, before)


def test_a_file_of_another_program_reads_without_our_entry(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for end, shape in (("a", (2, 8)), ("b", (6, 2))):
        writer.add_tensor(f"blk.1.attn_v.weight.lora_{end}", torch.ones(shape).numpy())
    for write in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, write)()
    state = lorimer.read(tmp_path / "a.gguf")
    assert state.layers["model.layers.1.self_attn.v_proj"].scale == 2.0
    assert state.metadata["architecture"] == "llama"


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES.values())))
def test_names_are_those_of_the_gguf_package(architecture: str) -> None:
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, 12)
    fused = {"phi3": ["self_attn.qkv_proj", "mlp.gate_up_proj"], "starcoder2": ["mlp.c_fc", "mlp.c_proj"]}
    own = fused.get(architecture, [])
    usual = [f"self_attn.{each}" for each in PROJECTIONS[:4]] + [f"mlp.{each}" for each in PROJECTIONS[4:]]
    layers = own if architecture == "phi3" else own or usual
    for path in [*(f"model.layers.11.{layer}" for layer in layers), "lm_head"]:
        if path == "lm_head" and names.get_name(path) is None:
            continue  # always tied
        assert to_gguf(path) == names.get_name(path), path
        assert from_gguf(str(to_gguf(path)), architecture) == path


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", [2, 8])
def test_orders_are_each_others_inverse(heads: int, size: int) -> None:
    rows = torch.arange(heads * size * 2.0).reshape(heads * size, 2)
    assert torch.equal(in_our_order(in_their_order(rows, heads), heads), rows)


def state(**changes: Any) -> AdapterState:
    made = adapted(tiny_causal(), **changes.pop("adapter", {})).state()
    made.metadata.update({**FACTS, **changes.pop("facts", {})})
    return made


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: state(facts={"architecture": "mamba"}), "is for the model 'mamba'"),
        (lambda: state(facts={"attention_heads": "many"}), "as whole numbers"),
        (lambda: state(facts={"attention_heads": "3"}), "are not those of 3 heads"),
        (
            lambda: state(adapter={"targets": ["embed_tokens"], "tied": "apart"}),
            "no names for 'model.embed_tokens'",
        ),
        (lambda: state(adapter={"full": ["model.norm"]}), "trained in full"),
        (
            lambda: state(adapter={"targets": ["lm_head"], "tied": "apart"}, facts={"tied_head": "yes"}),
            "vocabulary head is its embedding",
        ),
    ],
)
def test_what_llama_cpp_would_get_wrong_is_refused(made: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=said):
        lorimer.write(made(), tmp_path / "a.gguf", format="gguf")
    assert not list(tmp_path.iterdir())


def test_broken_headers_are_refused_without_taking_memory(tmp_path: Path) -> None:
    path = lorimer.write(state(), tmp_path / "a.gguf", format="gguf")
    whole = path.read_bytes()
    for place in range(4, 120):
        for value in (0, 255):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                read_gguf(path, max_bytes=2**20)
            except FileFormatError:
                continue
